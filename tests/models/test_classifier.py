"""The classifier: normalized as the pipelines say, smoothed in training alone, whole in its checkpoint."""

import pickle
from functools import partial

import albumentations as A
import lightning as L
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.functional import cross_entropy

from fish_lightning.data.dataset import UNREADABLE
from fish_lightning.errors import UserError
from fish_lightning.models.classifier import FishClassifier, Predictions, load_checkpoint, restore

NAMES = ["bass", "eel", "trout"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NOTEBOOK = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


@pytest.fixture
def make_classifier():
    """``make_classifier(**settings)``: three classes, no data needed."""

    def make(**settings):
        torch.manual_seed(0)
        return FishClassifier(NAMES, **({"name": "shufflenet_v2_x0_5"} | settings))

    return make


@pytest.fixture
def batch():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {"image": images, "label": torch.tensor([0, 1, 2, 1]), "index": torch.tensor([10, 11, 12, 13])}


@pytest.fixture(scope="module")
def root(make_folder, tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), 3, 10)


@pytest.fixture
def run_folder(root, make_data, make_model, make_trainer, tmp_path):
    """One epoch of a real fit: (data, model, path of its last checkpoint)."""
    data = make_data(root)
    model = make_model(data, mean=IMAGENET[0], std=IMAGENET[1])
    last = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="last")
    make_trainer(callbacks=[last]).fit(model, datamodule=data)
    return data, model, tmp_path / "checkpoints" / "last.ckpt"


@pytest.fixture
def logged(monkeypatch, make_trainer):
    """``logged(model)``: what the module logs when its steps are called one by one."""

    def watch(model):
        record = {}
        model.trainer = make_trainer()
        monkeypatch.setattr(model, "log", lambda name, value, **_: record.update({name: value}))
        monkeypatch.setattr(model, "log_dict", lambda values, **_: record.update(values))
        return record

    return watch


@pytest.mark.parametrize(("mean", "std"), [NOTEBOOK, IMAGENET])
@pytest.mark.parametrize("channels_last", [True, False])
def test_normalization_on_the_model_equals_the_pipelines(make_classifier, mean, std, channels_last):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels[:2] = 0, 127, 255  # the ends of the scale
    expected = A.Compose([A.Normalize(mean=mean, std=std, max_pixel_value=255.0), ToTensorV2()])(image=pixels)["image"]
    model = make_classifier(mean=mean, std=std, channels_last=channels_last)
    model.network = nn.Identity()
    images = A.Compose([ToTensorV2()])(image=pixels)["image"].unsqueeze(0)
    assert images.dtype == torch.uint8
    seen = model(images)[0]
    assert seen.dtype == torch.float32
    assert torch.allclose(seen, expected.float(), atol=1e-5, rtol=0)


def test_logits_do_not_depend_on_the_memory_layout(make_classifier, batch):
    contiguous = make_classifier(channels_last=False).eval()
    channels_last = make_classifier(channels_last=True).eval()
    assert channels_last.network.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(contiguous(batch["image"]), channels_last(batch["image"]), atol=1e-5)


def test_label_smoothing_is_in_the_training_loss_alone(make_classifier, batch, logged):
    model = make_classifier(label_smoothing=0.2).eval()  # eval: the batch norm gives one answer
    record = logged(model)
    logits = model(batch["image"])
    loss = model.training_step(batch, 0)
    assert torch.isclose(loss, cross_entropy(logits, batch["label"], label_smoothing=0.2))
    assert not torch.isclose(loss, cross_entropy(logits, batch["label"]))
    for stage, step in (("val", model.validation_step), ("test", model.test_step)):
        with torch.inference_mode():
            step(batch, 0)
        assert torch.isclose(record[f"{stage}/loss"].compute(), cross_entropy(logits, batch["label"]))


def test_scores_are_those_of_all_images_however_they_fall_into_batches(make_classifier, batch, logged):
    model = make_classifier().eval()
    record = logged(model)
    for part in (slice(0, 3), slice(3, 4)):
        model.validation_step({key: value[part] for key, value in batch.items()}, 0)
    logits = model(batch["image"])
    assert torch.isclose(record["val/loss"].compute(), cross_entropy(logits, batch["label"]))
    correct = (logits.argmax(1) == batch["label"]).float().mean()
    assert torch.isclose(record["val/accuracy"].compute(), correct)


