"""``python -m fish_lightning.predict`` as a user runs it."""

import csv
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from fish_lightning.cli import CONF
from fish_lightning.data.decoding import decode
from fish_lightning.errors import UserError
from fish_lightning.evaluation.unknowns import neighbor_score
from fish_lightning.models.checkpoint import load_checkpoint, restore
from fish_lightning.plotting import figures
from fish_lightning.predict import predict
from fish_lightning.predicting.rows import prediction_rows
from fish_lightning.report.predictions import Tally, prediction_table


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

    def predict_now(*overrides, ckpt=checkpoint):
        places = (f"ckpt={ckpt}", f"paths.output={tmp_path / 'out'}", "trainer=cpu")
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
    assert list(first) == [
        *("path", "prediction", "probability", "calibrated_probability", "runner_up", "runner_up_probability"),
        *("uncertain", "unknown", "error"),
    ]
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
    message = "error: 2 of 5 files could not be read: see the error column of predictions.csv"
    assert predicted.stderr.strip() == message
    lines = predicted.stdout.splitlines()
    assert lines[0].split() == ["path", "prediction", "probability", "calibrated", "runner-up", "verdict"]
    assert sum(" error " in line for line in lines[1:6]) == 2


def test_json_has_the_probabilities_of_the_model(entries, photos, checkpoint):
    model, transform = restore(load_checkpoint(checkpoint), checkpoint)
    for name in ("a.png", "deep/b.png"):
        with torch.inference_mode():
            image = transform(image=decode(photos / name))["image"].unsqueeze(0)
            expected = dict(zip(model.class_names, model(image).softmax(1)[0].tolist(), strict=True))
        entry = entries[str(photos / name)]
        assert list(entry) == [
            *("path", "prediction", "probability", "calibrated_probability", "probabilities", "uncertain", "unknown"),
            "error",
        ]
        assert entry["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert sum(entry["probabilities"].values()) == pytest.approx(1)
        assert np.allclose(list(entry["probabilities"].values()), sorted(expected.values(), reverse=True), atol=1e-5)
        assert entry["prediction"] == max(expected, key=expected.get) and entry["error"] is None
        assert entry["probability"] == max(entry["probabilities"].values())
    unreadable = entries[str(photos / "empty.jpg")]
    assert unreadable["prediction"] is unreadable["probability"] is None and unreadable["probabilities"] == {}
    assert unreadable["calibrated_probability"] is unreadable["uncertain"] is unreadable["unknown"] is None


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


CLASSES = ["class a", "class b", "class c"]
FILES = ("a.png", "deep/b.png", "turned.png")


@pytest.fixture(scope="module")
def computed(photos, checkpoint):
    """(3, C) logits and (3, D) features of ``FILES``, one image at a time."""
    model, transform = restore(load_checkpoint(checkpoint), checkpoint)
    with torch.inference_mode():
        images = [transform(image=decode(photos / name))["image"].unsqueeze(0) for name in FILES]
        parts = zip(*(model.logits_and_features(image) for image in images), strict=True)
        return [torch.cat(part).double().numpy() for part in parts]


@pytest.fixture(scope="module")
def logits(computed):
    return computed[0]


@pytest.fixture(scope="module")
def features(computed):
    return computed[1]


@pytest.fixture
def calibrated(tmp_path, checkpoint):
    """``calibrated(content)`` writes ``calibration.json`` into a copy of the run and returns its checkpoint."""

    def write(content):
        copy = tmp_path / "run" / "checkpoints" / "best.ckpt"
        copy.parent.mkdir(parents=True)
        shutil.copy(checkpoint, copy)
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "run" / "calibration.json").write_text(text)
        return copy

    return write


def content(temperature=2.0, threshold=None, score="energy", least=None, **others):
    """The content of a ``calibration.json``."""
    return {
        "temperature": temperature,
        "selective": {"threshold": threshold, "target_error": 0.05},
        "unknown": {"score": score, "threshold": least},
        "classes": CLASSES,
    } | others


def softmax(logits):
    return torch.from_numpy(logits).softmax(1).numpy()


