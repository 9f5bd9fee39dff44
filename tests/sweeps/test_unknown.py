"""``sweep=unknown``: one job per class, trained without it and asked about its test images."""

import numpy as np
import pytest
from helpers import rows_of, summary_of

from fish_lightning.evaluation.unknowns import IMAGE_SCORES

SCORES = ["max_softmax", "max_logit", "energy", "feature_norm", "knn"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, run, make_folder):
    """Four classes of twelve images; two of them are left out in turn."""
    from helpers import TINY

    cwd = tmp_path_factory.mktemp("unknown")
    make_folder(cwd / "fish", classes=4, per_class=12)
    words = ("sweep=unknown", "data.leave_out=range(2)", "hydra.sweep.dir=sweep", "validate_first=false")
    done = run("train", *TINY, "data.root=fish", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    done.folder = cwd / "sweep"
    done.rows = {row["job"]: row for row in rows_of(done.folder / "sweep.csv")}
    return done


@pytest.mark.slow
def test_each_job_trains_and_tests_without_its_class_and_scores_its_test_images(sweep):
    for job, left_out in enumerate(("class a", "class b")):
        summary = summary_of(sweep.folder / str(job))
        assert summary["classes"] == [f"class {letter}" for letter in "abcd" if f"class {letter}" != left_out]
        assert summary["leave_out"] == left_out
        assert {row["label"] for row in rows_of(sweep.folder / str(job) / "split.csv")} == set(summary["classes"])
        found = summary["test"]["unknowns"]
        shares = {"rejected", "known_rejected"}
        assert set(found) == {"n", "photographs", "excluded", "scores", "best", "score", "threshold"} | shares
        assert (found["n"], found["photographs"], found["excluded"]) == (2, None, 0)  # 15 % of twelve
        assert list(found["scores"]) == SCORES and found["best"] in SCORES
        for figures in found["scores"].values():
            for name in ("auroc", "fpr95"):
                low, high = figures[f"{name}_ci95"]
                assert 0 <= low <= figures[name] <= high <= 1
        assert found["score"] == "knn" and 0 <= found["rejected"] <= 1
    with np.load(sweep.folder / "0" / "logits.npz") as stored:
        assert stored["logits"].shape[1] == 3 and not any("class a/" in path for path in stored["path"])


@pytest.mark.slow
def test_the_table_has_the_auroc_of_each_score_and_a_mean_row(sweep):
    assert set(sweep.rows) == {"0", "1", "mean", "sd"}
    summaries = {job: summary_of(sweep.folder / job) for job in "01"}
    for score in SCORES:
        for figure in ("auroc", "fpr95"):
            values = [float(sweep.rows[job][f"{figure}/{score}"]) for job in "01"]
            assert values == [summaries[job]["test"]["unknowns"]["scores"][score][figure] for job in "01"]
            assert float(sweep.rows["mean"][f"{figure}/{score}"]) == pytest.approx(np.mean(values))
    head = next(line for line in sweep.stdout.splitlines() if "val accuracy  test accuracy" in line)
    assert [f"AUROC {score}" in head for score in SCORES] == [True] * 5
    assert "(of 2 jobs)" in sweep.stdout and "label suspects" not in sweep.stdout


@pytest.mark.slow
def test_the_run_of_a_job_can_be_evaluated(sweep, run):
    done = run("evaluate", "ckpt=sweep/0", "trainer.accelerator=cpu", "report=false", cwd=sweep.folder.parent)
    assert done.returncode == 0, done.stderr
    accuracy = summary_of(sweep.folder / "0")["test"]["accuracy"]
    assert f"test accuracy  {accuracy:.2%}" in done.stdout


def test_all_scores_of_the_block_are_known():
    assert {*IMAGE_SCORES, "knn"} == {*SCORES}
