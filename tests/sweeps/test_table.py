"""The table of a multirun: best first, failed jobs last; of a loss the lowest first."""

import csv
import json
import math

import pytest
from omegaconf import OmegaConf
from PIL import Image

from fish_lightning.plotting.parallel_coordinates import sweep_figure
from fish_lightning.sweeps.table import SweepTable, repetition_rows, sweep_rows, sweep_table


def summary(accuracy, loss, test=None):
    return {
        "val": {"accuracy": accuracy, "loss": loss, "macro_f1": accuracy - 0.01, "n": 40},
        "test": {} if test is None else {"accuracy": test, "loss": 2 * loss, "macro_f1": test, "n": 60},
        "best_epoch": 3,
        "seconds": 12.5,
    }


@pytest.fixture
def make_job(tmp_path):
    """``make_job(number, overrides, summary)``: one job's folder of the multirun in ``tmp_path``."""

    def make(number, overrides, content=None):
        folder = tmp_path / str(number)
        (folder / ".hydra").mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
        if content is not None:
            (folder / "summary.json").write_text(json.dumps(content))

    return make


@pytest.fixture
def grid(make_job, tmp_path):
    """Four jobs, of which number 2 failed."""
    make_job(0, ["optimizer=adam", "optimizer.lr=0.001"], summary(0.8, 0.5, 0.9))
    make_job(1, ["optimizer=adam", "optimizer.lr=0.01"], summary(0.9, 0.7, 0.7))
    make_job(2, ["optimizer=sgd", "optimizer.lr=1e9"])
    make_job(3, ["optimizer=sgd", "optimizer.lr=0.01"], summary(0.85, 0.2, 0.8))
    return tmp_path


@pytest.mark.parametrize(
    ("metric", "order"),
    [
        ("val/accuracy", ["1", "3", "0", "2"]),
        ("test/accuracy", ["0", "3", "1", "2"]),
        ("val/loss", ["3", "0", "1", "2"]),  # lower is better
        ("test/loss", ["3", "0", "1", "2"]),
    ],
)
def test_jobs_come_best_first_and_failed_ones_last(grid, metric, order):
    rows = sweep_rows(grid, metric)
    assert [row["job"] for row in rows] == order
    assert [row["status"] for row in rows] == ["done"] * 3 + ["failed"]


def test_a_row_contains_settings_and_results(grid):
    best = sweep_rows(grid, "val/accuracy")[0]
    assert best["overrides"] == ["optimizer=adam", "optimizer.lr=0.01"]
    assert (best["val/accuracy"], best["val/loss"], best["test/accuracy"], best["test/loss"]) == (0.9, 0.7, 0.7, 1.4)
    assert (best["best_epoch"], best["seconds"], best["folder"]) == (3, 12.5, str(grid / "1"))


