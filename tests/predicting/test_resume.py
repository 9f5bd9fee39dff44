"""A run of ``predict`` that was killed or stopped loses no row and repeats none."""

import os
import random
import signal
import time
from itertools import chain
from pathlib import Path

import pytest

from fish_lightning.data import inputs
from fish_lightning.errors import UserError
from fish_lightning.files import locked
from fish_lightning.predict import predict
from fish_lightning.predicting.folders import command_of, predict_folder
from fish_lightning.resume.signals import Stopped


@pytest.fixture
def whole(tmp_path, predict_here, photos, out):
    """The entries of a run that nothing stopped."""
    with pytest.raises(UserError, match="2 of 24 files could not be read"):
        predict_here(f"input={photos}", f"paths.output={tmp_path / 'whole'}")
    return out.entries(tmp_path / "whole")


@pytest.fixture
def signal_at(monkeypatch):
    """``signal_at(n, number)``: a signal arrives while the nth image is decoded."""

    def arm(n, number):
        count, decode = [0], inputs.decode

        def decode_and_signal(path):
            count[0] += 1
            if count[0] == n:
                signal.raise_signal(number)
            return decode(path)

        monkeypatch.setattr(inputs, "decode", decode_and_signal)

    return arm


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_batch_and_the_same_command_resumes(
    predict_here, photos, out, whole, signal_at, monkeypatch, capsys, number, code
):
    signal_at(7, number)
    with pytest.raises(Stopped) as stopped:
        predict_here(f"input={photos}", f"paths.output={out.folder}")
    assert stopped.value.exit_code == code
    assert str(stopped.value).splitlines()[0] == f"stopped by {number.name}"
    assert [len(part) for part in out.parts()] == [4, 4]  # the batch of the seventh image ends its part
    monkeypatch.undo()
    signal_at(2, number)
    with pytest.raises(Stopped):
        predict_here(f"input={photos}")
    assert [len(part) for part in out.parts()] == [4, 4, 2]
    monkeypatch.undo()
    capsys.readouterr()
    decoded, decode = [], inputs.decode
    monkeypatch.setattr(inputs, "decode", lambda path: decoded.append(path) or decode(path))
    with pytest.raises(UserError, match="2 of 24 files could not be read"):
        predict_here(f"input={photos}")
    assert "10 of 24 files are done" in capsys.readouterr().out.splitlines()[0]
    assert decoded == [entry["path"] for entry in whole[10:]]
    assert out.entries() == whole


def test_ten_kills_lose_no_row_and_repeat_none(settings, photos, out, tmp_path):
    files, draw = 240, random.Random(1)
    links = tmp_path / "links"
    links.mkdir()
    for number in range(files):
        (links / f"{number:03}.png").symlink_to(photos / f"{number % 22:02}.png")
    cfg = settings(f"input={links}", "batch_size=4")
    seen = 0
    for _ in range(10):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            predict(cfg)
            os._exit(7)  # it ended before it was killed
        deadline = time.monotonic() + 60
        while len(list((out.folder / "predictions").glob("part-*"))) == seen and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        parts = out.parts()
        seen = len(parts)
        assert [len(part) for part in parts] == [4] * seen
    assert 10 <= seen < files // 4
    half = out.folder / "predictions" / f".{child}.part-00059.csv"
    half.write_text("path")  # of a kill within a write
    predict(cfg)
    expected = [str(links / f"{number:03}.png") for number in range(files)]
    entries = out.entries()
    assert [*chain(*out.parts())] == [entry["path"] for entry in entries] == expected
    for number, entry in enumerate(entries):
        assert entry["probabilities"] == pytest.approx(entries[number % 22]["probabilities"], abs=1e-5)
    assert not list((out.folder / "predictions").glob(".*.part-*"))


