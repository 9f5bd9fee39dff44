"""``scripts/benchmark_serving.py`` with few requests: no answer is wrong, lost or mixed up, and it would say so."""

import importlib.util
import re

import numpy as np
import pytest
from helpers import REPOSITORY


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_serving", REPOSITORY / "scripts" / "benchmark_serving.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(picture):
    rng = np.random.default_rng(1)
    return {str(i): picture(rng.integers(0, 255, 3), i, size=(20 + i, 40 - i)) for i in range(12)}


@pytest.fixture(scope="module")
def server(serve, decided):
    return serve(ckpt=decided)


@pytest.fixture(scope="module")
def truth(decided, benchmark, files):
    """What the model alone says of each file, one image at a time."""
    bare = benchmark.Bare(decided)
    names = bare.model.class_names
    rows = {}
    for name, content in files.items():
        probabilities = bare.compute(bare.decoded(content).unsqueeze(0)).softmax(1)[0].tolist()
        ranked = sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])
        rows[name] = {"prediction": ranked[0][0], "probabilities": dict(ranked)}
    return rows


def test_a_hundred_requests_at_a_time_are_not_wrong_lost_or_mixed_up(server, benchmark, files, truth, capsys):
    wrong, flips, worst = benchmark.soak(server.port, files, truth, 100)
    printed = capsys.readouterr().out
    assert (wrong, flips) == (0, 0) and worst < 0.01, printed
    assert "100 requests, 32 at a time" in printed and "'answered': 75" in printed
    batches = dict(re.findall(r"^(\w+_batch_images_\w+) ([\d.]+)$", server.get("/metrics").body.decode(), re.M))
    assert float(batches["fish_lightning_batch_images_sum"]) > 2 * float(batches["fish_lightning_batch_images_count"])


def test_answers_that_are_mixed_up_are_seen(server, benchmark, files, truth, monkeypatch):
    rotated = dict(zip(truth, [*list(truth.values())[1:], truth["0"]], strict=True))
    _, _, worst = benchmark.soak(server.port, files, rotated, 40)
    assert worst > 0.3
    monkeypatch.setattr(benchmark, "post", lambda *_: (200, {"predictions": []}))
    wrong, _, _ = benchmark.soak(server.port, files, truth, 40)
    assert wrong == 40


def test_ratios_of_throughput_are_printed(server, benchmark, decided, files, capsys):
    benchmark.throughput(decided, list(files.values()), {"serve": server.port}, rounds=2, count=64)
    rows = [line.split() for line in capsys.readouterr().out.strip().splitlines()]
    assert [row[0] for row in rows] == ["what", "serve", "bare", "loop"] and rows[1][2] == "1.00x"
