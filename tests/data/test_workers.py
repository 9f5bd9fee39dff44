"""Loader workers end with the program: those of the training too that wait while a validation fails."""

import time

import pytest
from helpers import HELPERS, SHORT

BOOM = """
import pathlib, lightning as L
class Boom(L.Callback):
    def on_validation_batch_end(self, *_):
        pathlib.Path("began").touch()
        {how}
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("raise L.fabric.utilities.exceptions.MisconfigurationException('boom')", 1, "error: trainer: boom"),
        ("raise ZeroDivisionError('boom')", 1, "Set the environment variable HYDRA_FULL_ERROR=1"),
        ("raise SystemExit(3)", 3, ""),
    ],
)
def test_an_error_ends_loader_workers_at_once(tmp_path, train_tiny, how, code, said):
    (tmp_path / "boom.py").write_text(BOOM.format(how=how))
    environment = {"PYTHONPATH": f"{tmp_path}:{HELPERS['PYTHONPATH']}"}
    done = train_tiny(tmp_path, *SHORT, "data.num_workers=2", "+callbacks.boom._target_=boom.Boom", env=environment)
    assert done.returncode == code
    assert said in done.stderr
    assert time.time() - (tmp_path / "began").stat().st_mtime < 12, "the grace of SIGTERM alone is 20 s"