def test_a_complete_run_predicts_nothing_again(predict_here, photos, out, monkeypatch):
    predict_here(f"input='{photos}/0*.png'")
    monkeypatch.setattr(inputs, "decode", None)
    before = out.entries()
    predict_here(f"input='{photos}/0*.png'")
    assert out.entries() == before and len(before) == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["input='{photos}/1*.png'"], "for other files (as many, but with different names)"),
        (["input={photos}"], "for other files (10, now 24)"),
        (["tta=flips"], "with another tta (None, now flips)"),
        (["trainer.precision=64-true"], "with another trainer.precision (32-true, now 64-true)"),
    ],
)
def test_a_folder_with_other_predictions_is_refused_and_what_differs_is_said(predict_here, photos, out, change, words):
    predict_here(f"input='{photos}/0*.png'")
    before = out.entries()
    with pytest.raises(UserError) as refused:
        predict_here(f"input='{photos}/0*.png'", *(word.format(photos=photos) for word in change))
    first, second = str(refused.value).splitlines()
    assert words in first and "hydra.run.dir=FOLDER" in second
    assert out.entries() == before


def test_a_folder_in_which_another_program_works_is_refused(predict_here, photos, out):
    lock = out.folder / "predictions" / ".shard-1-of-1.lock"
    child = os.fork()
    if child == 0:
        with locked(lock):
            (out.folder / "locked").touch()
            time.sleep(60)
    while not (out.folder / "locked").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(UserError, match="another program is writing predictions"):
            predict_here(f"input={photos}")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("damage", ["{", '{"version": 1, "size": 1, "settings": {}}'])
def test_a_damaged_manifest_or_part_is_a_short_error(predict_here, photos, out, damage):
    predict_here(f"input='{photos}/0*.png'")
    part = out.folder / "predictions" / "part-00001.csv"
    part.write_text(part.read_text().replace("{", "<"))
    with pytest.raises(UserError, match=r"part-00001.csv is corrupt"):
        predict_here(f"input='{photos}/0*.png'")
    (out.folder / "predictions" / "manifest.json").write_text(damage)
    with pytest.raises(UserError, match=r"manifest.json is corrupt"):
        predict_here(f"input='{photos}/0*.png'")


def test_the_folder_of_a_stopped_run_with_the_same_command_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")

    def folder(*words, shard=None):
        return predict_folder("runs", "new", shard, None, *words)

    def manifest(name, complete, *words):
        file = runs / name / "predictions" / "manifest.json"
        file.parent.mkdir(parents=True)
        text = str({"command": command_of(*words), "complete": complete})
        file.write_text(text.replace("'", '"').replace("False", "false").replace("True", "true"))

    assert folder("a.ckpt", "photos") == "runs/new"
    manifest("2026-01-01", False, "a.ckpt", "photos")
    manifest("2026-01-02", False, "a.ckpt", "others")
    (runs / "2026-01-03" / "predictions").mkdir(parents=True)
    (runs / "2026-01-03" / "predictions" / "manifest.json").write_text("{")
    assert folder("a.ckpt", "photos") == "runs/2026-01-01"
    assert folder("b.ckpt", "photos") == "runs/new"
    manifest("2026-01-04", True, "a.ckpt", "photos")
    assert folder("a.ckpt", "photos") == "runs/new"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert predict_folder("../runs", "new", None, None, "a.ckpt", "others") == "../runs/new"
    assert folder("a", "b", shard="1/3") == folder("a", "b", shard="3/3") != folder("a", "c", shard="1/3")


def test_ctrl_c_in_the_program_ends_with_130_and_the_command_it_prints_resumes(start, run, trained, photos, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for number in range(1000):
        (links / f"{number:04}.png").symlink_to(photos / f"{number % 22:02}.png")
    words = (f"ckpt={trained.folder}", f"input={links}", "trainer=cpu", "num_workers=0", "contact_sheet=0")
    program = start("predict", *words, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("logs/predict/runs/*/predictions/part-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(program.pid, signal.SIGINT)
    stopped = program.communicate()
    assert stopped.returncode == 130 and "stopping after this batch is written" in stopped.stdout
    (folder,) = (tmp_path / "logs" / "predict" / "runs").iterdir()
    advice = stopped.stderr.splitlines()
    assert advice[0] == "error: stopped by SIGINT" and len(advice) == 2
    expected = [f"ckpt={trained.folder}", f"input={links}", f"hydra.run.dir={folder.relative_to(tmp_path)}"]
    assert all(
        word in advice[1].partition("resume:  python -m fish_lightning.predict ")[2].split() for word in expected
    )
    assert not (folder / "predictions.csv").exists()
    resumed = run("predict", *words, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith(f"resuming {folder.relative_to(tmp_path)}: ")
    assert (folder / "predictions.csv").read_text().count("\n") == 1001
