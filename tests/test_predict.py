"""``python -m fish_lightning.predict`` as a user runs it."""

import csv
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from fish_lightning.cli import CONF
from fish_lightning.data.decoding import decode
from fish_lightning.errors import UserError
from fish_lightning.models.checkpoint import load_checkpoint, restore
from fish_lightning.predict import predict


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained.folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_image):
    """Two images, a rotated one with an EXIF orientation, and two files that are not images."""
    folder = tmp_path_factory.mktemp("photos")
    make_image(folder / "a.png", (200, 60, 60), seed=1)
    make_image(folder / "deep" / "b.png", (60, 180, 70), seed=2)
    with Image.open(folder / "a.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate by 90 degrees clockwise to display it
        image.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, checkpoint, run, photos):
    cwd = tmp_path_factory.mktemp("predicted")
    done = run("predict", f"ckpt={checkpoint}", f"input={photos}", "trainer=cpu", "num_workers=0", cwd=cwd)
    (done.folder,) = (cwd / "logs" / "predict" / "runs").iterdir()
    return done


@pytest.fixture(scope="module")
def entries(predicted):
    """``predictions.json`` by path."""
    return {entry["path"]: entry for entry in json.loads((predicted.folder / "predictions.json").read_text())}


@pytest.fixture
def predict_here(tmp_path, checkpoint, monkeypatch):
    """``predict_here(*overrides)`` predicts in this process and in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def predict_now(*overrides):
        places = (f"ckpt={checkpoint}", f"paths.output={tmp_path / 'out'}", "trainer=cpu")
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("predict", [*places, *overrides])
        predict(cfg)

    return predict_now


def test_every_file_of_a_folder_has_a_row(predicted, photos):
    with (predicted.folder / "predictions.csv").open(newline="") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    names = ["a.png", "empty.jpg", "text.png", "turned.png", "deep/b.png"]
    assert list(rows) == [str(photos / name) for name in names]
    first = rows[str(photos / "a.png")]
    assert list(first) == ["path", "prediction", "probability", "runner_up", "runner_up_probability", "error"]
    assert first["error"] == "" and first["prediction"] != first["runner_up"]
    assert 0 < float(first["runner_up_probability"]) <= 0.5
    assert rows[str(photos / "empty.jpg")]["error"].endswith("empty.jpg: an empty file")
    assert rows[str(photos / "text.png")]["error"].endswith("text.png: not an image (PNG, JPEG, WebP, BMP or TIFF)")
    assert rows[str(photos / "text.png")]["prediction"] == ""


def test_columns_are_those_of_test_predictions(predicted, trained):
    headers = [
        file.read_text().splitlines()[0].split(",")
        for file in (predicted.folder / "predictions.csv", trained.folder / "test_predictions.csv")
    ]
    assert headers[1] == ["path", "label", "prediction", "probability", "photograph", "correct"]
    assert set(headers[0]) & set(headers[1]) == {"path", "prediction", "probability"}


def test_unreadable_files_are_reported_with_exit_code_1(predicted):
    assert predicted.returncode == 1
    message = "error: 2 of 5 files could not be read: see the column error of predictions.csv"
    assert predicted.stderr.strip() == message
    lines = predicted.stdout.splitlines()
    assert lines[0].split() == ["path", "prediction", "probability", "runner-up"]
    assert sum(" error " in line for line in lines) == 2


def test_json_has_the_probabilities_of_the_model(entries, photos, checkpoint):
    model, transform = restore(load_checkpoint(checkpoint), checkpoint)
    for name in ("a.png", "deep/b.png"):
        with torch.inference_mode():
            image = transform(image=decode(photos / name))["image"].unsqueeze(0)
            expected = dict(zip(model.class_names, model(image).softmax(1)[0].tolist(), strict=True))
        entry = entries[str(photos / name)]
        assert list(entry) == ["path", "prediction", "probability", "probabilities", "error"]
        assert entry["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert sum(entry["probabilities"].values()) == pytest.approx(1)
        assert np.allclose(list(entry["probabilities"].values()), sorted(expected.values(), reverse=True), atol=1e-5)
        assert entry["prediction"] == max(expected, key=expected.get) and entry["error"] is None
        assert entry["probability"] == max(entry["probabilities"].values())
    unreadable = entries[str(photos / "empty.jpg")]
    assert unreadable["prediction"] is unreadable["probability"] is None and unreadable["probabilities"] == {}


def test_exif_orientation_is_applied(entries, photos):
    upright, turned = (entries[str(photos / name)]["probabilities"] for name in ("a.png", "turned.png"))
    assert turned == pytest.approx(upright, abs=1e-6)


def test_contact_sheet_is_an_image(predicted):
    with Image.open(predicted.folder / "contact_sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > sheet.height > 100


@pytest.mark.parametrize(
    ("pattern", "unreadable", "files"),
    [("{photos}/a.png", False, 1), ("'{photos}/*.png'", True, 3), ("'{photos}/**/b.*'", False, 1)],
)
def test_input_is_a_file_or_a_pattern(tmp_path, predict_here, photos, pattern, unreadable, files):
    with pytest.raises(UserError, match=f"1 of {files} files could not be read") if unreadable else nullcontext():
        predict_here(f"input={pattern.format(photos=photos)}", "contact_sheet=0")
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == files
    assert not (tmp_path / "out" / "contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["input='nothing/*.jpg'"], "input: nothing/*.jpg matches no file"),
        (["input=hollow"], "input: hollow contains no image"),
        (["input=.", "ckpt=absent.ckpt"], "ckpt: no file absent.ckpt"),
    ],
)
def test_missing_input_or_checkpoint_is_a_short_error(tmp_path, predict_here, overrides, message):
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError) as error:
        predict_here(*overrides)
    assert str(error.value).startswith(message) and len(str(error.value).splitlines()) <= 5