def rows_of_all(folder):
    """Rows of ``predictions.csv``, each with its entry of ``predictions.json``."""
    with (folder / "predictions.csv").open(newline="") as stream:
        return list(zip(csv.DictReader(stream), json.loads((folder / "predictions.json").read_text()), strict=True))


def rows_of_readable(folder, photos):
    """The same, of ``FILES``."""
    found = {row["path"]: (row, entry) for row, entry in rows_of_all(folder)}
    return [found[str(photos / name)] for name in FILES]


def test_a_run_calibrates_the_probabilities_of_its_predictions(entries, trained, photos, logits, features, predicted):
    stored = json.loads((trained.folder / "calibration.json").read_text())
    expected = softmax(logits / stored["temperature"]).max(1)
    found = [entries[str(photos / name)]["calibrated_probability"] for name in FILES]
    assert found == pytest.approx(expected, abs=1e-5)
    with np.load(trained.folder / stored["unknown"]["features"]) as arrays:
        cosines = neighbor_score(features, arrays["features"])
    assert stored["unknown"]["score"] == "knn"
    assert [entries[str(photos / name)]["unknown"] for name in FILES] == [
        bool(cosine < stored["unknown"]["threshold"]) for cosine in cosines
    ]
    assert stored["selective"]["threshold"] is entries[str(photos / "a.png")]["uncertain"] is None
    note = "note: nothing is marked as uncertain: no threshold can guarantee an error of at most 5.0%"
    assert note in predicted.stdout.splitlines()


def widest_gap(values):
    """The middle of the widest gap between values: which side one is on does not depend on rounding."""
    ordered = np.sort(values)
    wide = np.argmax(np.diff(ordered))
    return float(ordered[wide : wide + 2].mean())


def test_temperature_and_thresholds_are_those_of_calibration_json(
    tmp_path, photos, predict_here, calibrated, logits, capsys, monkeypatch
):
    probabilities, energies = softmax(logits).max(1), np.log(np.exp(logits).sum(1))
    threshold, least = map(widest_gap, (probabilities, energies))
    drawn = {}
    monkeypatch.setattr(figures, "save", lambda *_: None)
    monkeypatch.setattr(
        figures, "picture_figure", lambda _, titles, colors, **__: drawn.update(zip(titles, colors, strict=True))
    )
    with pytest.raises(UserError, match="could not be read"):
        predict_here(f"input={photos}", ckpt=calibrated(content(2.0, threshold, "energy", least)).parents[1])
    printed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    captions = {title.split("\n")[0]: (title.split("\n")[1], color) for title, color in drawn.items()}
    assert captions["empty.jpg"] == ("unreadable", figures.BAD)
    for i, (row, entry) in enumerate(rows_of_readable(tmp_path / "out", photos)):
        uncertain, unknown = bool(probabilities[i] < threshold), bool(energies[i] < least)
        assert (entry["uncertain"], entry["unknown"]) == (uncertain, unknown)
        assert (row["uncertain"], row["unknown"]) == (str(int(uncertain)), str(int(unknown)))
        warm = softmax(logits / 2).max(1)[i]
        assert entry["calibrated_probability"] == pytest.approx(warm, abs=1e-5)
        assert entry["calibrated_probability"] < entry["probability"] == pytest.approx(probabilities[i], abs=1e-5)
        assert float(row["calibrated_probability"]) == entry["calibrated_probability"]
        verdict = "none of these" if unknown else "uncertain" if uncertain else ""
        line, (caption, color) = printed[str(photos / FILES[i])], captions[FILES[i].split("/")[-1]]
        assert f"{probabilities[i]:.1%}" in line and f"{warm:.1%}" in line and line.endswith(verdict)
        assert verdict in caption
        assert color == {"none of these": figures.NONE, "uncertain": figures.UNCERTAIN, "": figures.PLAIN}[verdict]
    marks = [entry["uncertain"] for _, entry in rows_of_readable(tmp_path / "out", photos)]
    assert 0 < sum(marks) < 3 and 0 < sum(energies < least) < 3


