"""A folder that holds a run is not written to by another; a run counts as complete when its last file is there."""

import json
import os

import pytest
from filelock import FileLock
from helpers import TINY

from fish_lightning.resume.folders import holds_run, with_overrides_of_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, train_tiny):
    cwd = tmp_path_factory.mktemp("finished")
    done = train_tiny(cwd, "trainer.max_epochs=1", "hydra.run.dir=X")
    assert done.returncode == 0, done.stderr
    return cwd


def test_another_run_in_the_folder_of_one_is_refused_before_anything_is_written(finished, train_tiny):
    before = {file: file.read_bytes() for file in (finished / "X" / ".hydra").glob("*.yaml")}
    refused = train_tiny(finished, "trainer.max_epochs=1", "hydra.run.dir=X", "seed=5")
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: hydra.run.dir: X already contains a run\nresume it: ckpt=X; or choose another folder\n"
    )
    assert before == {file: file.read_bytes() for file in (finished / "X" / ".hydra").glob("*.yaml")}


def test_the_run_folder_alone_resumes_a_run_with_its_own_overrides(finished, run):
    done = run("train", "ckpt=X", cwd=finished)
    assert done.returncode == 0, done.stderr
    assert "shufflenet_v2_x0_5" in done.stdout and "epoch 2" not in done.stdout


def test_every_difference_is_named_at_once_with_the_command_that_resumes(finished, run):
    refused = run("train", "ckpt=X", "seed=5", "optimizer.lr=0.5", "data.batch_size=6", cwd=finished)
    assert refused.returncode == 1
    for words in ("seed=42, not 5", "optimizer.lr=0.002, not 0.5", "data.batch_size=4, not 6", "ckpt=X"):
        assert words in refused.stderr
    assert "decoding" not in refused.stdout


def test_a_program_that_waits_for_the_folder_has_not_touched_it(tmp_path, tiny_data):
    import subprocess
    import sys
    import time

    lock = FileLock(tmp_path / "W" / ".hydra" / "lock")
    lock.lock_file and (tmp_path / "W" / ".hydra").mkdir(parents=True)
    with lock:
        command = [sys.executable, "-m", "fish_lightning.train", *TINY, f"data.root={tiny_data}", "hydra.run.dir=W"]
        waiting = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ)
        assert "waiting for another program" in waiting.stdout.readline()
        time.sleep(0.2)
        assert [file.name for file in (tmp_path / "W" / ".hydra").iterdir()] == ["lock"]
        waiting.kill()
        waiting.communicate()


def test_no_kill_between_two_files_leaves_a_run_that_counts_as_finished(tmp_path, finished, train_tiny):
    """Whatever was written last before a kill: the summary marks a complete run, and everything else is there then."""
    files = {file.relative_to(finished / "X").as_posix() for file in (finished / "X").rglob("*") if file.is_file()}
    written = sorted(
        (file for file in files if ".hydra" not in file and "tfevents" not in file and file != "train.log"),
        key=lambda name: (finished / "X" / name).stat().st_mtime_ns,
    )
    assert written[-1] == "summary.json"
    assert {"logits.npz", "test_predictions.csv", "confusion_matrix.csv", "plots/loss.png"} <= set(written[:-1])


@pytest.mark.parametrize("attempt", [0, 3, 6])
def test_a_run_killed_while_it_writes_its_results_is_completed_by_auto(tmp_path, train_tiny, faults, attempt):
    kill = f"+callbacks.kill={{_target_:faults.KillAtFile,number:{attempt}}}"
    killed = train_tiny(tmp_path, "trainer.max_epochs=1", "hydra.run.dir=R", kill, env=faults)
    assert killed.returncode != 0
    assert not (tmp_path / "R" / "summary.json").exists()
    done = train_tiny(tmp_path, "trainer.max_epochs=1", "hydra.run.dir=R", "ckpt=auto")
    assert done.returncode == 0, done.stderr
    assert "already finished" not in done.stdout
    assert json.loads((tmp_path / "R" / "summary.json").read_text())["test"]["n"] > 0


def test_what_holds_a_run(tmp_path):
    assert not holds_run(tmp_path)
    (tmp_path / ".hydra").mkdir()
    assert not holds_run(tmp_path)  # a run that failed before it began
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert holds_run(tmp_path)


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        (["ckpt=RUN"], ["optimizer=sgd", "split.fold=1", "sweep=folds", "hydra.mode=RUN", "ckpt=RUN"]),
        (["ckpt=RUN", "split.fold=2"], ["optimizer=sgd", "sweep=folds", "hydra.mode=RUN", "ckpt=RUN", "split.fold=2"]),
        (["ckpt=last"], ["ckpt=last"]),
        (["-m", "ckpt=RUN"], ["-m", "ckpt=RUN"]),
        (["ckpt=NOTHING"], ["ckpt=NOTHING"]),
        ([], []),
    ],
)
def test_overrides_of_a_run_come_before_the_command_lines_own(tmp_path, monkeypatch, given, completed):
    (tmp_path / "RUN" / ".hydra").mkdir(parents=True)
    words = ["optimizer=sgd", "split.fold=1", "sweep=folds", "ckpt=auto", "callbacks.pruning.trial=3"]
    (tmp_path / "RUN" / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    monkeypatch.chdir(tmp_path)
    assert with_overrides_of_run(given) == completed
