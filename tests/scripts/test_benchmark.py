"""The benchmark runs, prints its rows and writes what it prints; what it does on a GPU runs on the CPU at tiny size."""

import contextlib
import importlib.util
import io
import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fish_lightning.hardware import fastest_precision


@pytest.fixture(scope="module")
def benchmark():
    file = Path(__file__).parents[2] / "scripts" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_with(monkeypatch, benchmark, start):
    """Let the benchmark start its programs with a function."""
    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=start, TimeoutExpired=subprocess.TimeoutExpired))


def test_ratios_are_printed_and_written_with_their_spread(benchmark, monkeypatch, tmp_path, capsys):
    def in_this_process(command, **_):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            benchmark.main(command[2:])
        return subprocess.CompletedProcess(command, 0, printed.getvalue())

    start_with(monkeypatch, benchmark, in_this_process)
    benchmark.main(["--quick", "--only", "reseed,catalog", "--output", str(tmp_path / "figures.json")])
    written = json.loads((tmp_path / "figures.json").read_text())
    assert "torch" in written["machine"]
    reseed, large = written["rows"]
    for line in (reseed, large):
        assert 0 < line["low"] <= line["ratio"] <= line["high"]
    assert "MB more at most" in large["detail"]
    printed = capsys.readouterr().out
    assert all(line["name"] in printed for line in written["rows"])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--only", "loader,speed"], "reseed, loader, train, goal, start, catalog"),
        (["--gpu", "--only", "speed"], "train, goal"),
    ],
)
def test_an_unknown_part_is_an_error_that_names_the_parts(benchmark, capsys, arguments, parts):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)
    assert f"unknown part speed; choose from {parts}\n" in capsys.readouterr().err


def test_without_a_gpu_its_table_is_refused_in_one_line(benchmark, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--gpu"])
    assert ended.value.code == f"error: --gpu: torch {torch.__version__} finds no CUDA GPU on this machine"


def test_the_table_of_a_gpu_compares_runs_in_turns(benchmark, monkeypatch, tmp_path, capsys):
    tiny = benchmark.Load(
        "cpu", batch=4, steps=1, rounds=2, variants=True, height=32, width=48, model="shufflenet_v2_x0_5"
    )
    compiled = []
    monkeypatch.setitem(benchmark.LOADS, ("gpu", True), tiny)
    monkeypatch.setattr(benchmark, "require_gpu", lambda: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))  # noqa: PLW0108 - a method
    monkeypatch.setattr(benchmark, "GPU_SECONDS", benchmark.GOAL_SECONDS - 1)  # no time for goal
    benchmark.main(["--gpu", "--quick", "--output", str(tmp_path / "figures.json")])
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    what = f"shufflenet_v2_x0_5, 32x48, batch 4, {fastest_precision('cpu')}, {tiny.workers} workers"
    assert [row["name"].strip() for row in rows] == [
        f"training ({what}) vs a plain fp32 loop",
        "… vs one resident batch (what a step does not wait)",
        "peak memory, run vs plain fp32 loop (less is better)",
        "augment=gpu vs augment=cpu",
        "peak memory, augment=gpu vs augment=cpu (less is better)",
        "model.compile=true vs false",
        "peak memory, model.compile=true vs false (less is better)",
    ]
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] < math.inf for row in rows)
    assert len(compiled) == 1 and "; first step after " in rows[5]["detail"]
    printed = capsys.readouterr()
    assert "tests that need a GPU: python -m pytest -m gpu, or --tests" in printed.out
    assert "skipped goal: no time left; measure it on its own: --gpu --only goal" in printed.err


def test_what_a_gpu_cannot_do_is_left_out_of_the_table(benchmark, capsys):
    def fails():
        raise RuntimeError("no C compiler\nand more")

    assert list(benchmark.that_run({"augment=gpu": float, "compile": fails})) == ["augment=gpu"]
    assert capsys.readouterr().err == "skipped compile: no C compiler\n"


def test_goal_compares_the_seconds_to_one_accuracy(benchmark, monkeypatch):
    started = []

    def program(name, *overrides, timeout):
        started.append((name, overrides[0], timeout))

    histories = {"notebook": [(2.0, 0.5), (4.0, 0.9), (6.0, 0.8)], "fast": [(1.0, 0.7), (2.0, 0.85)]}
    monkeypatch.setattr(benchmark, "program", program)
    monkeypatch.setattr(benchmark, "epochs", lambda run: histories[run.name])
    (row,) = benchmark.goal(benchmark.Options(accelerator="gpu"))
    assert started == [("train", f"experiment={recipe}", math.inf) for recipe in ("notebook", "fast")]
    assert row.ratio == 2 and row.detail == "2 vs 4 s to 80.0% (sample data, ResNet-18)"


def test_tests_that_need_a_gpu_run_first_where_they_are_asked_for(benchmark, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(benchmark, "require_gpu", lambda: None)
    monkeypatch.setattr(benchmark, "measure", lambda part, options: started.append(part) or [])
    start_with(monkeypatch, benchmark, lambda command, **_: started.append(command[1:]))
    benchmark.main(["--gpu", "--tests", "--output", str(tmp_path / "figures.json")])
    assert started == [["-m", "pytest", "-m", "gpu"], "train", "goal"]


def test_the_cost_of_a_report_is_told_step_by_step(benchmark, capsys):
    benchmark.main(["--report", "--quick"])
    printed = capsys.readouterr().out
    rows = {line[:52].strip(): float(line[52:].split()[0]) for line in printed.splitlines() if line[:2] == "  "}
    assert list(rows) == ["training_outputs", "analyze", "audit_report", "error_heat_maps", "write_report"]
    (total,) = [line for line in printed.splitlines() if line.startswith("report of 54 images")]
    assert 0 < rows["audit_report"] <= float(total[52:].split()[0]) < 60
    assert "MB report.html" in printed and "MB report_inputs.npz" in printed
