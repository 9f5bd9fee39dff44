"""One place walks folders: links, what cannot be read, pipes, and the program's own output."""

import os
import re
from pathlib import Path

import pytest

from fish_lightning.data import listing
from fish_lightning.data.listing import input_catalog
from fish_lightning.data.sources import CatalogSource, FolderSource
from fish_lightning.errors import UserError
from fish_lightning.prepare import prepare


@pytest.fixture
def photos(make_folder, tmp_path, monkeypatch):
    """``photos/bass/00{0,1}.png`` and ``photos/trout/00{0,1}.png`` in the working directory."""
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path / "photos", ["bass", "trout"], 2).relative_to(tmp_path)


FOUR = [f"{name}/00{number}.png" for name in ("bass", "trout") for number in (0, 1)]


def read(root):
    return FolderSource(root).read().paths.tolist()


@pytest.fixture
def closed(monkeypatch):
    """``closed(name)``: folders of this name cannot be listed, not even by root."""

    def close(name):
        scandir = os.scandir

        def refuse(path):
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(listing.os, "scandir", refuse)

    return close


@pytest.mark.parametrize("name", ["photos", "bass", "2024"])
@pytest.mark.parametrize(
    "task", [read, lambda root: input_catalog(str(root), ["x"]), lambda root: input_catalog(f"{root}/**/*.png", ["x"])]
)
def test_a_folder_that_cannot_be_read_is_named(photos, make_image, closed, name, task):
    make_image(photos / "bass" / "2024" / "1.png", (9, 9, 9), 1)
    closed(name)
    with pytest.raises(UserError, match=rf"{name} cannot be read \(Permission denied\), so its images would"):
        task(photos)


def test_a_root_behind_a_closed_folder_is_named(photos, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(photos), "is_dir", refuse)
    with pytest.raises(UserError, match=r"photos cannot be read \(Permission denied\)"):
        read(photos)


def test_linked_folders_are_read_like_others_at_any_depth(photos, make_image, tmp_path):
    make_image(tmp_path / "disk" / "perch" / "deep" / "1.png", (9, 9, 9), 1)
    (photos / "perch").symlink_to(tmp_path / "disk" / "perch")
    (photos / "bass" / "more").symlink_to(tmp_path / "disk" / "perch")
    assert read(photos) == sorted([*FOUR, "bass/more/deep/1.png", "perch/deep/1.png"])


def test_links_in_a_loop_end_and_are_said(photos, capsys):
    (photos / "self").symlink_to("../photos")
    (photos / "bass" / "all").symlink_to("../../photos")
    (photos / "bass" / "again").symlink_to("../bass")
    (photos / "trout" / "a").symlink_to("b")
    (photos / "trout" / "b").symlink_to("a")
    assert read(photos) == FOUR
    note = "note: skipped a link to a folder that is read anyway: photos/self, "
    assert note in capsys.readouterr().out


def test_a_folder_and_a_link_to_it_are_read_under_the_name_of_the_folder(photos, make_image):
    make_image(photos / "bass" / "z" / "1.png", (9, 9, 9), 1)
    (photos / "bass" / "a").symlink_to("z")
    assert read(photos) == sorted([*FOUR, "bass/z/1.png"])


@pytest.mark.parametrize("pattern", ["photos", "photos/**/*.png", "**/*.png", "./**/[0-9]*", "photos/**"])
def test_input_with_a_loop_is_predicted_once(photos, pattern):
    for name in ("loop", "other"):  # glob would follow them in all orders
        (photos / "bass" / name).symlink_to("..")
    assert input_catalog(pattern, ["x"]).paths.tolist() == [f"photos/{path}" for path in FOUR]


def test_a_pattern_means_what_the_shell_means_by_it(photos, make_image):
    make_image(photos / "bass" / "cam1" / "x" / "9.png", (9, 9, 9), 1)
    assert input_catalog("photos/**/cam1/**/*.png", ["x"]).paths.tolist() == ["photos/bass/cam1/x/9.png"]
    assert input_catalog("photos/*/000.png", ["x"]).paths.tolist() == ["photos/bass/000.png", "photos/trout/000.png"]
    with pytest.raises(UserError, match="matches no file"):
        input_catalog("photos/**/cam1/*.png", ["x"])


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/x.png"])
def test_an_input_that_no_file_can_have_is_an_error_in_words(photos, name):
    with pytest.raises(UserError, match="matches no file"):
        input_catalog(name, ["x"])


def test_a_pipe_is_left_out_and_said(photos, capsys):
    os.mkfifo(photos / "bass" / "x.png")
    assert read(photos) == FOUR
    assert "note: skipped special files (pipes, sockets, devices): photos/bass/x.png" in capsys.readouterr().out


def test_the_output_of_this_program_is_no_class(photos, make_image, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    for run in ("logs/train/runs/1", "logs/predict/multiruns/2/0", "out/run", "mine", "bass/run"):
        Path(run, ".hydra").mkdir(parents=True)
        make_image(Path(run, "plots", "loss.png"), (9, 9, 9), 1)
    assert read(".") == FOUR
    said = capsys.readouterr().out
    assert "note: skipped output of this program: logs, mine, bass/run and 1 more" in said


def test_an_absolute_and_a_relative_path_are_one_image_of_a_table(photos, tmp_path):
    table = photos / "table.csv"
    table.write_text(f"path,label\nbass/000.png,a\n{tmp_path / 'photos' / 'bass' / '000.png'},b\n")
    with pytest.raises(UserError, match=r"lists 1 images more than once, the first is .*bass/000\.png"):
        CatalogSource(None, table).read()


@pytest.mark.parametrize("other", ["bass ", "Bass", "bass\N{NO-BREAK SPACE}"])
def test_class_names_that_look_alike_are_pointed_out(photos, make_image, capsys, other):
    make_image(photos / other / "1.png", (9, 9, 9), 1)
    read(photos)
    said = capsys.readouterr().out
    assert "note: class names that differ only in case or spaces: " in said and "'bass'" in said
    assert said.isascii()


def test_prepare_neither_waits_for_a_pipe_nor_hides_a_closed_folder(photos, tmp_path, closed, capsys):
    from hydra import compose, initialize_config_dir

    from fish_lightning.cli import CONF

    with initialize_config_dir(CONF, version_base="1.3"):
        places = (f"paths.cache={tmp_path / 'cache'}", f"paths.output={tmp_path / 'out'}")
        cfg = compose("prepare", ["data=folder", "data.root=photos", "data.find_copies=false", *places])
    os.mkfifo(photos / "bass" / "x.png")
    prepare(cfg)
    assert "photos/bass/x.png" in capsys.readouterr().out
    closed("trout")
    with pytest.raises(UserError, match=re.escape("photos/trout cannot be read (Permission denied)")):
        prepare(cfg)
