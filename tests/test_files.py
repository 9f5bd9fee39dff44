"""Atomic writes, locks, and paths as a user types them."""

import os
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fish_lightning.files import atomic_write, override, remove_strays, shown


def test_a_file_appears_when_it_is_finished_and_not_before(tmp_path):
    target = tmp_path / "new" / "folder" / "summary.json"
    with atomic_write(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent and temporary.name.startswith(".")
        assert temporary.suffix == ".json"  # writers choose the format by it
    assert target.read_text() == "half"
    assert [file.name for file in target.parent.iterdir()] == ["summary.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "summary.json").write_text("old")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "summary.json") as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert (tmp_path / "summary.json").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.csv"):
        pass
    assert (tmp_path / "a.csv").read_text() == "old"


def test_two_processes_do_not_write_to_one_temporary_file(tmp_path, monkeypatch):
    with atomic_write(tmp_path / "a.csv") as mine:
        monkeypatch.setattr(os, "getpid", lambda: 999_999_999)
        with atomic_write(tmp_path / "a.csv") as theirs:
            assert mine != theirs
            theirs.write_text("theirs")
        mine.write_text("mine")
    assert (tmp_path / "a.csv").read_text() == "mine"


def test_a_path_is_shown_as_the_user_would_type_it(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert shown(tmp_path / "work" / "logs" / "run") == "logs/run"
    assert shown("logs/run") == "logs/run"
    assert shown(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")
    assert shown(Path("../elsewhere")).endswith("elsewhere")
    assert shown(None) == "none"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    gone, alive, ours = f".{2**22 + 1}.last.ckpt", f".{os.getppid()}.last.ckpt", f".{os.getpid()}.loss.png"
    for name in (gone, alive, ours, ".hydra", "last.ckpt", ".12"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("half")
    remove_strays(tmp_path)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == sorted([alive, ".hydra", "last.ckpt", ".12"])


@pytest.mark.parametrize(
    "name", ["logs/run-1_a.b", "my runs/lr=0.1,b", "it's (mine)", 'a "b" {c} [d]', "Fänge/$HOME", "~x", "a:b#c"]
)
def test_an_override_is_what_the_shell_and_hydra_read_as_the_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (word,) = shlex.split(override("ckpt", tmp_path / name))
    assert OverridesParser.create().parse_override(word).value() == name
    assert (override("ckpt", name) == f"ckpt={name}") == (name == "logs/run-1_a.b")