def test_unreadable_rows_are_left_out_of_loss_and_scores_and_remembered(make_classifier, batch, logged):
    model = make_classifier().eval()
    record = logged(model)
    damaged = batch | {"label": torch.tensor([0, UNREADABLE, 2, UNREADABLE])}
    logits = model(batch["image"][[0, 2]])
    expected = cross_entropy(logits, torch.tensor([0, 2]))
    assert torch.isclose(model.training_step(damaged, 0), expected)
    with torch.inference_mode():
        model.validation_step(damaged, 0)
        model.test_step(damaged, 0)
    assert torch.isclose(record["val/loss"].compute(), expected)
    assert torch.isclose(record["test/loss"].compute(), expected)
    assert model.test_predictions().rows.tolist() == [10, 12]
    assert model.unreadable == {11, 13}


def test_a_batch_of_which_nothing_could_be_read_is_passed_over(make_classifier, batch, logged):
    model = make_classifier()
    record = logged(model)
    nothing = batch | {"label": torch.full((4,), UNREADABLE)}
    assert model.training_step(nothing, 0) is None
    model.validation_step(nothing, 0)
    model.test_step(nothing, 0)
    assert not record and model.unreadable == {10, 11, 12, 13}
    with pytest.raises(UserError, match="no image was tested"):
        model.test_predictions()


def test_skipped_images_are_counted_through_a_whole_run(make_folder, make_data, make_model, make_trainer, tmp_path):
    make_folder(tmp_path / "photos", 2, 10)
    broken = [tmp_path / "photos" / "kind a" / f"00{i}.png" for i in (2, 5)]
    for file in broken:
        file.write_bytes(b"")
    data = make_data(tmp_path / "photos", on_error="skip")
    model = make_model(data)
    trainer = make_trainer()
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    tested = data.catalog.indices("test")
    assert {str(data.catalog.paths[row]) for row in model.unreadable} == {"kind a/002.png", "kind a/005.png"}
    assert model.test_predictions().rows.tolist() == sorted(set(tested) - model.unreadable)


@pytest.mark.parametrize("algorithm", ["value", "norm"])
def test_a_batch_of_unreadable_images_alone_passes_through_clipping(
    make_folder, make_data, make_model, make_trainer, tmp_path, algorithm
):
    make_folder(tmp_path / "photos", 2, 10)
    for file in (tmp_path / "photos" / "kind a").iterdir():
        file.write_bytes(b"")
    wide = A.Compose([A.Resize(64, 64), ToTensorV2()])  # one of them is enough for a batch
    data = make_data(tmp_path / "photos", on_error="skip", batch_size=2, train_transform=wide)
    trainer = make_trainer(gradient_clip_val=0.1, gradient_clip_algorithm=algorithm)
    trainer.fit(make_model(data), datamodule=data)
    assert trainer.current_epoch == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["value", "norm"])
def test_gradients_are_clipped_for_a_fused_optimizer(root, make_data, make_model, make_trainer, algorithm, precision):
    seen = []

    class Watch(L.Callback):
        def on_before_zero_grad(self, trainer, module, *_):
            grads = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None] or [torch.zeros(1)])
            seen.append(float(grads.abs().max() if algorithm == "value" else grads.norm()))

    data = make_data(root)
    model = make_model(data, optimizer=partial(torch.optim.Adam, lr=0.001, fused=True))
    clip = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    make_trainer(precision=precision, callbacks=[Watch()], limit_train_batches=3, **clip).fit(model, datamodule=data)
    assert max(seen) == pytest.approx(1e-3, rel=1e-3)


def test_predictions_are_probabilities_and_not_a_number_where_nothing_was_read(make_classifier, batch):
    model = make_classifier().eval()
    probabilities = model.predict_step(batch | {"label": torch.tensor([0, UNREADABLE, 0, 0])}, 0)
    assert torch.allclose(probabilities[[0, 2, 3]].sum(1), torch.ones(3))
    assert torch.allclose(probabilities[0], model(batch["image"]).softmax(1)[0])
    assert probabilities[1].isnan().all()