def test_without_thresholds_nothing_is_marked(tmp_path, photos, predict_here, calibrated, capsys):
    predict_here(f"input={photos}/a.png", ckpt=calibrated(content(unknown=None)))
    ((row, entry),) = rows_of_all(tmp_path / "out")
    assert entry["uncertain"] is entry["unknown"] is None and row["uncertain"] == row["unknown"] == ""
    assert entry["calibrated_probability"] is not None
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["path", "prediction", "probability", "calibrated", "runner-up"]
    assert [line for line in printed if line.startswith("note: ")] == [
        "note: nothing is marked as uncertain: no threshold can guarantee an error of at most 5.0%",
        "note: nothing is marked as none of these: calibration.json has no threshold for it",
    ]


@pytest.mark.parametrize("place", ["alone", "run", "other weights"])
def test_without_a_calibration_of_these_weights_nothing_is_calibrated(
    tmp_path, photos, predict_here, calibrated, checkpoint, capsys, place
):
    ckpt, why = calibrated(content(weights="of another epoch")), "belongs to different weights"
    if place != "other weights":
        (tmp_path / "run" / "calibration.json").unlink()
        why = "run/calibration.json not found"
    if place == "alone":
        ckpt, why = shutil.copy(ckpt, tmp_path / "model.ckpt"), " calibration.json not found"
    predict_here(f"input={photos}/a.png", ckpt=ckpt)
    ((row, entry),) = rows_of_all(tmp_path / "out")
    assert [entry[key] for key in ("calibrated_probability", "uncertain", "unknown")] == [None] * 3
    assert row["calibrated_probability"] == row["uncertain"] == row["unknown"] == ""
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["path", "prediction", "probability", "runner-up"]
    (note,) = [line for line in printed if line.startswith("note: ")]
    assert note.startswith("note: predictions are not calibrated: ") and note.endswith(why)


CORRUPT = [
    ("{", "Expecting property name"),
    ("\u0000", "Expecting value"),
    ("[]", "it is not a JSON object"),
    ({"temperature": 1.0}, "it has no selective"),
    (content(temperature=0), "temperature is 0, not a number from 0.01 to 100"),
    (content(temperature=True), "temperature is True"),
    (content(temperature="1"), "temperature is '1'"),
    (content(threshold=float("nan")), "selective.threshold is nan, not a number from 0 to 1"),
    (content(threshold=1.5), "selective.threshold is 1.5"),
    (content(selective={"threshold": 0.5}), "selective.target_error is None"),
    (content(selective=[]), "selective or unknown is not a JSON object"),
    (content(least=float("-inf")), "unknown.threshold is -inf, not a number"),
    (content(score="entropy"), "unknown.score is not one of energy, max_logit, max_softmax, feature_norm, knn"),
    (content(classes=["bass", "eel", "trout"]), "its classes are not those of the checkpoint"),
]


@pytest.mark.parametrize(("text", "why"), CORRUPT, ids=[why for _, why in CORRUPT])
def test_corrupt_calibration_is_a_short_error(tmp_path, photos, predict_here, calibrated, text, why):
    with pytest.raises(UserError) as error:
        predict_here(f"input={photos}/a.png", ckpt=calibrated(text))
    first, second = str(error.value).splitlines()
    assert first.startswith("run/calibration.json is corrupt (") and why in first
    assert second == "restore it, or remove it to continue without calibration"
    assert not (tmp_path / "out").exists()


def test_verdicts_of_many_files_are_counted():
    files, classes = 30, ["bass", "eel"]
    logits = np.zeros((files, 2), np.float32)
    logits[:, 0] = 4
    logits[:12, 0] = 0.1  # uncertain
    features = np.ones((files, 4), np.float16)
    features[8:15] = 0.1  # none of these
    stored = content(1.0, 0.9, "feature_norm", 1.5)

    def counted():
        rows = prediction_rows(["a.png"] * files, [""] * files, logits, features, classes, stored)
        tally = Tally(keep=0)
        return list(tally.counted(rows)), tally.lines()

    rows, lines = counted()
    assert lines[-2:] == ["uncertain: 8 (counted above)", "none of these: 7 (counted above)"]
    assert sum(line.endswith("uncertain") for line in prediction_table(rows).splitlines()) == 8
    assert [line for line in lines if line.split()[:1] == ["bass"]] == ["bass      30"]
    stored["unknown"]["threshold"] = None
    assert counted()[1][-1] == "uncertain: 12 (counted above)"
