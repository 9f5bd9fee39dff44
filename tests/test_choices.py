"""What users of Hydra and Lightning templates try: programs by name, loggers, debug, last.ckpt."""

import os
import re
import subprocess
import sys

import pytest
from helpers import REPOSITORY, SHORT, run_folder, summary_of

from fish_lightning.__main__ import PROGRAMS
from fish_lightning.settings.tables import SCHEMAS


def test_the_package_lists_its_programs_and_each_has_a_command():
    command = [sys.executable, "-m", "fish_lightning"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True
    )
    assert PROGRAMS.keys() == SCHEMAS.keys()
    assert all(f"python -m fish_lightning.{name}" in done.stdout for name in SCHEMAS)
    table = (REPOSITORY / "pyproject.toml").read_text().partition("[project.scripts]")[2].partition("\n[")[0]
    scripts = dict(re.findall(r'^(\S+) = "(.+)"$', table, re.M))  # Python 3.10 has no tomllib
    assert scripts == {f"fish-{name}": f"fish_lightning.{name}:main" for name in SCHEMAS}


@pytest.mark.parametrize("words", [["--help"], ["-sc", "query=bash"]])
def test_a_command_answers_and_completes(tmp_path, words):
    code = "import sys; sys.argv[0] = 'fish-train'; from fish_lightning.train import main; main()"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COMP_LINE": "fish-train optimizer=", "COMP_POINT": "21"}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert ("optimizer=adamw" if "-sc" in words else "optimizer: adam, adamw") in done.stdout


@pytest.mark.parametrize(
    ("logger", "files"),
    [("none", []), ("csv", ["metrics.csv"]), ("tensorboard", ["events"]), ("default", ["events", "metrics.csv"])],
)
def test_a_choice_of_logger_writes_its_file_only(tmp_path, train_tiny, logger, files):
    done = train_tiny(tmp_path, *SHORT, "trainer.max_epochs=1", f"logger={logger}")
    assert done.returncode == 0, done.stderr
    written = [file.name for file in run_folder(tmp_path).iterdir()]
    assert (
        sorted(
            name.split(".")[0] if "events" in name else name
            for name in written
            if name == "metrics.csv" or "events" in name
        )
        == files
    )


@pytest.mark.parametrize("debug", ["fdr", "limit", "overfit", "profiler"])
def test_a_choice_of_debug_runs(tmp_path, train_tiny, debug):
    done = train_tiny(tmp_path, f"debug={debug}", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    limits = summary_of(run_folder(tmp_path))["limits"]
    assert (
        list(limits)
        == {
            "fdr": ["trainer.fast_dev_run"],
            "limit": ["trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.limit_test_batches"],
            "overfit": ["trainer.overfit_batches"],
            "profiler": [],
        }[debug]
    )
    assert ("run_training_epoch" in done.stdout + done.stderr) == (debug == "profiler")


def test_last_ckpt_of_a_complete_run_is_dropped_on_request(tmp_path, train_tiny):
    done = train_tiny(tmp_path, *SHORT, "trainer.max_epochs=1", "callbacks.last.keep=false")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (run_folder(tmp_path) / "checkpoints").iterdir()] == ["best.ckpt"]
