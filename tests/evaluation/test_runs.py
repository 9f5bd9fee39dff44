"""Runs that cannot be compared are refused before anything is computed, with what differs."""

import numpy as np
import pytest
from compared_runs import CLASSES, save_run

from fish_lightning.errors import UserError
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.evaluation.runs import load_run, match

PATHS = [f"{CLASSES[i % 3]}/{i:03}.png" for i in range(60)]
LABELS = [i % 3 for i in range(60)]


def other_classes(folder):
    save_run(folder, PATHS[:2], [0, 1], classes=("bass", "eel"))


def other_labels(folder):
    save_run(folder, PATHS, [*LABELS[:57], 2, 2, 0])


def diverged(folder):
    outputs = Outputs.load(save_run(folder, PATHS, LABELS) / "logits.npz")
    outputs.logits[[4, 7], 1] = np.nan
    outputs.save(folder / "logits.npz")


def seeds(folder):
    for seed in "01":
        save_run(folder / seed, PATHS[:9], LABELS[:9])


def classes_of_folds(folder):
    save_run(folder / "0", PATHS[:9], LABELS[:9])
    save_run(folder / "1", PATHS[9:11], [0, 1], classes=("bass", "trout"))


def corrupt(folder):
    file = save_run(folder, PATHS, LABELS) / "logits.npz"
    file.write_bytes(file.read_bytes()[:99])


def corrupt_summary(folder):
    (save_run(folder, PATHS, LABELS) / "summary.json").write_text("{")


def other_images(folder):
    save_run(folder, ["bass/x.png"], [0])


def untested(folder):
    save_run(folder, [], [])


def empty(folder):
    folder.mkdir()


def missing(folder):
    pass


def a_file(folder):
    folder.touch()


@pytest.mark.parametrize(
    ("make_b", "words"),
    [
        (other_classes, ("A and B have different classes", "only in A: carp, trout\n", "only in B: eel")),
        (other_labels, ("different labels for 3 of the 60 images", f"{PATHS[57]}: bass in A, trout in B")),
        (diverged, ("2 of 60 images have NaN or infinite logits in B",)),
        (seeds, ("B tests 9 images more than once", "sweep=folds")),
        (classes_of_folds, ("the runs of one sweep have different classes\nonly in the first: carp",)),
        (corrupt, ("logits.npz is corrupt or incomplete",)),
        (corrupt_summary, ("summary.json is corrupt or incomplete",)),
        (other_images, ("A was tested on 60 images and B on 1, and they share none",)),
        (untested, ("has no test images", "subset=test")),
        (empty, ("no logits.npz in",)),
        (missing, ("does not exist",)),
        (a_file, ("is a file, not a folder",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, make_b, words):
    a = load_run("a", save_run(tmp_path / "a", PATHS, LABELS))
    make_b(tmp_path / "b")
    with pytest.raises(UserError) as error:
        match(a, load_run("b", tmp_path / "b"))
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).count("\n") < 5


def test_a_failed_job_of_a_sweep_is_left_out_though_it_has_earlier_outputs(tmp_path):
    for job in "01":
        folder = save_run(tmp_path / "sweep" / job, PATHS[:9], LABELS[:9])
        (folder / ".hydra").mkdir()
    (folder / "error.txt").touch()
    run = load_run("a", tmp_path / "sweep")
    assert (len(run.folds), run.failed, len(run.test)) == (1, ("1",), 9)