def test_test_predictions_are_in_catalog_order(make_classifier, batch, logged):
    model = make_classifier().eval()
    logged(model)
    backwards = {key: value.flip(0) for key, value in batch.items()}
    for part in (slice(0, 2), slice(2, 4)):
        with torch.inference_mode():
            model.test_step({key: value[part] for key, value in backwards.items()}, 0)
    predictions = model.test_predictions()
    assert predictions.indices.tolist() == [10, 11, 12, 13] and predictions.labels.tolist() == [0, 1, 2, 1]
    assert np.allclose(predictions.probabilities, model(batch["image"]).softmax(1).detach().numpy(), atol=1e-6)
    model.on_test_epoch_start()
    with pytest.raises(UserError):
        model.test_predictions()


def test_predictions_know_their_best_class_and_whether_it_is_right():
    probabilities = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
    predictions = Predictions(np.arange(3), np.array([1, 1, 1]), probabilities)
    assert predictions.preds.tolist() == [1, 0, 1] and predictions.correct.tolist() == [True, False, True]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's, of their initial weights
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_train_on_their_main_logits(name, logged):
    model = FishClassifier(NAMES, name=name)
    logged(model)
    images = torch.zeros(2, 3, 299, 299, dtype=torch.uint8)
    assert model.network.training
    assert model(images).shape == (2, 3)
    assert model.training_step({"image": images, "label": torch.tensor([0, 1]), "index": torch.arange(2)}, 0).ndim == 0


def test_optimizer_and_schedule_are_what_was_handed_over(root, make_data, make_model, make_trainer):
    schedules = []

    def schedule(optimizer, total_steps):
        schedules.append((type(optimizer).__name__, optimizer.param_groups[0]["momentum"], total_steps))
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_steps)

    data = make_data(root)  # 18 images to train on in batches of 4: 5 steps an epoch
    model = make_model(data, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.5), scheduler=schedule)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, datamodule=data)
    assert schedules == [("SGD", 0.5, 10)]
    assert trainer.global_step == 10
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)  # stepped ten times


def test_a_model_made_to_evaluate_cannot_be_trained(root, make_data, make_trainer, make_model):
    data = make_data(root)
    with pytest.raises(UserError, match="made without an optimizer"):
        make_trainer().fit(make_model(data, optimizer=None), datamodule=data)


def test_a_checkpoint_carries_all_that_evaluation_needs_and_loads_weights_only(run_folder):
    data, _, file = run_folder
    checkpoint = torch.load(file, weights_only=True)
    arguments = checkpoint["hyper_parameters"]
    assert list(arguments["class_names"]) == ["kind a", "kind b", "kind c"]
    assert arguments["name"] == "shufflenet_v2_x0_5"
    assert (arguments["mean"], arguments["std"]) == IMAGENET
    assert arguments["eval_transform"] == A.to_dict(data.eval_transform)
    assert not {"optimizer", "scheduler"} & set(arguments)
    assert checkpoint["precision"] == "32-true"
    assert checkpoint["FishDataModule"]["catalog"]["splits"] == data.catalog.splits.tolist()


def test_a_restored_model_answers_as_the_trained_one(run_folder, batch):
    data, model, file = run_folder
    again, transform = restore(load_checkpoint(file), file)
    assert not again.training and again.class_names == data.catalog.classes
    assert torch.equal(again(batch["image"]), model.eval()(batch["image"]))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert torch.equal(transform(image=pixels)["image"], data.eval_transform(image=pixels)["image"])


def message_of(path):
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert 1 <= len(str(error.value).splitlines()) <= 5
    return str(error.value)


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = message_of("best.ckpt")
    assert text.startswith(f"ckpt: no file best.ckpt (seen from {tmp_path})") and "ckpt=" in text
    assert "no file" in message_of(tmp_path)  # a folder is none


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"hello", b"a\nb", b"\x80\x04", b"PK\x03\x04 half an archive"])
def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path, content):
    (tmp_path / "best.ckpt").write_bytes(content)
    assert f"ckpt: {tmp_path / 'best.ckpt'} is not a checkpoint" in message_of(tmp_path / "best.ckpt")


