"""Zip files, honest and hostile: nothing outside the folder, nothing incomplete, resumable."""

import os
import shutil
import stat
import struct
import zipfile
from collections import namedtuple

import pytest
from helpers import message_of

from fish_lightning.data import unzip
from fish_lightning.data.unzip import unpack

GB = 10**9


def packed(file, members, compression=zipfile.ZIP_DEFLATED):
    """Write a zip file of names and contents."""
    with zipfile.ZipFile(file, "w", compression) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file


def files_below(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(file, root, limit=GB):
    return message_of(unpack, file, root, limit)


MEMBERS = {
    "Fish_Dataset/Fish_Dataset/Sea Bass/Sea Bass/00001.png": b"one",
    "Fish_Dataset/Fish_Dataset/Sea Bass/Sea Bass/a=b, ü ß.png": b"two" * 1000,
    "Fish_Dataset/empty.txt": b"",
}


def test_files_of_any_name_are_unpacked(tmp_path):
    root = tmp_path / "new" / "a=b, ü"
    assert unpack(packed(tmp_path / "a b.zip", MEMBERS), root, GB) == 3
    assert files_below(root) == MEMBERS


def test_folders_and_resource_forks_are_not_unpacked(tmp_path):
    file = packed(tmp_path / "a.zip", {"bass/": b"", "bass/1.png": b"x", "__MACOSX/bass/._1.png": b"fork"})
    assert unpack(file, tmp_path / "to", GB) == 1
    assert files_below(tmp_path / "to") == {"bass/1.png": b"x"}


def test_backslashes_separate_folders(tmp_path):
    unpack(packed(tmp_path / "a.zip", {"bass\\1.png": b"x"}), tmp_path / "to", GB)
    assert files_below(tmp_path / "to") == {"bass/1.png": b"x"}


def test_repeated_it_writes_only_what_is_missing_or_differs(tmp_path):
    file, root = packed(tmp_path / "a.zip", MEMBERS), tmp_path / "to"
    unpack(file, root, GB)
    names = list(MEMBERS)
    kept = (root / names[0]).stat().st_mtime_ns
    (root / names[1]).write_bytes(b"tw" * 1500)  # the size is right, the content is not
    (root / names[2]).unlink()
    assert unpack(file, root, GB) == 2
    assert files_below(root) == MEMBERS
    assert (root / names[0]).stat().st_mtime_ns == kept
    assert unpack(file, root, GB) == 0


def test_an_interrupted_call_can_be_repeated_and_leaves_no_incomplete_file(tmp_path, monkeypatch):
    file, root = packed(tmp_path / "a.zip", MEMBERS), tmp_path / "to"
    opened = zipfile.ZipFile.open
    count = iter(range(10))

    def stop(self, *arguments, **options):
        if next(count) == 1:
            raise KeyboardInterrupt
        return opened(self, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", stop)
    with pytest.raises(KeyboardInterrupt):
        unpack(file, root, GB)
    assert list(files_below(root)) == [next(iter(MEMBERS))]
    assert unpack(file, root, GB) == 2
    assert files_below(root) == MEMBERS


@pytest.mark.parametrize(
    "name",
    [".", "../evil.png", "a/../../evil.png", "/evil.png", "C:/evil.png", "C:evil.png", "..\\evil.png", "\\\\h\\s\\e"],
)
def test_a_name_outside_the_folder_is_refused_before_anything_is_written(tmp_path, name, monkeypatch):
    monkeypatch.setattr(unzip, "DRIVES", True)  # as on Windows
    text = refusal(packed(tmp_path / "a.zip", {"good.png": b"x", name: b"evil"}), tmp_path / "in" / "to")
    assert f"contains {name!r}, which would be written outside data.root\nnothing was unpacked" in text
    assert not (tmp_path / "in").exists() and files_below(tmp_path).keys() == {"a.zip"}


def test_a_colon_is_part_of_a_name_where_there_are_no_drives(tmp_path, monkeypatch):
    monkeypatch.setattr(unzip, "DRIVES", False)
    unpack(packed(tmp_path / "a.zip", {"bass/x:y.png": b"x", "C:/1.png": b"y"}), tmp_path / "to", GB)
    assert files_below(tmp_path / "to") == {"bass/x:y.png": b"x", "C:/1.png": b"y"}


def test_a_name_may_be_as_long_as_a_name_can_be(tmp_path):
    names = [f"{letter * (length - 4)}.png" for letter, length in (("a", 249), ("b", 255), ("ü", 129))]
    unpack(packed(tmp_path / "a.zip", {f"bass/{name}": b"x" for name in names}), tmp_path / "to", GB)
    assert files_below(tmp_path / "to").keys() == {f"bass/{name}" for name in names}


def test_a_longer_name_is_refused_with_its_name(tmp_path):
    text = refusal(packed(tmp_path / "a.zip", {f"bass/{'a' * 256}": b"x"}), tmp_path / "to")
    assert "contains a name too long for the disk of" in text and "aaaa…" in text and "repeat" not in text


@pytest.mark.parametrize("file_type", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_a_device_is_refused(tmp_path, file_type):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        info = zipfile.ZipInfo("bass/link.png")
        info.external_attr = (file_type | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    text = refusal(tmp_path / "a.zip", tmp_path / "to")
    assert "'bass/link.png', which is a link or a device, not a file" in text and not (tmp_path / "to").exists()


def test_nothing_is_written_through_an_existing_link(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "bass").symlink_to(tmp_path / "outside")
    text = refusal(packed(tmp_path / "a.zip", {"bass/1.png": b"x"}), tmp_path / "to")
    assert "outside data.root through a link in" in text and not list((tmp_path / "outside").iterdir())


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "to").symlink_to(tmp_path / "disk")
    unpack(packed(tmp_path / "a.zip", {"bass/1.png": b"x"}), tmp_path / "to", GB)
    assert files_below(tmp_path / "disk") == {"bass/1.png": b"x"}


def test_an_encrypted_member_is_refused(tmp_path):
    content = bytearray(packed(tmp_path / "a.zip", {"bass/1.png": b"x"}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert "which is encrypted\nunpack it yourself" in refusal(tmp_path / "a.zip", tmp_path / "to")


def test_more_than_the_limit_is_refused_and_the_limit_named(tmp_path):
    text = refusal(packed(tmp_path / "a.zip", {"1.png": os.urandom(5000)}), tmp_path / "to", limit=4000)
    assert "unpacks to 5 KB, more than the limit of 4 KB" in text and "data.archive_limit=GIGABYTES" in text
    assert not (tmp_path / "to").exists()


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as opened, opened.open("1.bmp", "w") as stream:
        for _ in range(120):
            stream.write(bytes(10**6))
    text = refusal(tmp_path / "a.zip", tmp_path / "to")
    assert "unpacks to 120 MB" in text and "times its size: a zip bomb?" in text
    assert not (tmp_path / "to").exists()


def test_a_member_larger_than_declared_is_refused(tmp_path):
    content = bytearray(packed(tmp_path / "a.zip", {"1.png": bytes(10**7)}).read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 10)  # the directory says 10 bytes
    (tmp_path / "a.zip").write_bytes(content)
    assert "is corrupt at '1.png' (Bad CRC-32" in refusal(tmp_path / "a.zip", tmp_path / "to")
    assert files_below(tmp_path / "to") == {}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_zip_file_is_refused(tmp_path, share):
    file = packed(tmp_path / "a.zip", {f"{n}.png": os.urandom(3000) for n in range(5)})
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    text = refusal(file, tmp_path / "to")
    assert "is not a zip file, or is incomplete (" in text and "download it again" in text


def test_a_corrupt_member_is_named_and_the_others_are_kept(tmp_path):
    file = packed(tmp_path / "a.zip", {"1.png": b"good" * 99, "2.png": b"bad" * 99}, zipfile.ZIP_STORED)
    file.write_bytes(file.read_bytes().replace(b"badbad", b"badBad", 1))
    text = refusal(file, tmp_path / "to")
    assert "is corrupt at '2.png' (Bad CRC-32" in text
    assert files_below(tmp_path / "to") == {"1.png": b"good" * 99}


def test_an_empty_zip_file_and_a_file_that_is_none_are_refused(tmp_path):
    assert refusal(packed(tmp_path / "a.zip", {}), tmp_path / "to").endswith("a.zip contains no files")
    (tmp_path / "text.zip").write_text("not a zip")
    assert "is not a zip file" in refusal(tmp_path / "text.zip", tmp_path / "to")
    assert "data.archive: no file" in refusal(tmp_path / "absent.zip", tmp_path / "to")
    assert "data.archive: no file" in refusal(tmp_path, tmp_path / "to")


def test_a_lack_of_space_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: (asked.append(place), usage(9, 9, 2000))[1])
    text = refusal(packed(tmp_path / "a.zip", {"1.png": os.urandom(5000)}), tmp_path / "new" / "to")
    assert f"not enough space for the data: {tmp_path / 'new' / 'to'} needs 5 KB, 2 KB are free" in text
    assert asked == [tmp_path] and not (tmp_path / "new").exists()
    unpack(packed(tmp_path / "b.zip", {"1.png": b"x"}), tmp_path / "to", GB)


def test_a_disk_that_fills_up_while_unpacking_is_reported(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unzip, "atomic_write", full)
    assert "no space left for the data" in refusal(packed(tmp_path / "a.zip", {"1.png": b"x"}), tmp_path / "to")


def test_a_file_in_place_of_the_folder_is_reported(tmp_path):
    (tmp_path / "to").write_text("")
    assert "cannot be unpacked into" in refusal(packed(tmp_path / "a.zip", {"1.png": b"x"}), tmp_path / "to")
