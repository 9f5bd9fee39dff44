"""The benchmark runs and writes what it prints."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def benchmark(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_ratios_are_printed_and_written_with_their_spread(tmp_path):
    done = benchmark("--quick", "--only", "reseed,rows", "--output", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "figures.json").read_text())
    assert "torch" in written["machine"]
    reseed, large = written["rows"]
    for line in (reseed, large):
        assert line["low"] <= line["ratio"] <= line["high"]
    assert reseed["ratio"] > 1  # beginning anew is cheaper than what it replaces
    assert large["ratio"] > 1  # ten times the images
    assert "MB more at most" in large["detail"]
    for line in written["rows"]:
        assert line["name"] in done.stdout


def test_an_unknown_part_is_an_error_that_names_the_parts():
    done = benchmark("--only", "loader,speed")
    assert done.returncode == 2
    assert "no part speed; there are reseed, loader, train, goal, start, rows" in done.stderr
