"""The log file of a run has what the run has printed, with the time of each line."""

import re


def test_what_a_run_prints_is_in_its_log(trained):
    lines = (trained.folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\]\[\w", line) for line in lines)
    said = [line.partition(" - ")[2] for line in lines]
    printed = trained.stdout.splitlines()
    assert [line for line in said if line in printed] == printed
    assert any(line.startswith("epoch 1/2") for line in said) and any("test accuracy" in line for line in said)


def test_an_error_is_in_the_log(train_tiny, tmp_path):
    failed = train_tiny(tmp_path, "hydra.run.dir=R", data=tmp_path / "gone")
    assert failed.returncode == 1
    assert "error: data.root:" in (tmp_path / "R" / "train.log").read_text(encoding="utf-8")
