"""What averaging gains: the paired difference to members on the same photographs."""

import numpy as np
import pytest
from compared_runs import save_run

from fish_lightning.evaluation.comparison import compare
from fish_lightning.evaluation.members import best_by_validation, gain_over, pooled_members

UNITS = np.repeat([f"p{i}" for i in range(20)], 3)


def drawn(accuracy, seed):
    return np.random.default_rng(seed).random(60) < accuracy


def test_over_one_member_it_is_the_paired_comparison():
    member, ensemble = drawn(0.6, 1), drawn(0.8, 2)
    found, plain = gain_over([member], ensemble, UNITS, 0.01), compare(member, ensemble, UNITS, 0.01)
    for key in ("difference", "difference_ci95_photographs", "verdict"):
        assert found[key] == plain[key]
    assert found["accuracy"] == {"member": member.mean(), "ensemble": ensemble.mean()}


def test_over_several_it_is_the_difference_to_their_mean_and_copies_of_one_add_nothing():
    first, second, ensemble = drawn(0.6, 1), drawn(0.7, 3), drawn(0.8, 2)
    found = gain_over([first, second], ensemble, UNITS, 0.01)
    assert found["difference"] == pytest.approx(ensemble.mean() - (first.mean() + second.mean()) / 2)
    once, thrice = (gain_over([first] * count, ensemble, UNITS, 0.01) for count in (1, 3))
    assert thrice["difference_ci95_photographs"] == pytest.approx(once["difference_ci95_photographs"])


def test_the_interval_counts_photographs():
    member, ensemble = np.repeat(drawn(0.5, 1)[:20], 3), np.repeat(drawn(0.9, 2)[:20], 3)
    by_photograph = gain_over([member], ensemble, UNITS, 0.01)["difference_ci95_photographs"]
    by_image = gain_over([member], ensemble, np.arange(60).astype(np.str_), 0.01)["difference_ci95_photographs"]
    assert np.ptp(by_photograph) > 1.4 * np.ptp(by_image)


@pytest.fixture
def runs(tmp_path):
    """``runs({job: (paths, wrong, validation)})``: folders of runs; returns their checkpoints by name."""

    def make(jobs):
        files = {}
        for name, (paths, wrong, val) in jobs.items():
            save_run(tmp_path / name, paths, [0] * len(paths), wrong, val=val) if (
                tmp_path / name
            ).mkdir() is None else 0
            files[name] = tmp_path / name / "checkpoints" / "best.ckpt"
            files[name].parent.mkdir()
            files[name].touch()
        return files

    return make


def test_the_best_member_has_the_highest_validation_accuracy_and_then_the_lowest_loss(runs):
    score = {"accuracy": 0.5, "loss": 1.0}
    files = runs(
        {"0": (["a"], (), score), "1": (["b"], (), score | {"loss": 0.9}), "2": (["c"], (), score | {"loss": 2})}
    )
    assert best_by_validation(files) == "1"
    (files["2"].parents[1] / "summary.json").unlink()
    assert best_by_validation(files) is None


def test_folds_are_pooled_each_on_its_own_test_images(runs):
    files = runs({"0": (["a", "b"], (0,), {}), "1": (["c", "d", "e"], (), {})})
    pooled = pooled_members(files)
    assert (pooled["accuracy"], pooled["n"], pooled["accuracy_ci95_photographs"]) == (0.8, 5, None)
    assert pooled_members(runs({"2": (["a"], (), {}), "3": (["a"], (), {})})) is None
