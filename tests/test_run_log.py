"""The log file of a run has what the run has printed, with the time of each line."""

import logging
import re

import pytest

from fish_lightning.run_log import logged


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


class Refusing:
    """The stream of a log file: each write fails with ``error``."""

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        pass


@pytest.fixture
def log_file(tmp_path):
    """The handler of the root logger that Hydra adds for a job's log file."""
    handler = logging.FileHandler(tmp_path / "train.log", encoding="utf-8")
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_a_log_that_cannot_be_written_is_one_line_and_the_run_continues(log_file, capsys):
    log_file.stream = Refusing(OSError(28, "No space left on device"))
    logged(lambda: [print(f"line {number}") for number in range(3)])()
    printed = capsys.readouterr()
    assert printed.out == "line 0\nline 1\nline 2\n"
    assert printed.err == f"warning: {log_file.baseFilename} is incomplete (No space left on device)\n"


def test_a_signal_that_prints_while_a_line_is_written_to_the_log_ends_nothing(log_file, capsys):
    """As Ctrl-C does, whose handler says that the run is stopping: Python refuses to write to a file within a write."""
    emit = log_file.emit

    def interrupted(record):
        if record.getMessage() == "line 1":
            print("stopping")
            log_file.stream = Refusing(RuntimeError("reentrant call inside <_io.BufferedWriter>"))
        emit(record)

    log_file.emit = interrupted
    logged(lambda: [print(f"line {number}") for number in range(3)])()
    printed = capsys.readouterr()
    assert printed.out == "line 0\nline 1\nstopping\nline 2\n" and printed.err == ""
