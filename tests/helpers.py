"""Constants and functions that test modules share; their fixtures are in ``conftest.py``."""

import csv
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image

from fish_lightning.errors import UserError

REPOSITORY = Path(__file__).parents[1]
#: Environment of a program whose config names callbacks of ``faults.py``.
HELPERS = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])}
COLORS = [(200, 60, 60), (60, 180, 70), (60, 70, 200), (200, 190, 60), (180, 70, 190), (70, 190, 190)]

#: Overrides of a training run of two seconds.
TINY = (
    "data=folder",
    "split=random",
    "data.find_copies=false",
    "model.name=shufflenet_v2_x0_5",
    "model.weights=null",
    "transforms.height=32",
    "transforms.width=32",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "data.batch_size=4",
    "data.num_workers=0",
    "optimizer.lr=0.002",
    "report=false",
    "callbacks.tensorboard=null",
)
#: What shortens it further where a test needs neither.
SHORT = ("validate_first=false", "test=false")

#: Two processes.
DDP = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")


def draw(path, color, seed, size=(24, 32)):
    """Write one image of noise around a color; size is (height, width). The same bytes for the same arguments."""
    noise = np.random.default_rng(seed).normal(0, 25, (*size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(path)
    return path


def rows_of(file):
    """Return the rows of a CSV file with a header."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run_folder(cwd):
    """Return the folder of the only run that was started in ``cwd``."""
    (folder,) = (cwd / "logs" / "train" / "runs").iterdir()
    return folder


def summary_of(folder):
    """Return ``summary.json`` of a run."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def ranks_of(folder, count=2):
    """Return what ``rank_callbacks.Spy`` has written for each rank of a run."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(count)]


def checkpoint_of(folder, name="last.ckpt"):
    """Return a checkpoint of a run."""
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def same(one, other):
    """Return whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def is_short_error(done, *words):
    """Return whether a program ended with exit code 1 and one to five lines that contain these words."""
    message = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert 1 <= len(message) <= 5, done.stderr
    for word in words:
        assert word in done.stderr
    return True


def kill(hook, step, seconds=0):
    """Return the override that kills a run."""
    return f"+callbacks.kill={{_target_:faults.KillAt,hook:{hook},step:{step},seconds:{seconds}}}"


def send(hook, step, number):
    """Return the override that sends a run a signal."""
    return f"+callbacks.send={{_target_:faults.Send,hook:{hook},step:{step},number:{int(number)}}}"


def require_same(parts, whole):
    """Require equal weights, histories and rows of two runs, and equal summaries except for times."""
    ours, theirs = checkpoint_of(parts), checkpoint_of(whole)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(ours[key], theirs[key]), key
    history = [[row | {"seconds": None} for row in ckpt["callbacks"]["History"]["rows"]] for ckpt in (ours, theirs)]
    assert history[0] == history[1]
    assert rows_of(parts / "metrics.csv") == rows_of(whole / "metrics.csv")
    summaries = [summary_of(at) for at in (parts, whole)]
    for key in ("test", "val", "best_epoch", "epochs"):
        assert summaries[0][key] == summaries[1][key], key
    return history[0]


def codes(done):
    """Return the exit codes of attempts."""
    return [attempt.code for attempt in done]


def measured(task):
    """Run ``task`` in a fork and return its peak memory above that before, in MB."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            task()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(writer, json.dumps(peak / 1000).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text)


def message_of(task, *arguments, **options):
    """The message of the ``UserError`` that ``task(*arguments)`` raises, also within Hydra: one to five lines."""
    with pytest.raises((UserError, InstantiationException)) as error:
        task(*arguments, **options)
    raised = error.value if isinstance(error.value, UserError) else error.value.__cause__
    assert isinstance(raised, UserError)
    assert 1 <= len(str(raised).splitlines()) <= 5
    return str(raised)
