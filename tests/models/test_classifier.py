"""The classifier: its normalization, losses, metrics and predictions."""

from functools import partial

import albumentations as A
import lightning as L
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from torch import nn
from torch.nn.functional import cross_entropy

from fish_lightning.data.dataset import UNREADABLE
from fish_lightning.errors import UserError
from fish_lightning.models.classifier import FishClassifier

NAMES = ["bass", "eel", "trout"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NOTEBOOK = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


@pytest.fixture
def make_classifier():
    """``make_classifier(**settings)``: a classifier of three classes, without data."""

    def make(**settings):
        torch.manual_seed(0)
        return FishClassifier(NAMES, **({"name": "shufflenet_v2_x0_5"} | settings))

    return make


@pytest.fixture(scope="module")
def root(make_folder, tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), 3, 10)


@pytest.fixture
def logged(monkeypatch, make_trainer):
    """``logged(model)``: a dictionary of what the module logs."""

    def watch(model):
        record = {}
        model.trainer = make_trainer()
        monkeypatch.setattr(model, "log", lambda name, value, **_: record.update({name: value}))
        monkeypatch.setattr(model, "log_dict", lambda values, **_: record.update(values))
        return record

    return watch


@pytest.mark.parametrize(("mean", "std"), [NOTEBOOK, IMAGENET])
@pytest.mark.parametrize("channels_last", [True, False])
def test_normalization_in_the_model_equals_that_of_a_pipeline(make_classifier, mean, std, channels_last):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels[:2] = 0, 127, 255  # the ends of the range
    expected = A.Compose([A.Normalize(mean=mean, std=std, max_pixel_value=255.0), ToTensorV2()])(image=pixels)["image"]
    model = make_classifier(mean=mean, std=std, channels_last=channels_last)
    model.network = nn.Identity()
    images = A.Compose([ToTensorV2()])(image=pixels)["image"].unsqueeze(0)
    assert images.dtype == torch.uint8
    normalized = model(images)[0]
    assert normalized.dtype == torch.float32
    assert torch.allclose(normalized, expected.float(), atol=1e-5, rtol=0)


def test_logits_do_not_depend_on_the_memory_format(make_classifier, batch):
    contiguous = make_classifier(channels_last=False).eval()
    channels_last = make_classifier(channels_last=True).eval()
    assert channels_last.network.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(contiguous(batch["image"]), channels_last(batch["image"]), atol=1e-5)


def test_label_smoothing_applies_to_the_training_loss_only(make_classifier, batch, logged):
    model = make_classifier(label_smoothing=0.2).eval()  # eval: batch norm does not depend on the batch
    record = logged(model)
    logits = model(batch["image"])
    loss = model.training_step(batch, 0)
    assert torch.isclose(loss, cross_entropy(logits, batch["label"], label_smoothing=0.2))
    assert not torch.isclose(loss, cross_entropy(logits, batch["label"]))
    for stage, step in (("val", model.validation_step), ("test", model.test_step)):
        with torch.inference_mode():
            step(batch, 0)
        assert torch.isclose(record[f"{stage}/loss"].compute(), cross_entropy(logits, batch["label"]))


def test_scores_do_not_depend_on_the_batch_size(make_classifier, batch, logged):
    model = make_classifier().eval()
    record = logged(model)
    for part in (slice(0, 3), slice(3, 4)):
        model.validation_step({key: value[part] for key, value in batch.items()}, 0)
    logits = model(batch["image"])
    assert torch.isclose(record["val/loss"].compute(), cross_entropy(logits, batch["label"]))
    correct = (logits.argmax(1) == batch["label"]).float().mean()
    assert torch.isclose(record["val/accuracy"].compute(), correct)


def test_unreadable_images_are_excluded_from_loss_and_scores_and_recorded(make_classifier, batch, logged):
    model = make_classifier().eval()
    record = logged(model)
    partly_unreadable = batch | {"label": torch.tensor([0, UNREADABLE, 2, UNREADABLE])}
    logits = model(batch["image"][[0, 2]])
    expected = cross_entropy(logits, torch.tensor([0, 2]))
    assert torch.isclose(model.training_step(partly_unreadable, 0), expected)
    with torch.inference_mode():
        model.validation_step(partly_unreadable, 0)
        model.test_step(partly_unreadable, 0)
    assert torch.isclose(record["val/loss"].compute(), expected)
    assert torch.isclose(record["test/loss"].compute(), expected)
    assert model.test_predictions().indices.tolist() == [10, 12]
    assert model.unreadable == {11, 13}


def test_batch_without_a_readable_image_is_skipped(make_classifier, batch, logged):
    model = make_classifier()
    record = logged(model)
    unreadable = batch | {"label": torch.full((4,), UNREADABLE)}
    assert model.training_step(unreadable, 0) is None
    model.validation_step(unreadable, 0)
    model.test_step(unreadable, 0)
    assert not record and model.unreadable == {10, 11, 12, 13}
    single = batch | {"label": torch.tensor([0, UNREADABLE, UNREADABLE, UNREADABLE])}
    assert model.training_step(single, 0) is None  # too few for batch normalization
    model.eval().validation_step(single, 0)
    assert record
    with pytest.raises(UserError, match="none of the images could be read"):
        model.test_predictions()


