"""A resumed run stays in its folder, wherever that is now, and keeps the config it began with."""

import shutil
import zipfile

import pytest
from helpers import rows_of, summary_of

from fish_lightning.resume.folders import config_folder, run_folder, with_overrides_of_run


@pytest.fixture
def begun(tmp_path):
    """A run folder with ``last.ckpt``, ``best.ckpt`` and ``torn.ckpt``, which is not an archive."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("last.ckpt", "best.ckpt"):
        zipfile.ZipFile(folder / name, "w").close()
    (folder / "torn.ckpt").write_bytes(b"PK")
    return folder.parent


@pytest.mark.parametrize(
    ("ckpt", "resumed"),
    [
        (None, False),
        ("", False),
        ("last", False),  # of the folder that is new otherwise
        ("auto", False),
        ("run", True),
        ("run/checkpoints/last.ckpt", True),
        ("run/checkpoints/best.ckpt", False),
        ("run/checkpoints/torn.ckpt", False),
        ("run/checkpoints", False),
        ("nowhere", False),
    ],
)
def test_the_folder_of_a_checkpoint_is_that_of_its_run(begun, monkeypatch, ckpt, resumed):
    monkeypatch.chdir(begun.parent)
    assert run_folder(ckpt, "new") == ("run" if resumed else "new")


def test_the_config_of_a_resumed_run_is_written_beside_the_first():
    assert config_folder(None, "now") == config_folder("auto", "now") == ".hydra"
    assert config_folder("run", "now") == ".hydra/resumed-now"


def test_a_run_that_was_moved_is_resumed_where_it_is_now(tmp_path, trained, train_tiny):
    copy = shutil.copytree(trained.folder, tmp_path / "run")
    best = (trained.folder / "checkpoints" / "best.ckpt").read_bytes()
    done = train_tiny(tmp_path, f"ckpt={copy / 'checkpoints' / 'last.ckpt'}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary, former = summary_of(copy), summary_of(trained.folder)
    assert summary["checkpoint"] == str(copy / "checkpoints" / "best.ckpt")
    assert all(summary[key] == former[key] for key in ("best_epoch", "val", "test"))
    assert (trained.folder / "checkpoints" / "best.ckpt").read_bytes() == best
    assert rows_of(copy / "metrics.csv") == rows_of(trained.folder / "metrics.csv")
    first = (trained.folder / ".hydra" / "overrides.yaml").read_text()
    assert (copy / ".hydra" / "overrides.yaml").read_text() == first
    (resumed,) = (copy / ".hydra").glob("resumed-*/overrides.yaml")
    assert "ckpt=" in resumed.read_text()


def test_interpolations_in_the_overrides_of_a_run_are_left_to_the_config(begun):
    words = ["transforms.height=64", "transforms.width=${transforms.height}", "data.root=${oc.env:NOWHERE}", "seed=1"]
    (begun / ".hydra").mkdir()
    (begun / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    found = with_overrides_of_run([f"ckpt={begun}", "seed=2"])
    assert found == [*words[:3], f"ckpt={begun}", "seed=2"]