def test_the_callback_writes_the_csv_and_prints_the_table(grid, capsys):
    config = {"hydra": {"sweep": {"dir": str(grid)}}, "optimized_metric": "val/accuracy"}
    with pytest.raises(SystemExit, match="1"):  # one of the jobs failed
        SweepTable().on_multirun_end(OmegaConf.create(config))
    with (grid / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["job"] for row in rows] == ["1", "3", "0", "2"]
    assert list(rows[0])[:4] == ["job", "overrides", "val/accuracy", "val/loss"]
    assert float(rows[0]["val/accuracy"]) == 0.9 and float(rows[0]["test/accuracy"]) == 0.7
    assert rows[3]["status"] == "failed" and rows[3]["val/accuracy"] == ""
    printed, said = capsys.readouterr()
    assert said == "error: 1 of 4 jobs failed; see above\n"
    with Image.open(grid / "sweep.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 200
    assert "sweep, best val/accuracy first" in printed and "sweep.csv" in printed
    assert "optimizer=sgd optimizer.lr=1e9  (failed)" in printed
    assert f"tensorboard --logdir {grid}" in printed
    assert not [file for file in grid.iterdir() if file.name.startswith(".")]


def test_the_printed_table_lines_up(grid):
    lines = sweep_table(sweep_rows(grid, "val/accuracy"), "val/accuracy").splitlines()
    assert lines[0] == "sweep, best val/accuracy first"
    assert lines[1].split()[:2] == ["job", "val"]
    assert lines[2].split() == ["1", "0.9000", "0.7000", "0.7000", "optimizer=adam", "optimizer.lr=0.01"]
    assert lines[5].split()[:4] == ["2", "-", "-", "-"]
    assert len({line.index("opti") for line in lines[2:]}) == 1


def test_jobs_that_were_not_tested_are_ranked_by_validation(make_job, tmp_path):
    make_job(0, [], summary(0.8, 0.5))
    make_job(1, [], summary(0.9, 0.5))
    rows = sweep_rows(tmp_path, "val/accuracy")
    assert [row["job"] for row in rows] == ["1", "0"] and rows[0]["test/accuracy"] is None


def test_a_score_of_zero_is_a_score(make_job, tmp_path):
    make_job(0, [])
    make_job(1, [], summary(0.0, 0.0))
    assert [row["job"] for row in sweep_rows(tmp_path, "val/accuracy")] == ["1", "0"]
    assert [row["job"] for row in sweep_rows(tmp_path, "val/loss")] == ["1", "0"]


def test_equal_jobs_are_in_the_order_they_ran(make_job, tmp_path):
    for number in (10, 2, 0):
        make_job(number, [], summary(0.5, 0.5))
    assert [row["job"] for row in sweep_rows(tmp_path, "val/accuracy")] == ["0", "2", "10"]


def test_a_job_with_a_nan_loss_does_not_change_the_order(make_job, tmp_path):
    for number, loss in enumerate([0.9, math.nan, 0.3, math.nan, 0.1]):
        make_job(number, [], summary(0.5, loss))
    assert [row["job"] for row in sweep_rows(tmp_path, "val/loss")] == ["4", "2", "0", "1", "3"]


def test_a_multirun_without_jobs_writes_nothing(tmp_path, capsys):
    config = {"hydra": {"sweep": {"dir": str(tmp_path)}}, "optimized_metric": "val/accuracy"}
    SweepTable().on_multirun_end(OmegaConf.create(config))
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_jobs_that_differ_only_in_seed_have_a_mean_and_a_standard_deviation(make_job, tmp_path):
    for number, (rate, seed) in enumerate([(0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1), (0.2, 2), (0.2, 3)]):
        content = None if (rate, seed) == (0.2, 3) else summary(rate + seed / 100, 0.5, 0.5)
        make_job(number, [f"optimizer.lr={rate}", f"seed={seed}"], content)
    mean, sd, other, _ = repetition_rows(sweep_rows(tmp_path, "val/accuracy"))
    assert (mean["job"], sd["job"], mean["overrides"]) == ("mean", "sd", ["optimizer.lr=0.2"])
    assert mean["val/accuracy"] == pytest.approx(0.215) and sd["val/accuracy"] == pytest.approx(0.01 / 2**0.5)
    assert mean["status"] == "of 2 jobs" and other["status"] == "of 3 jobs"
    assert other["val/accuracy"] == pytest.approx(0.12)


def test_folds_are_pooled_by_their_images(make_job, tmp_path):
    for fold, (accuracy, images) in enumerate([(1.0, 30), (0.5, 10)]):
        content = summary(0.5, 0.5, accuracy)
        content["test"]["n"] = images
        make_job(fold, [f"split.fold={fold}", "ckpt=auto"], content)
    rows = {row["job"]: row for row in repetition_rows(sweep_rows(tmp_path, "val/accuracy"))}
    assert rows["mean"]["test/accuracy"] == 0.75
    assert (rows["pooled"]["test/accuracy"], rows["pooled"]["test_images"]) == (0.875, 40)  # 35 of 40


def test_a_grid_is_no_repetition(make_job, tmp_path):
    for number, rate in enumerate([0.1, 0.2]):
        make_job(number, [f"optimizer.lr={rate}", "seed=1"], summary(0.5, 0.5))
    assert repetition_rows(sweep_rows(tmp_path, "val/accuracy")) == []


def test_a_pruned_job_is_marked(make_job, tmp_path):
    make_job(0, ["seed=1"], summary(0.5, 0.5) | {"pruned": True})
    assert sweep_table(sweep_rows(tmp_path, "val/accuracy"), "val/accuracy").endswith("seed=1  (pruned)")


def test_numbers_over_many_magnitudes_have_a_logarithmic_axis():
    figure = sweep_figure(
        {"lr": ["0.001", "0.01", "0.1"], "name": ["b", "a", "b"]}, [0.9, 0.8, 0.1], "val/accuracy", [False, False, True]
    )
    (axes,) = figure.axes
    best = [line for line in axes.lines if line.get_linewidth() == 3]
    assert best[0].get_ydata().tolist() == pytest.approx([0, 1, 1])
    middle = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 3][1]
    assert middle.tolist() == pytest.approx([0.5, 0, 0.875])
    assert [line.get_linestyle() for line in axes.lines if len(line.get_ydata()) == 3] == [":", "-", "-"]
    assert axes.get_title() == "3 jobs (thick: best; dotted: 1 pruned)"


