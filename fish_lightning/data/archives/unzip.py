"""Unpack a data set's zip file: nothing outside its folder, no more than there is room for, and on where it stopped."""

import errno
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from fish_lightning.errors import UserError, first_line
from fish_lightning.files import byte_size, whole_file

#: Images hardly shrink; what unpacks to more than this many times its size is made to fill a disk.
RATIO = 100
#: Nor does what is at most this large, bytes: blank masks shrink as much.
HARMLESS = 100_000_000
#: Apple's copies of folders: resource forks named like the images.
NOT_UNPACKED = "__MACOSX"
#: Bytes read at a time.
CHUNK = 1 << 20

Members = dict[PurePosixPath, zipfile.ZipInfo]


def unpack(archive: Path, root: Path, limit: float) -> int:
    """Unpack a zip file into ``root``; files that are there already, with the right size and checksum, are kept.

    Every name is looked at before the first byte is written, and each file appears whole or not at all: started again
    after a stop it goes on. A file of ``root`` that differs from the archive's is replaced.

    Args:
        archive: the zip file.
        root: folder to unpack into, made if missing.
        limit: bytes that it may unpack to.

    Returns:
        How many files were written.

    Raises:
        UserError: no zip file, a damaged or an encrypted one; a name outside of ``root``, a link, more than ``limit``
            or than there is room for.
    """
    if not archive.is_file():
        raise UserError(f"data.archive: no file {archive} (seen from {Path.cwd()})")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, archive)
            _require_sane_size(members, archive, limit)
            missing = _missing(members, root)
            _require_room(sum(info.file_size for info in missing.values()), root)
            _write(opened, missing, archive, root)
    except zipfile.BadZipFile:
        raise UserError(
            f"data.archive: {archive} is not a zip file, or only a part of one ({byte_size(archive.stat().st_size)})\n"
            "download it again, whole."
        ) from None
    except OSError as error:
        raise UserError(
            f"data.archive: {archive} cannot be unpacked into {root}: {error.strerror or error}\n"
            "what was unpacked so far is kept; the same command goes on from there."
        ) from None
    return len(missing)


def _members(opened: zipfile.ZipFile, archive: Path) -> Members:
    """The files of an archive by the place that each belongs to, below the root."""
    members = {}
    for info in opened.infolist():
        name = info.filename.replace("\\", "/")  # as some programs for Windows write it
        place = PurePosixPath(name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not place.parts or place.is_absolute() or ".." in place.parts or PureWindowsPath(name).drive:
            raise _refused(archive, info, "would be written outside of data.root")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, info, "is a link or a device, not a file")
        if info.flag_bits & 1:
            raise _refused(archive, info, "is encrypted", "unpack it by hand, and give its folder: data.root=DIR")
        if not info.is_dir() and not name.endswith("/") and place.parts[0] != NOT_UNPACKED:
            members[place] = info
    if not members:
        raise UserError(f"data.archive: {archive} holds no file")
    return members


def _refused(archive: Path, info: zipfile.ZipInfo, why: str, remedy: str = "nothing was unpacked.") -> UserError:
    return UserError(f"data.archive: {archive} holds {info.filename!r:.120}, which {why}\n{remedy}")


def _require_sane_size(members: Members, archive: Path, limit: float) -> None:
    total, packed = sum(info.file_size for info in members.values()), archive.stat().st_size
    if total > limit:
        raise UserError(
            f"data.archive: {archive} unpacks to {byte_size(total)}, more than the {byte_size(limit)} that are allowed\n"
            "if that is right, allow more: data.archive_limit=GIGABYTES"
        )
    if total > max(HARMLESS, RATIO * packed):
        raise UserError(
            f"data.archive: {archive} unpacks to {byte_size(total)}, {total // packed:,} times its size: images do not\n"
            "nothing was unpacked; if it is to be trusted, unpack it by hand and give its folder: data.root=DIR"
        )


def _missing(members: Members, root: Path) -> Members:
    """The members that ``root`` does not hold yet, or not as they are in the archive."""
    listed = tqdm(members.items(), desc="what is there", unit="file", disable=None, leave=False)
    return {place: info for place, info in listed if not _is_unpacked(root / place, info)}


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
            f"no room for the data: {root} needs {byte_size(needed)}, and {byte_size(free)} are free\n"
            "make room, or choose a folder on another disk: data.root=DIR"
        )


def _write(opened: zipfile.ZipFile, missing: Members, archive: Path, root: Path) -> None:
    inside = root.resolve()
    total = sum(info.file_size for info in missing.values())
    with tqdm(total=total, desc="unpacking", unit="B", unit_scale=True, disable=None) as bar:
        for place, info in missing.items():
            file = root / place
            if not file.parent.resolve().is_relative_to(inside):  # through a link that is there already
                raise _refused(archive, info, f"a link in {root} would lead outside", "remove the link.")
            try:
                with whole_file(file) as temporary, opened.open(info) as source, temporary.open("wb") as target:
                    while chunk := source.read(CHUNK):
                        target.write(chunk)
                        bar.update(len(chunk))
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
                raise UserError(
                    f"data.archive: {archive} is damaged at {info.filename!r:.120} ({first_line(error)})\n"
                    "download it again; what is unpacked already is kept."
                ) from None
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise UserError(f"no room left for the data in {root}\nmake room: the same command goes on") from None
