"""Where ``predict`` writes: a folder on disk, or one in an object store. Files are written atomically."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fish_lightning.data.remote import file_system, url_of
from fish_lightning.errors import UserError, one_line
from fish_lightning.files import atomic_write, shown
from fish_lightning.names import printable

#: File systems in which a file appears when all of it has been received.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "hf", "memory"})
#: File systems in which a file is renamed when it is complete, replacing another.
RENAMING = frozenset({"file", "local", "sftp", "ssh"})


@dataclass(frozen=True)
class LocalFolder:
    """A folder on disk.

    Attributes:
        path: path of the folder, which is created with the first file.
    """

    path: Path

    #: The setting that chooses another one.
    setting = "hydra.run.dir=FOLDER"

    def __str__(self) -> str:
        return shown(self.path)

    def below(self, name: str) -> "LocalFolder":
        """Return a folder, or a file as it is printed, in this one."""
        return LocalFolder(self.path / name)

    def names(self) -> set[str]:
        """Return the names of the files."""
        return {file.name for file in self.path.iterdir()} if self.path.is_dir() else set()

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file."""
        with atomic_write(self.path / name) as temporary:
            temporary.write_bytes(content)


class RemoteFolder:
    """A folder that fsspec opens. Two machines that run the same shard both write to it: one of them wins.

    Args:
        url: URL such as ``s3://bucket/folder``.

    Raises:
        UserError: fsspec does not know the scheme, the library for it is not installed, or files cannot be replaced
            atomically there.
    """

    #: The setting that chooses another one.
    setting = "output=URL"

    def __init__(self, url: str) -> None:
        self.url = url_of(url).rstrip("/")
        self._system, place = file_system(self.url, "output")
        self._place = place.rstrip("/")
        protocol = self._system.protocol
        protocols = {protocol} if isinstance(protocol, str) else {*protocol}
        self._renames = OBJECT_STORES.isdisjoint(protocols)
        if self._renames and RENAMING.isdisjoint(protocols):
            raise UserError(
                f"output: {self} does not support atomic writes: a crash could leave half a file\n"
                "pass a folder in an object store (s3://, gs://, az://) or one on an SSH server (sftp://)"
            )

    def __str__(self) -> str:
        return printable(self.url)

    def below(self, name: str) -> "RemoteFolder":
        """Return a folder, or a file as it is printed, in this one."""
        return RemoteFolder(f"{self.url}/{name}")

    def names(self) -> set[str]:
        """Return the names of the files.

        Raises:
            UserError: the store cannot be reached or refuses.
        """
        try:
            with self._reached("listed", "", FileNotFoundError):
                self._system.invalidate_cache()  # other processes write here too
                return {path.rsplit("/", 1)[-1] for path in self._system.ls(self._place, detail=False)}
        except FileNotFoundError:  # no file yet
            return set()

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: there is none.
            UserError: the store cannot be reached or refuses.
        """
        with self._reached("read", name, FileNotFoundError):
            content: bytes = self._system.cat_file(f"{self._place}/{name}")
            return content

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file.

        Raises:
            UserError: the store cannot be reached or refuses.
        """
        target = f"{self._place}/{name}"
        with self._reached("written", name):
            if self._renames:
                self._write_and_rename(target, content)
            else:
                self._system.pipe_file(target, content)

    def _write_and_rename(self, target: str, content: bytes) -> None:
        temporary = f"{self._place}/.{uuid.uuid4().hex}"
        self._system.makedirs(self._place, exist_ok=True)
        try:
            self._system.pipe_file(temporary, content)
            self._system.mv(temporary, target)
        except BaseException:
            with suppress(Exception):
                self._system.rm_file(temporary)
            raise

    @contextmanager
    def _reached(self, done: str, name: str, expected: type[Exception] = UserError) -> Iterator[None]:
        """Report what a store's library raises, except what is ``expected``: botocore's errors are not OSErrors."""
        try:
            yield
        except (UserError, expected):  # a UserError: a signal
            raise
        except Exception as error:
            where = printable(f"{self.url}/{name}" if name else self.url)
            raise UserError(f"output: {where} cannot be {done} ({type(error).__name__}: {one_line(error)})") from None


Folder = LocalFolder | RemoteFolder
