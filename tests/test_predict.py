"""``python -m fish_lightning.predict`` as a user runs it."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fish_lightning.data.decoding import decode
from fish_lightning.models.classifier import load_checkpoint, restore


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_image):
    """Two good photographs, a turned one that its EXIF orientation puts upright, and two files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    make_image(folder / "a.png", (200, 60, 60), seed=1)
    make_image(folder / "deep" / "b.png", (60, 180, 70), seed=2)
    with Image.open(folder / "a.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
        image.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, trained, run, photos):
    cwd = tmp_path_factory.mktemp("predicted")
    checkpoint = f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}"
    done = run("predict", checkpoint, f"input={photos}", "trainer=cpu", "num_workers=0", cwd=cwd)
    (done.folder,) = (cwd / "logs" / "predict" / "runs").iterdir()
    return done


def test_every_file_of_a_folder_has_its_row(predicted, photos):
    with (predicted.folder / "predictions.csv").open(newline="") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    names = ["a.png", "empty.jpg", "text.png", "turned.png", "deep/b.png"]
    assert list(rows) == [str(photos / name) for name in names]
    assert rows[str(photos / "a.png")]["error"] == ""
    assert 0 < float(rows[str(photos / "a.png")]["runner_up_probability"]) <= 0.5
    assert rows[str(photos / "empty.jpg")]["error"].endswith("empty.jpg: an empty file")
    assert rows[str(photos / "text.png")]["error"].endswith("text.png: not an image")
    assert rows[str(photos / "text.png")]["kind"] == ""


def test_unreadable_files_make_the_exit_code_1_and_are_said(predicted):
    assert predicted.returncode == 1
    assert predicted.stderr.strip() == "error: 2 of 5 files could not be read; their rows say why"
    lines = predicted.stdout.splitlines()
    assert lines[0].split() == ["file", "kind", "probability", "runner-up"]
    assert sum(" error " in line for line in lines) == 2


def test_probabilities_are_the_models_own(predicted, photos, trained):
    model, transform = restore(load_checkpoint(trained.folder / "checkpoints" / "best.ckpt"), "best.ckpt")
    content = {entry["file"]: entry for entry in json.loads((predicted.folder / "predictions.json").read_text())}
    for name in ("a.png", "deep/b.png"):
        with torch.inference_mode():
            image = transform(image=decode(photos / name))["image"].unsqueeze(0)
            expected = dict(zip(model.class_names, model(image).softmax(1)[0].tolist(), strict=True))
        entry = content[str(photos / name)]
        assert entry["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert sum(entry["probabilities"].values()) == pytest.approx(1)
        assert list(entry["probabilities"].values()) == sorted(expected.values(), reverse=True) or np.allclose(
            list(entry["probabilities"].values()), sorted(expected.values(), reverse=True), atol=1e-5
        )
        assert entry["kind"] == max(expected, key=expected.get)


def test_exif_orientation_is_honoured(predicted, photos):
    content = {entry["file"]: entry for entry in json.loads((predicted.folder / "predictions.json").read_text())}
    upright, turned = (content[str(photos / name)]["probabilities"] for name in ("a.png", "turned.png"))
    assert turned == pytest.approx(upright, abs=1e-6)


def test_the_contact_sheet_is_a_picture(predicted):
    with Image.open(predicted.folder / "contact_sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > sheet.height > 100


@pytest.mark.parametrize(
    ("pattern", "code", "files"),
    [("{photos}/a.png", 0, 1), ("'{photos}/*.png'", 1, 3), ("'{photos}/**/b.*'", 0, 1)],
)
def test_a_file_or_a_pattern_is_enough(tmp_path, trained, run, photos, pattern, code, files):
    checkpoint = f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}"
    done = run("predict", checkpoint, f"input={pattern.format(photos=photos)}", "trainer=cpu", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    (folder,) = (tmp_path / "logs" / "predict" / "runs").iterdir()
    assert len(json.loads((folder / "predictions.json").read_text())) == files


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["input=nothing/*.jpg"], ("input: nothing/*.jpg matches no file",)),
        (["input=hollow"], ("input: hollow holds no image",)),
        (["input=.", "ckpt=absent.ckpt"], ("ckpt: no file absent.ckpt",)),
    ],
)
def test_nothing_to_predict_is_a_short_error(tmp_path, trained, run, overrides, words):
    (tmp_path / "hollow").mkdir()
    checkpoint = f"ckpt={trained.folder / 'checkpoints' / 'best.ckpt'}"
    done = run("predict", checkpoint, *overrides, "trainer=cpu", cwd=tmp_path)
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
