"""A grid through Hydra's multirun: a folder a job, one table."""

import csv
import json

import pytest
from conftest import TINY


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, run, tiny_data):
    cwd = tmp_path_factory.mktemp("sweep")
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "scheduler=none")
    grid = ("optimizer=adam,sgd", "optimizer.lr=0.001,0.01")
    done = run("train", "-m", *TINY, f"data.root={tiny_data}", *grid, *short, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (done.folder,) = (cwd / "logs" / "train" / "multiruns").iterdir()
    with (done.folder / "sweep.csv").open(newline="") as stream:
        done.rows = list(csv.DictReader(stream))
    return done


def test_each_job_of_the_grid_has_a_folder_and_a_row(sweep):
    assert sorted(path.name for path in sweep.folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    assert {row["job"] for row in sweep.rows} == {"0", "1", "2", "3"}
    choices = {
        tuple(sorted(word for word in row["overrides"].split() if word.startswith("optimizer"))) for row in sweep.rows
    }
    grid = [("adam", 0.001), ("adam", 0.01), ("sgd", 0.001), ("sgd", 0.01)]
    assert choices == {(f"optimizer.lr={lr}", f"optimizer={kind}") for kind, lr in grid}


def test_rows_hold_the_jobs_own_numbers_best_first(sweep):
    values = [float(row["val/accuracy"]) for row in sweep.rows]
    assert values == sorted(values, reverse=True)
    for row in sweep.rows:
        summary = json.loads((sweep.folder / row["job"] / "summary.json").read_text())
        assert float(row["val/accuracy"]) == summary["val"]["accuracy"]
        assert float(row["test/accuracy"]) == summary["test"]["accuracy"]
        assert row["status"] == "done"


def test_the_table_is_printed(sweep):
    assert "sweep, best val/accuracy first" in sweep.stdout
    assert f"sweep folder  logs/train/multiruns/{sweep.folder.name}  (sweep.csv)" in sweep.stdout


@pytest.mark.slow
def test_a_job_that_fails_is_listed_and_does_not_end_the_sweep(tmp_path, run, tiny_data):
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "test=false", "validate_first=false")
    grid = ("model.weights=absent.pth,null",)
    done = run("train", "-m", *TINY, f"data.root={tiny_data}", *grid, *short, cwd=tmp_path)
    assert "model.weights: no file absent.pth" in done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    with (folder / "sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["job"], row["status"]) for row in rows] == [("1", "done"), ("0", "failed")]
