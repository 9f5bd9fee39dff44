"""A run at Weights & Biases (offline) and MLflow (a database file): one for each run folder, also if it is resumed."""

import json
import sqlite3
import struct
from importlib.util import find_spec

import pytest
from helpers import SHORT, codes, kill, rows_of, summary_of

from fish_lightning.training.trackers import Sent

#: Not importorskip: the programs import them, and collecting the tests need not.
pytestmark = pytest.mark.skipif(not (find_spec("wandb") and find_spec("mlflow")), reason="the extras are not installed")

LOGGERS = "logger=[csv,wandb,mlflow]"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def csv_points(folder):
    """Every value of metrics.csv: {(metric, step): value}."""
    return {
        (key, int(row["step"])): float(value)
        for row in rows_of(folder / "metrics.csv")
        for key, value in row.items()
        if key not in ("step", "epoch") and value
    }


def mlflow_runs(cwd):
    """Runs of the database: [(status, params, tags, [(metric, step, value), …]), …]."""
    with sqlite3.connect(cwd / "logs" / "mlflow.db") as database:

        def of(run, columns, table):
            return database.execute(f"SELECT {columns} FROM {table} WHERE run_uuid = ?", (run,)).fetchall()

        found = database.execute("SELECT run_uuid, status FROM runs ORDER BY start_time").fetchall()
        parts = [("key, value", "params"), ("key, value", "tags"), ("key, step, value", "metrics")]
        of_runs = [[of(run, *part) for part in parts] for run, _ in found]
    return [(status, dict(p), dict(t), points) for (_, status), (p, t, points) in zip(found, of_runs, strict=True)]


