"""A run at Weights & Biases (offline) and MLflow (a database file): one for each run folder, also if it is resumed."""

import json
import sqlite3
import struct

import pytest
from helpers import codes, kill, rows_of, summary_of

pytest.importorskip("wandb", reason="the extra is not installed")
pytest.importorskip("mlflow", reason="the extra is not installed")

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
    recipe = [LOGGERS, "callbacks.last.every_n_steps=2", "paths.logs=logs"]  # 14 steps
    kills = [("on_train_batch_end", 5), ("on_validation_end", 7), ("on_before_optimizer_step", 11)]
    orders = [[*recipe, kill(hook, step), *["ckpt=last"] * bool(i)] for i, (hook, step) in enumerate(kills)]
    done = attempts(tmp_path, *(("run", order) for order in orders), ("run", [*recipe, "ckpt=last"]))
    assert codes(done) == [-9, -9, -9, 0], [attempt.err for attempt in done]
    folder = tmp_path / "run"
    expected = csv_points(folder)
    assert {("train/loss", 13), ("val/accuracy", 0), ("lr-Adam", 5), ("test/accuracy", 14)} <= expected.keys()

    ((status, params, _, points),) = mlflow_runs(tmp_path)
    assert status == "FINISHED" and params["optimizer.lr"] == "0.002" and params["model.name"] == "shufflenet_v2_x0_5"
    logged = [(key, step) for key, step, _ in points if key != "epoch"]
    assert len(logged) == len(set(logged))
    assert {(key, step): value for key, step, value in points if key != "epoch"} == pytest.approx(expected)

    parts = list(wandb_runs(folder))
    assert len(parts) == 4 and len({identity for identity, *_ in parts if identity}) == 1
    _, config, history, exits = parts[-1]  # complete: a killed process leaves no file that is
    assert config["optimizer"]["lr"] == 0.002 and exits == [0]
    logged = [(key, step) for key, step, _ in points_of(history)]
    assert len(logged) == len(set(logged))
    assert {(key, step): value for key, step, value in points_of(history)} == pytest.approx(expected)
    assert [row["_step"] for row in history] == list(range(len(history)))  # the service drops repeated numbers
    assert expected["test/accuracy", 14] == pytest.approx(summary_of(folder)["test"]["accuracy"])
