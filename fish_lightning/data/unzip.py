"""Unpack a data set's zip file safely: only below its folder, only what fits on the disk, resumable."""

import errno
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from fish_lightning.errors import UserError, first_line
from fish_lightning.files import atomic_write, byte_size

#: Maximum compression ratio: images hardly compress, so what exceeds it is a zip bomb.
RATIO = 100
#: Unpacked size in bytes up to which any ratio is accepted: blank masks compress that well.
HARMLESS = 100_000_000
#: Resource forks, which macOS adds under the names of the images.
NOT_UNPACKED = "__MACOSX"
#: Whether a name such as ``C:fish.png`` begins with a drive.
DRIVES = os.name == "nt"
#: Bytes per read.
CHUNK = 1 << 20

Members = dict[PurePosixPath, zipfile.ZipInfo]


def unpack(archive: Path, root: Path, limit: float) -> int:
    """Unpack a zip file into ``root``, except for files that already exist with the right size and checksum.

    All names are checked before the first byte is written, and each file is complete or absent, so an interrupted
    call can be repeated. A file in ``root`` that differs from the archive's is replaced.

    Args:
        archive: the zip file.
        root: folder to unpack into; created if missing.
        limit: maximum unpacked size in bytes.

    Returns:
        Number of files written.

    Raises:
        UserError: the archive is not a zip file, is corrupt or encrypted, contains a link or a name outside ``root``,
            or unpacks to more than ``limit`` or the free space.
    """
    if not archive.is_file():
        raise UserError(f"data.archive: no file {archive} (working directory: {Path.cwd()})")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, archive)
            _require_sane_size(members, archive, limit)
            files = tqdm(members.items(), desc="checking existing files", unit="file", disable=None, leave=False)
            missing = {place: info for place, info in files if not _is_unpacked(root / place, info)}
            _require_room(sum(info.file_size for info in missing.values()), root)
            _write(opened, missing, archive, root)
    except zipfile.BadZipFile:
        raise UserError(
            f"data.archive: {archive} is not a zip file, or is incomplete ({byte_size(archive.stat().st_size)})\n"
            "download it again"
        ) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = Path(str(error.filename2 or error.filename)).name  # the second is what it was to be renamed to
            raise UserError(
                f"data.archive: {archive} contains a name too long for the disk of {root}: {name:.60}…\n"
                "unpack it yourself under a shorter name and pass the folder: data.root=DIR"
            ) from None
        raise UserError(
            f"data.archive: {archive} cannot be unpacked into {root}: {error.strerror or error}\n"
            "files unpacked so far are kept; repeat the command to unpack the rest"
        ) from None
    return len(missing)


def _members(opened: zipfile.ZipFile, archive: Path) -> Members:
    """Return the files of an archive by their paths relative to the root."""
    members = {}
    for info in opened.infolist():
        name = info.filename.replace("\\", "/")  # written by some Windows programs
        place = PurePosixPath(name)
        file_type = stat.S_IFMT(info.external_attr >> 16)
        if not place.parts or place.is_absolute() or ".." in place.parts or (DRIVES and PureWindowsPath(name).drive):
            raise _refused(archive, info, "would be written outside data.root")
        if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, info, "is a link or a device, not a file")
        if info.flag_bits & 1:
            raise _refused(archive, info, "is encrypted", "unpack it yourself and pass the folder: data.root=DIR")
        if not info.is_dir() and not name.endswith("/") and place.parts[0] != NOT_UNPACKED:
            members[place] = info
    if not members:
        raise UserError(f"data.archive: {archive} contains no files")
    return members


def _refused(archive: Path, info: zipfile.ZipInfo, why: str, remedy: str = "nothing was unpacked") -> UserError:
    return UserError(f"data.archive: {archive} contains {info.filename!r:.120}, which {why}\n{remedy}")


def _require_sane_size(members: Members, archive: Path, limit: float) -> None:
    total, packed = sum(info.file_size for info in members.values()), archive.stat().st_size
    if total > limit:
        raise UserError(
            f"data.archive: {archive} unpacks to {byte_size(total)}, more than the limit of {byte_size(limit)}\n"
            "if that is expected, raise the limit: data.archive_limit=GIGABYTES"
        )
    if total > max(HARMLESS, RATIO * packed):
        raise UserError(
            f"data.archive: {archive} unpacks to {byte_size(total)}, {total // packed:,} times its size: a zip bomb?\n"
            "nothing was unpacked; if you trust the file, unpack it yourself and pass the folder: data.root=DIR"
        )


def _is_unpacked(file: Path, info: zipfile.ZipInfo) -> bool:
    if not file.is_file() or file.stat().st_size != info.file_size:
        return False
    checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum == info.CRC


def _require_room(needed: int, root: Path) -> None:
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"not enough space for the data: {root} needs {byte_size(needed)}, {byte_size(free)} are free\n"
            "free some space, or choose a folder on another disk: data.root=DIR"
        )


def _write(opened: zipfile.ZipFile, missing: Members, archive: Path, root: Path) -> None:
    inside = root.resolve()
    total = sum(info.file_size for info in missing.values())
    with tqdm(total=total, desc="unpacking", unit="B", unit_scale=True, disable=None) as bar:
        for place, info in missing.items():
            file = root / place
            if not file.parent.resolve().is_relative_to(inside):  # through an existing link
                raise _refused(
                    archive, info, f"would be written outside data.root through a link in {root}", "remove the link"
                )
            try:
                with atomic_write(file) as temporary, opened.open(info) as source, temporary.open("wb") as target:
                    while chunk := source.read(CHUNK):
                        target.write(chunk)
                        bar.update(len(chunk))
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
                raise UserError(
                    f"data.archive: {archive} is corrupt at {info.filename!r:.120} ({first_line(error)})\n"
                    "download it again; files unpacked so far are kept"
                ) from None
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise UserError(f"no space left for the data in {root}\nfree some and repeat the command") from None
