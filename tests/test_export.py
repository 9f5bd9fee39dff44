"""``python -m fish_lightning.export`` as a user runs it, and what reads its folder."""

import csv
import hashlib
import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
import onnxruntime
from helpers import summary_of

from fish_lightning.cli import CONF
from fish_lightning.data.catalog import Catalog
from fish_lightning.errors import UserError
from fish_lightning.evaluate import evaluate
from fish_lightning.export import export
from fish_lightning.exporting.parity import Answer, differences, measure_parity, parity_figures
from fish_lightning.models import classifier
from fish_lightning.models.trained import open_model
from fish_lightning.plotting import figures
from fish_lightning.predict import predict

CLASSES = ["class a", "class b", "class c"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained, run):
    """An export of the trained run: ``.folder`` and ``.stdout``."""
    cwd = tmp_path_factory.mktemp("exported")
    done = run("export", f"ckpt={trained.folder}", "name=fish", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (done.folder,) = (cwd / "logs" / "export" / "runs").iterdir()
    return done


@pytest.fixture
def started(tmp_path, monkeypatch):
    """``started(program, *overrides)``: a program in this process and in ``tmp_path``, which writes to ``out``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "save", lambda *_: None)  # a second for each evaluation

    def start(program, *overrides):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        places = [f"paths.output={tmp_path / 'out'}", *overrides]
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose(program.__name__, places)
        program(cfg)
        return tmp_path / "out"

    return start


@pytest.fixture
def copied(tmp_path, exported):
    """A copy of the export that a test may change."""
    return shutil.copytree(exported.folder, tmp_path / "copy")


def parity_of(folder):
    return json.loads((folder / "parity.json").read_text())


def test_the_folder_is_a_model_repository_that_says_what_it_contains(exported, trained):
    files = {str(file.relative_to(exported.folder)) for file in exported.folder.rglob("*") if file.is_file()}
    assert files == {
        *("model.json", "parity.json", "model_card.md", "split.csv", "export.log"),
        *(name for name in ("calibration.json", "training_features.npz") if (trained.folder / name).is_file()),
        *("fish/1/model.onnx", "fish/config.pbtxt"),
    }
    content = json.loads((exported.folder / "model.json").read_text())
    assert content["classes"] == CLASSES and content["size"] == {"height": 32, "width": 32}
    calibration = json.loads((trained.folder / "calibration.json").read_text())
    assert json.loads((exported.folder / "calibration.json").read_text()) == calibration
    assert content["temperature"] == calibration["temperature"]
    assert content["rules"]["unknown"]["threshold"] == calibration["unknown"]["threshold"]
    best = (trained.folder / "checkpoints" / "best.ckpt").read_bytes()
    assert content["checkpoint"]["sha256"] == hashlib.sha256(best).hexdigest()
    assert content["weights"] == {
        "started_from": "random weights",
        "license": "determined by you and the license of the training images",
    }
    assert (exported.folder / "split.csv").read_text() == (trained.folder / "split.csv").read_text()
    session = onnxruntime.InferenceSession(exported.folder / "fish" / "1" / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    ((name, kind, shape),) = [(one.name, one.type, one.shape) for one in session.get_inputs()]
    assert (name, kind, shape) == ("images", "tensor(uint8)", ["N", "H", "W", 3])
    assert [output.name for output in session.get_outputs()] == [*content["outputs"]]


def test_parity_is_measured_on_all_validation_images(exported, trained):
    parity, images = parity_of(exported.folder), summary_of(trained.folder)["val"]["n"]
    assert parity["passed"] and parity["n"] == images == 3
    assert 0 <= parity["mean_abs_dp"] <= parity["max_abs_dp"] < 1e-4
    assert parity["flips"] == parity["flips_beyond_margin"] == parity["other_marks"] == 0
    assert {size: part["n"] for size, part in parity["batches"].items()} == {"1": 3, "3": 3, "32": 3}
    assert (parity["odd_sizes"]["height"], parity["odd_sizes"]["width"]) == (23, 31)
    assert parity["odd_sizes"]["n"] == 3 * 32
    lines = exported.stdout.splitlines()
    assert lines[0].startswith("model   fish: fp32, 32x32 (h x w), 3 classes, ")
    assert lines[1].startswith("parity  3 images: largest difference in a probability ") and exported.stderr == ""


@pytest.mark.parametrize("at", [0, 1])
def test_probabilities_that_are_nan_are_no_parity(at):
    fine, marks = np.array([[0.9, 0.1], [0.8, 0.2]]), np.zeros((2, 2), dtype=bool)
    broken = fine.copy()
    broken[at] = np.nan
    apart = differences(Answer(fine, fine, marks), Answer(broken, broken, marks))
    assert not parity_figures(apart)["max_abs_dp"] <= 1


@pytest.fixture(scope="module")
def opened(trained):
    """The checkpoint of the trained run."""
    return open_model(trained.folder)


@pytest.mark.parametrize("fault", [None, "colors", "resize"])
def test_only_the_same_preprocessing_passes(opened, exported, fault):
    other = {
        None: [A.Resize(32, 32)],
        "colors": [A.Resize(32, 32), A.InvertImg(p=1)],
        "resize": [A.CenterCrop(12, 12), A.Resize(32, 32)],
    }[fault]
    model = replace(opened, transform=A.Compose([*other, A.ToTensorV2()]))
    catalog = Catalog.from_state(model.data["catalog"])
    graph = (exported.folder / "fish" / "1" / "model.onnx").read_bytes()
    parity = measure_parity(model, graph, catalog, catalog.indices("val"), 5e-7)
    assert parity["passed"] is (fault is None)
    assert parity["worst"][0][1] == pytest.approx(max(part["max_abs_dp"] for part in parity["batches"].values()))


def test_images_of_several_sizes_and_unreadable_ones_are_compared_one_by_one(tmp_path, opened, exported, make_image):
    sizes = [(24, 32), (25, 33), (24, 32), (301, 7), (25, 33), (600, 800)]
    for number, size in enumerate(sizes):
        make_image(tmp_path / f"{number}.png", (200, 60, 60), number, size)
    (tmp_path / "9.png").write_bytes(b"")
    names = np.array([*(f"{number}.png" for number in range(6)), "9.png"])
    catalog = replace(
        Catalog.from_state(opened.data["catalog"]),
        root=tmp_path,
        paths=names,
        labels=np.zeros(7, np.int64),
        photographs=names,
        splits=np.full(7, "val"),
    )
    graph = (exported.folder / "fish" / "1" / "model.onnx").read_bytes()
    parity = measure_parity(opened, graph, catalog, np.arange(7), 1e-5)
    assert parity["passed"] and parity["n"] == 6 and parity["unreadable_images"] == ["9.png"]


def test_an_export_that_answers_differently_is_not_written(tmp_path, started, trained):
    with pytest.raises(UserError) as error:
        started(export, f"ckpt={trained.folder}", "export.tolerance=1e-12", "export.images=2")
    first, second = str(error.value).splitlines()
    assert first.startswith("the ONNX outputs differ from the checkpoint's; no model was written: 2 images")
    assert second.endswith("export.tolerance=1e-12; see out/parity.json")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["parity.json"]
    assert parity_of(tmp_path / "out")["passed"] is False


def test_eight_bits_are_compared_with_float32_by_photograph(started, trained, exported, capsys):
    folder = started(export, f"ckpt={trained.folder}", "int8=true", "export.calibration_images=8")
    parity, printed = parity_of(folder), capsys.readouterr().out
    small = parity["int8"]
    assert parity["fp32"]["passed"] and parity["fp32"]["max_abs_dp"] < min(1e-4, parity["max_abs_dp"])
    assert small["verdict"] == small["compare"]["verdict"] != "worse" and parity["passed"]
    assert small["n"] == summary_of(trained.folder)["test"]["n"]
    assert small["accuracy"]["fp32"] == summary_of(trained.folder)["test"]["accuracy"]
    assert small["megabytes"]["int8"] < 0.5 * small["megabytes"]["fp32"]
    assert all(value > 0 for times in small["ms_per_image"].values() for value in times.values())
    assert small["compare"]["sentence"] in printed
    assert "int8 against float32" in (folder / "model_card.md").read_text()
    assert open_model(folder).module.class_names == tuple(CLASSES)


def answers(folder):
    return json.loads((folder / "predictions.json").read_text())


def test_predict_gives_the_answers_of_the_checkpoint(started, exported, trained, tmp_path, make_image, monkeypatch):
    for number, size in enumerate([(24, 32), (200, 90), (25, 33)]):
        make_image(tmp_path / "photos" / f"{number}.png", (60, 180, 70), number, size)
    settings = ("input=photos", "trainer=cpu", "num_workers=0", "contact_sheet=0", "trainer.precision=32-true")
    expected = answers(started(predict, f"ckpt={trained.folder}", *settings))
    monkeypatch.setattr(classifier, "build_network", None)  # no network of torch is built
    found = answers(started(predict, f"ckpt={exported.folder}", *settings))
    assert [entry.keys() for entry in found] == [entry.keys() for entry in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
        assert ours["calibrated_probability"] == pytest.approx(theirs["calibrated_probability"], abs=1e-5)
        for key in ("path", "prediction", "uncertain", "unknown", "error"):
            assert ours[key] == theirs[key]


def test_evaluate_reproduces_the_scores_of_the_training_run(started, exported, trained):
    folder = started(evaluate, f"ckpt={exported.folder}", "trainer=cpu", "data.num_workers=0")
    found, expected = summary_of(folder)["test"], summary_of(trained.folder)["test"]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    for key in ("accuracy", "accuracy_ci95", "n", "per_class", "confusion_matrix"):
        assert found[key] == expected[key]
    assert found["calibration"]["temperature"] == expected["calibration"]["temperature"]
    report = (folder / "report.html").read_text()
    assert "An export computes no gradients" in report or expected["accuracy"] == 1


def test_a_peer_with_the_export_alone_evaluates_it_on_other_data(started, copied, tmp_path, make_folder):
    content = json.loads((copied / "model.json").read_text())
    content["data"]["root"] = "/another/machine"
    (copied / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="/another/machine"):
        started(evaluate, f"ckpt={copied}", "trainer=cpu", "data.num_workers=0", "report=false")
    make_folder(tmp_path / "others", classes=3, per_class=2, size=(40, 30), suffix=".jpg")
    settings = ("data=folder", "data.root=others", f"paths.cache={tmp_path / 'cache'}", "report=false")
    folder = started(evaluate, f"ckpt={copied}", "trainer=cpu", "data.num_workers=0", *settings)
    summary = summary_of(folder)
    assert summary["test"]["n"] == 6 and summary["missing_training_images"] > 0


def test_the_model_card_has_the_score_and_five_lines_that_work(exported, trained, tmp_path, monkeypatch, make_image):
    card = (exported.folder / "model_card.md").read_text()
    test = summary_of(trained.folder)["test"]
    assert f"Test accuracy {test['accuracy']:.2%} on {test['n']} images (95% CI" in card
    assert "36 images of 3 classes: " in card and "Started from random weights." in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(code.splitlines()) == 5
    make_image(tmp_path / "photo.png", (200, 60, 60), 5, (50, 41))
    Image.open(tmp_path / "photo.png").save(exported.folder / "photo.jpg")
    monkeypatch.chdir(exported.folder)
    names = {}
    exec(code, names)
    (exported.folder / "photo.jpg").unlink()
    assert names["probabilities"].shape == (1, 3) and names["probabilities"].sum() == pytest.approx(1)


def test_triton_reads_the_configuration(exported):
    client = pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    from google.protobuf import text_format

    # The package around it requires gRPC; the schema does not.
    file = Path(client.__file__).parent / "grpc" / "model_config_pb2.py"
    schema = runpy.run_path(str(file))
    config = text_format.Parse((exported.folder / "fish" / "config.pbtxt").read_text(), schema["ModelConfig"]())
    session = onnxruntime.InferenceSession(exported.folder / "fish" / "1" / "model.onnx")
    assert config.name == "fish" and config.backend == "onnxruntime" and config.max_batch_size == 32
    assert [(one.name, list(one.dims)) for one in config.input] == [("images", [-1, -1, 3])]
    assert [one.name for one in config.output] == [one.name for one in session.get_outputs()]


def test_the_configuration_declares_what_the_graph_has(exported):
    text = (exported.folder / "fish" / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(exported.folder / "fish" / "1" / "model.onnx")
    names = [part.name for part in (*session.get_inputs(), *session.get_outputs())]
    assert re.findall(r'^    name: "(\w+)"', text, re.M) == names
    assert text.startswith('name: "fish"\n') and text.count("{") == text.count("}")


def change(**values):
    def changed(folder):
        content = json.loads((folder / "model.json").read_text()) | values
        (folder / "model.json").write_text(json.dumps(content))

    return changed


def altered(folder):
    file = folder / "fish" / "1" / "model.onnx"
    graph = bytearray(file.read_bytes())
    graph[-5] ^= 1
    file.write_bytes(graph)


FAULTS = {
    "altered": (altered, "model.onnx was altered after the export: its SHA-256 is not that in model.json"),
    "missing": (lambda at: shutil.rmtree(at / "fish"), "model.onnx cannot be read (No such file or directory)"),
    "another format": (change(format=2), "is an export of format 2, this version of fish_lightning reads 1"),
    "no format": (change(format=None), "model.json is corrupt or incomplete (format: expected 1)"),
    "not JSON": (lambda at: (at / "model.json").write_text("{"), "model.json is corrupt ("),
    "a list": (lambda at: (at / "model.json").write_text("[]"), "model.json is corrupt or incomplete ("),
    "another folder": (change(name="../fish"), "(name: expected letters, digits, - and _)"),
    "one class": (change(classes=["a"]), "(classes: expected at least two different names)"),
    "calibration": (lambda at: (at / "calibration.json").write_text("{}"), "calibration.json is corrupt (it has no"),
    "a transform": (
        change(preprocessing={"transform": {"transform": {"__class_fullname__": "os.system", "transforms": []}}}),
        "(preprocessing.transform: expected a pipeline of allowed transforms",
    ),
    "no split": (lambda at: (at / "split.csv").unlink(), "ckpt: no file "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_export_that_was_changed_is_refused(copied, fault):
    damage, message = FAULTS[fault]
    damage(copied)
    with pytest.raises(UserError) as error:
        open_model(copied)
    assert message in str(error.value) and len(str(error.value).splitlines()) <= 2


def test_a_label_of_no_class_is_refused(copied):
    with (copied / "split.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    rows[1][1] = "a whale"
    with (copied / "split.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    with pytest.raises(UserError, match="has a label that is none of the classes: a whale"):
        open_model(copied)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ckpt={export}"], "is an export already: pass the checkpoint that it was made from"),
        (["ckpt=absent"], "ckpt: no file absent"),
        (["ckpt={run}", "data.root=absent"], "absent"),
    ],
)
def test_what_cannot_be_exported_is_a_short_error(started, exported, trained, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        started(export, *(word.format(export=exported.folder, run=trained.folder) for word in overrides))
    assert len(str(error.value).splitlines()) <= 5


def test_other_views_than_those_in_the_graph_are_refused(exported):
    with pytest.raises(UserError, match=r"tta=flips: the graph of this export has no views\nexport with tta=flips"):
        open_model(exported.folder, "flips")


def test_an_export_without_the_packages_says_what_to_install(exported, monkeypatch):
    monkeypatch.setattr("fish_lightning.models.exported.find_spec", lambda name: None)
    with pytest.raises(UserError, match="exports require onnx: pip install onnx onnxruntime"):
        open_model(exported.folder)


def test_the_parts_of_an_export_survive_being_sent_to_a_worker(exported):
    import pickle

    trained = open_model(exported.folder)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    expected = trained.transform(image=image)["image"]
    found = pickle.loads(pickle.dumps(trained.transform))(image=image)["image"]
    assert torch.equal(found, expected) and found.shape == (3, 32, 32)