def test_unreadable_images_are_recorded_in_a_run(make_folder, make_data, make_model, make_trainer, tmp_path):
    make_folder(tmp_path / "photos", 2, 10)
    broken = [tmp_path / "photos" / "class a" / f"00{i}.png" for i in (2, 5)]
    for file in broken:
        file.write_bytes(b"")
    data = make_data(tmp_path / "photos", on_error="skip")
    model = make_model(data)
    trainer = make_trainer()
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    tested = data.catalog.indices("test")
    assert {str(data.catalog.paths[index]) for index in model.unreadable} == {"class a/002.png", "class a/005.png"}
    assert model.test_predictions().indices.tolist() == sorted(set(tested) - model.unreadable)


@pytest.mark.parametrize("algorithm", ["value", "norm"])
def test_batch_of_unreadable_images_is_not_clipped(
    make_folder, make_data, make_model, make_trainer, tmp_path, algorithm
):
    make_folder(tmp_path / "photos", 2, 10)
    for file in (tmp_path / "photos" / "class a").iterdir():
        file.write_bytes(b"")
    wide = A.Compose([A.Resize(64, 64), ToTensorV2()])  # large enough for a batch of one
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


def test_predict_step_returns_indices_labels_logits_and_features(make_classifier, batch):
    model = make_classifier().eval()
    unlabeled = batch | {"label": torch.tensor([0, UNREADABLE, 0, 0])}
    with torch.inference_mode():
        indices, labels, logits, features = model.predict_step(unlabeled, 0)
        expected = model(batch["image"]).numpy()
    assert indices.tolist() == batch["index"].tolist() and labels.tolist() == unlabeled["label"].tolist()
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    head = model.network.fc
    computed = features.astype(np.float32) @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(computed, logits, atol=0.01)  # features are float16


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


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's, about initial weights
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_train_on_their_main_logits(name, logged):
    model = FishClassifier(NAMES, name=name)
    logged(model)
    images = torch.zeros(2, 3, 299, 299, dtype=torch.uint8)
    assert model.network.training
    assert model(images).shape == (2, 3)
    assert model.training_step({"image": images, "label": torch.tensor([0, 1]), "index": torch.arange(2)}, 0).ndim == 0


def test_optimizer_and_schedule_are_those_passed(root, make_data, make_model, make_trainer):
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


def test_model_without_an_optimizer_cannot_be_trained(root, make_data, make_trainer, make_model):
    data = make_data(root)
    with pytest.raises(UserError, match="created without an optimizer"):
        make_trainer().fit(make_model(data, optimizer=None), datamodule=data)


@pytest.mark.parametrize(
    ("name", "size", "fits"), [("inception_v3", 32, False), ("vit_b_16", 32, False), ("inception_v3", 96, True)]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's, about initial weights
def test_image_size_that_does_not_fit_the_network_is_an_error(name, size, fits):
    model = FishClassifier(NAMES, name=name).eval()
    images = torch.zeros(2, 3, size, size + 8, dtype=torch.uint8)
    if fits:
        assert model(images).shape == (2, 3)
        return
    with pytest.raises(UserError) as raised:
        model(images)
    assert str(raised.value).startswith(
        f"model.name={name}: images of {size}x{size + 8} (h x w) do not fit this network"
    )
    assert "transforms.height" in str(raised.value)


def test_batch_of_one_small_image_is_an_error(make_classifier):
    with pytest.raises(UserError, match=r"a training batch of 1 image of 32x32 \(h x w\) is too small"):
        make_classifier()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_images_that_leave_a_batch_of_one_are_trained_on_and_resumed_exactly(
    make_folder, make_data, make_model, make_trainer, stop_at, tmp_path
):
    def fit(callbacks=(), ckpt=None):
        data = make_data(root)
        assert data.catalog.counts()["train"] == 9  # steps of 4 and 5
        model = make_model(data)
        trainer = make_trainer(max_epochs=2, callbacks=list(callbacks), limit_val_batches=0)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
        assert trainer.global_step == 4
        return list(model.state_dict().values())

    root = make_folder(tmp_path / "photos", 3, 5)
    whole = fit()
    with pytest.raises(stop_at.error):
        fit([stop_at(3, tmp_path / "last.ckpt")])
    assert all(map(torch.equal, whole, fit(ckpt=tmp_path / "last.ckpt")))


@pytest.mark.parametrize("setting", [{"lr": -1.0}, {"lr": "abc"}, {"lr": 0.1, "weight_decay": -1}, {"rl": 1}])
def test_invalid_setting_of_the_optimizer_is_an_immediate_error(setting):
    with pytest.raises(UserError) as raised:
        FishClassifier(NAMES, name="squeezenet1_1", optimizer=partial(torch.optim.Adam, **setting))
    assert str(raised.value).startswith("optimizer: invalid setting (")
    assert all(f"optimizer.{name}={value}" in str(raised.value) for name, value in setting.items())


def test_the_initial_weights_do_not_depend_on_the_optimizer(make_data, make_model, tiny_data):
    data = make_data(tiny_data)
    one, other = (make_model(data, optimizer=optimizer).state_dict() for optimizer in (None, torch.optim.Adam))
    assert all(torch.equal(one[name], other[name]) for name in one)