def records(file):
    """The records of a ``.wandb`` file: a LevelDB log after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, part = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def wandb_runs(folder):
    """What each process of a run wrote, in order: (id, config, [{metric: value}, …], exit codes)."""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        ids, config, history, exits = set(), {}, [], []
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "config":
                config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif kind == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                history.append(row | {"_step": record.history.step.num})
            elif kind == "exit":
                exits.append(record.exit.exit_code)
        yield ids.pop() if ids else None, config, history, exits


def points_of(history):
    return [
        (key, row["trainer/global_step"], value)
        for row in history
        for key, value in row.items()
        if key not in ("trainer/global_step", "epoch") and not key.startswith("_")
    ]


def test_a_run_killed_and_resumed_is_one_run_with_each_point_once(tmp_path, attempts):
    pictures = "callbacks.tensorboard={_target_:fish_lightning.training.tensorboard.TensorBoardPictures}"
    recipe = [LOGGERS, pictures, "callbacks.last.every_n_steps=2", "paths.logs=logs"]  # 14 steps
    killed = [*recipe, kill("on_before_optimizer_step", 11)]
    done = attempts(tmp_path, ("run", killed), ("run", [*recipe, "ckpt=last"]))
    assert codes(done) == [-9, 0], [attempt.err for attempt in done]
    folder = tmp_path / "run"
    expected = csv_points(folder)
    assert {("train/loss", 13), ("val/accuracy", 0), ("lr-Adam", 5), ("test/accuracy", 14)} <= expected.keys()

    ((status, params, _, points),) = mlflow_runs(tmp_path)
    assert status == "FINISHED" and params["optimizer.lr"] == "0.002" and params["model.name"] == "shufflenet_v2_x0_5"
    logged = [(key, step) for key, step, _ in points if key != "epoch"]
    assert len(logged) == len(set(logged))
    assert {(key, step): value for key, step, value in points if key != "epoch"} == pytest.approx(expected)

    parts = list(wandb_runs(folder))
    assert len(parts) == 2 and len({identity for identity, *_ in parts if identity}) == 1
    _, config, history, exits = parts[-1]  # complete: a killed process leaves no file that is
    assert config["optimizer"]["lr"] == 0.002 and exits == [0]
    logged = [(key, step) for key, step, _ in points_of(history)]
    assert len(logged) == len(set(logged))
    assert {(key, step): value for key, step, value in points_of(history)} == pytest.approx(expected)
    assert [row["_step"] for row in history] == list(range(len(history)))  # the service drops repeated numbers
    assert expected["test/accuracy", 14] == pytest.approx(summary_of(folder)["test"]["accuracy"])


def test_each_job_of_a_sweep_in_one_process_has_its_own_run_and_one_that_fails_is_marked(tmp_path, train_tiny, faults):
    poison = ("+callbacks.poison._target_=faults.Poison", "+callbacks.poison.steps=[1],[9]")  # of two steps
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "hydra.sweep.dir=sweep", *SHORT)
    done = train_tiny(tmp_path, "hydra.mode=MULTIRUN", *poison, LOGGERS, *short, env=faults)
    assert done.returncode == 1
    runs = mlflow_runs(tmp_path)
    found = [(status, params["callbacks.poison.steps"]) for status, params, *_ in runs]
    assert found == [("FAILED", "[1]"), ("FINISHED", "[9]")]
    names = [tags["mlflow.runName"] for _, _, tags, _ in runs]
    assert names == ["0/callbacks.poison.steps=_1_", "1/callbacks.poison.steps=_9_"]
    assert {tags["sweep"] for _, _, tags, _ in runs} == {"sweep"}
    (failed,), (complete,) = (wandb_runs(tmp_path / "sweep" / job) for job in "01")
    assert failed[0] != complete[0] and (failed[3], complete[3]) == ([1], [0])
    assert [part[1]["callbacks"]["poison"]["steps"] for part in (failed, complete)] == [[1], [9]]
    expected = csv_points(tmp_path / "sweep" / "1")
    logged = [(key, step, value) for key, step, value in runs[1][3] if key != "epoch"]
    for points in (logged, points_of(complete[2])):
        assert {(key, step): value for key, step, value in points} == pytest.approx(expected)


def test_of_two_processes_the_first_logs(tmp_path, train_ranks):
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "hydra.run.dir=run", *SHORT)
    for rank in train_ranks(tmp_path, LOGGERS, *short):
        assert rank.returncode == 0, rank.stderr
    expected = csv_points(tmp_path / "run")
    ((status, _, _, points),) = mlflow_runs(tmp_path)
    logged = [(key, step) for key, step, _ in points if key != "epoch"]
    assert status == "FINISHED" and len(logged) == len(set(logged)) and set(logged) == expected.keys()
    ((_, _, history, exits),) = wandb_runs(tmp_path / "run")
    assert exits == [0]
    assert {(key, step): value for key, step, value in points_of(history)} == pytest.approx(expected)


def test_what_earlier_processes_sent_is_known_and_a_torn_line_is_not(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    first = Sent(tmp_path / "wandb.jsonl")
    first.begin()
    assert first.new({"val/loss": 0.5}, 0) == {"val/loss": 0.5}
    first.add({"val/loss": 0.5, "epoch": 0.0}, 0)
    first.add({"test/accuracy": 0.25}, 9)
    assert first.new({"val/loss": 0.5}, 0) == {"val/loss": 0.5}  # its own are not repeats: an epoch of one step
    with first.file.open("a") as stream:
        stream.write('{"step": 10, "val/lo')
    assert Sent(first.file).id != first.id  # without a checkpoint the folder holds no run
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    second = Sent(first.file)
    assert (second.id, second.calls, second.resumed) == (first.id, 2, True)
    assert second.new({"val/loss": 0.75, "epoch": 0.0, "lr-Adam": 1.0}, 0) == {"lr-Adam": 1.0}
    assert second.new({"val/loss": 0.75}, 10) == {"val/loss": 0.75}
    assert second.new({"test/accuracy": 0.25}, 9) == {} and second.new({"test/accuracy": 0.5}, 9) != {}
    second.begin()
    second.add({"val/loss": 0.75}, 10)
    assert [json.loads(line).get("step") for line in first.file.read_text().splitlines()] == [None, 0, 9, 10]
    second.forget()
    second.begin()
    assert second.new({"val/loss": 0.5}, 0) == {"val/loss": 0.5} and second.calls == 0
    assert json.loads(first.file.read_text()) == {"run": second.id}