def test_a_checkpoint_cut_off_is_an_error(run_folder):
    file = run_folder[2]
    data = file.read_bytes()
    for share in (0.1, 0.5, 0.95):
        file.write_bytes(data[: int(len(data) * share)])
        assert "is not a checkpoint" in message_of(file)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(2), {"state_dict": {}, "precision": "32"}])
def test_another_projects_checkpoint_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "best.ckpt")
    assert "is not a checkpoint of fish_lightning" in message_of(tmp_path / "best.ckpt")


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("hyper_parameters", {}),
        ("hyper_parameters", [1]),
        ("hyper_parameters", {"class_names": ["a", "b"], "abc": 1}),
        ("state_dict", {}),
        ("state_dict", {"network.conv1.0.weight": torch.zeros(2)}),
        (
            "hyper_parameters",
            {"class_names": ["a", "b", "c"], "name": "shufflenet_v2_x0_5", "eval_transform": {"a": 1}},
        ),
    ],
)
def test_a_checkpoint_whose_parts_are_malformed_is_an_error(run_folder, key, content):
    file = run_folder[2]
    with pytest.raises(UserError) as raised:
        restore(load_checkpoint(file) | {key: content}, file)
    assert str(raised.value).startswith(f"ckpt: {file} is not whole (")
    assert len(str(raised.value).splitlines()) == 1


def test_a_checkpoint_names_no_transform_that_could_read_a_file(run_folder):
    file = run_folder[2]
    checkpoint = load_checkpoint(file)
    text = A.to_dict(A.Compose([A.Resize(8, 8), A.Sequential([A.TextImage("font.ttf")]), A.HueSaturationValue()]))
    with pytest.raises(
        UserError, match=r"^transforms\.eval: HueSaturationValue, TextImage may not stand in a checkpoint\n"
    ):
        restore(checkpoint | {"hyper_parameters": checkpoint["hyper_parameters"] | {"eval_transform": text}}, file)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Malice(tmp_path / "executed")}, tmp_path / "best.ckpt")
    assert "is not a checkpoint (it wants to run " in message_of(tmp_path / "best.ckpt")
    assert "open, and a checkpoint is loaded as data alone)" in message_of(tmp_path / "best.ckpt")
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Malice(tmp_path / "executed"), protocol=2))
    assert "is not a checkpoint" in message_of(tmp_path / "bare.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "size", "fits"), [("inception_v3", 32, False), ("vit_b_16", 32, False), ("inception_v3", 96, True)]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's, of their initial weights
def test_images_of_a_size_that_a_network_does_not_take_are_an_error(name, size, fits):
    model = FishClassifier(NAMES, name=name).eval()
    images = torch.zeros(2, 3, size, size + 8, dtype=torch.uint8)
    if fits:
        assert model(images).shape == (2, 3)
        return
    with pytest.raises(UserError) as raised:
        model(images)
    assert str(raised.value).startswith(f"model.name={name}: it does not take images of {size}x{size + 8} (h x w)")
    assert "transforms.height" in str(raised.value)


def test_a_batch_of_one_small_image_is_an_error(make_classifier):
    with pytest.raises(UserError, match=r"1 image of 32x32 \(h x w\) is too little for a batch to train on"):
        make_classifier()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("setting", [{"lr": -1.0}, {"lr": "abc"}, {"lr": 0.1, "weight_decay": -1}, {"rl": 1}])
def test_a_refused_setting_of_the_optimizer_is_an_error_at_once(setting):
    with pytest.raises(UserError) as raised:
        FishClassifier(NAMES, name="squeezenet1_1", optimizer=partial(torch.optim.Adam, **setting))
    assert str(raised.value).startswith("optimizer: one of its settings is refused (")
    assert all(f"optimizer.{name}={value}" in str(raised.value) for name, value in setting.items())