def test_an_axis_of_many_numbers_has_round_ticks():
    rates = [f"{0.0003 * 1.37**i:.6g}" for i in range(16)]
    weights = [str(0.011 * i) for i in range(16)]
    figure = sweep_figure({"lr": rates, "weight": weights}, [0.5] * 16, "val/accuracy", [False] * 16)
    (axes,) = figure.axes
    labels = [[t.get_text() for t in axes.texts if t.xy[0] == position] for position in (0, 1)]
    assert labels[0] and {float(label) for label in labels[0]} <= {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03}
    assert labels[1][:2] == ["0", "0.04"]


def test_a_value_with_spaces_is_one_setting(make_job, tmp_path):
    for job, name in enumerate(("two words", "one more")):
        make_job(job, [f"data.root={name}", "seed=1"], summary(0.9 - job / 10, 0.5))
    rows = sweep_rows(tmp_path, "val/accuracy")
    first = sweep_table(rows, "val/accuracy").splitlines()[2]
    assert first.endswith("data.root=two words")
    config = {"hydra": {"sweep": {"dir": str(tmp_path)}}, "optimized_metric": "val/accuracy"}
    SweepTable().on_multirun_end(OmegaConf.create(config))
    with (tmp_path / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["data.root"] for row in csv.DictReader(stream)] == ["two words", "one more"]


@pytest.mark.parametrize(
    ("storage", "shown"), [("sqlite:///{}/study.db", "sqlite:///study.db"), ("{}/study.log", "study.log")]
)
def test_the_command_of_the_dashboard_names_the_storage(make_job, tmp_path, capsys, monkeypatch, storage, shown):
    monkeypatch.chdir(tmp_path)
    make_job(0, ["seed=1"], summary(0.5, 0.5))
    sweeper = {"storage": storage.format(tmp_path)}
    config = {"hydra": {"sweep": {"dir": str(tmp_path)}, "sweeper": sweeper}, "optimized_metric": "val/accuracy"}
    SweepTable().on_multirun_end(OmegaConf.create(config))
    assert capsys.readouterr().out.splitlines()[-1] == f"study         optuna-dashboard {shown}"


def test_of_equally_good_jobs_the_lower_loss_is_first(tmp_path):
    for job, loss in (("0", 3.0), ("1", 0.5)):
        folder = tmp_path / job
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
        summary = {"val": {"accuracy": 0.9, "loss": loss}, "test": {}}
        (folder / "summary.json").write_text(json.dumps(summary))
    assert [row["job"] for row in sweep_rows(tmp_path, "val/accuracy")] == ["1", "0"]
