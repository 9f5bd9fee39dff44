"""``predict`` in this process, on a few files."""

import csv
import json
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from fish_lightning.cli import CONF
from fish_lightning.predict import predict


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_image):
    """Twenty-two images and two files that are none, in order of their names."""
    folder = tmp_path_factory.mktemp("many") / "photos"
    for number in range(22):
        make_image(folder / f"{number:02}.png", (60 + 6 * number, 90, 200 - 6 * number), number)
    (folder / "22.jpg").write_bytes(b"")
    (folder / "23.png").write_text("not an image")
    return folder


@pytest.fixture
def settings(tmp_path, trained):
    """``settings(*overrides)``: the config of a run that writes to ``tmp_path / "out"`` in parts of 4 rows."""

    def composed(*overrides):
        words = (f"ckpt={trained.folder}", f"paths.output={tmp_path / 'out'}", "trainer=cpu", "num_workers=0")
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("predict", [*words, "batch_size=2", "part_rows=4", "contact_sheet=0", *overrides])

    return composed


@pytest.fixture
def predict_here(settings):
    """``predict_here(*overrides)`` predicts in this process."""
    return lambda *overrides: predict(settings(*overrides))


@pytest.fixture
def out(tmp_path):
    """``out.entries()``, ``out.parts()``: what a run has written so far."""
    folder = tmp_path / "out"

    def part(file):
        with file.open(newline="") as stream:
            return [row["path"] for row in csv.DictReader(stream)]

    return SimpleNamespace(
        folder=folder,
        entries=lambda run=folder: json.loads((run / "predictions.json").read_text()),
        parts=lambda: [part(file) for file in sorted((folder / "predictions").glob("part-*.csv"))],
    )
