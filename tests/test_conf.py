"""The YAML: every choice composes and instantiates; ``experiment=notebook`` is the notebook's recipe."""

import functools
import inspect
import re
from pathlib import Path

import albumentations as A
import cv2
import hydra
import lightning as L
import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import LearningRateMonitor
from omegaconf import OmegaConf
from torch import nn

from fish_lightning.cli import CONF
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.resume.checkpoints import LastCheckpoint
from fish_lightning.resume.early_stopping import ResumableEarlyStopping
from fish_lightning.training.best_checkpoint import BestCheckpoint

FILES = sorted(Path(CONF).rglob("*.yaml"))
GROUPS = [f"{file.parent.relative_to(CONF).as_posix()}={file.stem}" for file in FILES if file.parent != Path(CONF)]


@functools.cache
def composed(*overrides, program="train"):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(program, ["paths.output=OUT", *overrides])


def of_choice(choice):
    """The config with one choice of a group."""
    return composed(choice, "data.root=x", *(["split.path=x"] if choice == "split=file" else []))


def plain(node):
    return OmegaConf.to_container(node, resolve=True)


def parameters():
    return [nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize("choice", [g for g in GROUPS if not g.startswith(("hydra", "transforms=pipeline", "data="))])
def test_every_choice_of_every_group_composes(choice):
    group, _, option = choice.partition("=")
    cfg = of_choice(choice)
    elsewhere = ("gradient_clip", "augment", "mix", "average", "freeze", "balance", "loss", "tune")
    assert group in ("experiment", "sweep", "debug") or group in (*cfg, *elsewhere), option
    for part in ("data", "model", "optimizer", "scheduler", "trainer", "transforms"):
        assert plain(cfg[part])


@pytest.mark.parametrize("choice", [g for g in GROUPS if g.startswith("data=") and g != "data=loader"])
def test_every_data_set_composes_with_its_program(choice):
    program = "evaluate" if choice == "data=checkpoint" else "train"
    required = {"train": ["data.root=photos"], "evaluate": ["ckpt=best.ckpt"]}[program]
    if program == "evaluate":
        cfg = composed(choice, *required, program=program)
        assert cfg.data.source is None and cfg.subset == "test"
        return
    cfg = composed(choice, *required)
    assert plain(cfg.data)["root"] == "photos" and cfg.data.batch_size > 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_every_target_can_be_located(file):
    for target in re.findall(r"_target_:\s*([\w.]+)", file.read_text()):
        if target.startswith(("hydra_plugins.", "optuna.")):
            pytest.importorskip(".".join(target.split(".")[:-1]), reason="the extra is not installed")
        assert callable(hydra.utils.get_object(target)), target


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_every_file_is_commented(file):
    text = file.read_text()
    content = yaml.safe_load(text)
    settings = set(content) - {"defaults", "_target_", "_partial_"}
    # The name of a file with few settings (trainer/cpu.yaml) describes it.
    assert "#" in text or settings <= {"accelerator", "devices", "strategy", "sync_batchnorm", "sweep", "run"}


def targets_in(node):
    """Every dictionary of a config that names a target."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        node = list(node.values())
    for part in node if isinstance(node, list) else []:
        yield from targets_in(part)


WITHOUT_HYDRA = [g for g in GROUPS if not g.startswith(("hydra", "sweep=optuna", "transforms=pipeline", "data="))]


@pytest.mark.parametrize("choice", WITHOUT_HYDRA)
def test_every_key_beside_a_target_is_an_argument_of_it(choice):
    cfg = plain(of_choice(choice))
    found = 0
    for node in targets_in(cfg):
        arguments = inspect.signature(hydra.utils.get_object(node["_target_"])).parameters
        if not any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in arguments.values()):
            keys = {key for key in node if not (key.startswith("_") and key.endswith("_"))}
            assert keys <= set(arguments), node["_target_"]
            found += 1
    assert found > 15


@pytest.mark.parametrize(
    ("choice", "optimizer_class", "settings"),
    [
        ("adam", torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.0001}),
        ("adamw", torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.01}),
        ("sgd", torch.optim.SGD, {"lr": 0.02, "weight_decay": 0.0001, "momentum": 0.9, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"lr": 0.02, "weight_decay": 0.0001, "alpha": 0.99, "momentum": 0.0}),
    ],
)
def test_an_optimizer_is_created_with_its_settings(choice, optimizer_class, settings):
    cfg = composed("data=folder", "data.root=x", f"optimizer={choice}", "optimizer.lr=0.02")
    optimizer = hydra.utils.instantiate(cfg.optimizer)(parameters())
    assert type(optimizer) is optimizer_class
    assert {key: optimizer.defaults[key] for key in settings} == settings


@pytest.mark.parametrize(
    ("choice", "first", "highest", "last"),
    [("onecycle", 0.5 / 25, 0.5, 0.5 / 25 / 1e4), ("cosine", 0.5, 0.5, 0.0), ("none", 0.5, 0.5, 0.5)],
)
def test_a_schedule_spans_the_steps_of_the_run(choice, first, highest, last):
    cfg = composed("data=folder", "data.root=x", f"scheduler={choice}", "optimizer=sgd", "optimizer.lr=0.5")
    optimizer = hydra.utils.instantiate(cfg.optimizer)(parameters())
    schedule = hydra.utils.instantiate(cfg.scheduler)(optimizer, 40)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(first) and max(rates) == pytest.approx(highest)
    assert rates[-1] == pytest.approx(last, abs=0.001)


@pytest.mark.parametrize(
    ("choice", "value", "algorithm"), [("value", 0.1, "value"), ("norm", 1.0, "norm"), ("none", None, None)]
)
def test_gradient_clipping_reaches_the_trainer(choice, value, algorithm):
    trainer = hydra.utils.instantiate(
        composed(f"gradient_clip={choice}", "trainer=cpu").trainer, logger=False, precision="32-true"
    )
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (value, algorithm)


def test_trainer_settings_come_from_the_command_line():
    cfg = composed(
        "trainer=cpu",
        "trainer.max_epochs=3",
        "trainer.precision=64-true",
        "trainer.accumulate_grad_batches=2",
        "trainer.limit_train_batches=5",
        "trainer.deterministic=true",
    )
    trainer = hydra.utils.instantiate(cfg.trainer, logger=False)
    assert (trainer.max_epochs, trainer.accumulate_grad_batches, trainer.limit_train_batches) == (3, 2, 5)
    assert trainer.precision == "64-true" and torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


def test_the_trainer_group_names_every_argument_of_lightnings_trainer():
    arguments = set(inspect.signature(L.Trainer.__init__).parameters) - {"self", "logger", "callbacks"}
    assert arguments <= set(composed().trainer)


@pytest.mark.parametrize(
    ("choice", "settings"),
    [
        ("cpu", {"accelerator": "cpu", "devices": 1}),
        ("gpu", {"accelerator": "gpu", "devices": 1}),
        ("mps", {"accelerator": "mps", "devices": 1}),
        ("ddp", {"accelerator": "auto", "strategy": "ddp", "devices": "auto"}),
        ("default", {"accelerator": "auto", "strategy": "auto", "devices": "auto", "precision": "auto"}),
    ],
)
def test_each_trainer_is_for_its_device(choice, settings):
    trainer = plain(composed(f"trainer={choice}").trainer)
    assert {key: trainer[key] for key in settings} == settings
    assert trainer["use_distributed_sampler"] is False  # the data module has its own sampler


@pytest.mark.parametrize("accelerator", ["gpu", "mps", "cpu"])
def test_the_accelerator_can_be_set_without_choosing_a_trainer(accelerator):
    assert composed(f"trainer.accelerator={accelerator}").trainer.accelerator == accelerator


def test_pinned_memory_and_synced_batch_norm_are_for_cuda_only(monkeypatch):
    composed.cache_clear()  # resolvers ask torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert composed("trainer.accelerator=gpu").data.pin_memory is True
    assert composed("trainer.accelerator=cpu").data.pin_memory is False
    assert composed("trainer=ddp", "trainer.accelerator=gpu").trainer.sync_batchnorm is True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert composed("trainer.accelerator=auto").data.pin_memory is False
    assert composed("trainer=ddp").trainer.sync_batchnorm is False


def test_callbacks_are_instantiated_and_early_stopping_is_a_choice():
    cfg = composed().callbacks
    created = {name: hydra.utils.instantiate(callback) for name, callback in cfg.items() if callback is not None}
    assert cfg.early_stopping is None
    best, last = created["best"], created["last"]
    assert type(best) is BestCheckpoint and (best.monitor, best.mode, best.tie_breaker) == (
        "val/accuracy",
        "max",
        "val/loss",
    )
    assert best.dirpath.endswith("OUT/checkpoints") and best.filename == "best"
    assert (
        type(last) is LastCheckpoint
        and last.every_n_steps == 200
        and str(last.path).endswith("OUT/checkpoints/last.ckpt")
    )
    assert type(created["learning_rate"]) is LearningRateMonitor and created["learning_rate"].logging_interval == "step"
    early = hydra.utils.instantiate(composed("callbacks=early_stopping").callbacks.early_stopping)
    assert type(early) is ResumableEarlyStopping and (early.monitor, early.mode, early.patience) == (
        "val/loss",
        "min",
        3,
    )
    assert set(composed("callbacks=early_stopping").callbacks) == set(cfg)


@pytest.mark.parametrize("setting", ["seed=7", "model.label_smoothing=0.1", "optimizer.weight_decay=0.3", "ckpt=last"])
def test_the_keys_that_stay_can_be_set(setting):
    key, _, value = setting.partition("=")
    assert str(OmegaConf.select(composed(setting), key)) == value


def test_the_default_normalization_is_that_of_the_pretrained_weights():
    cfg = composed("data=folder", "data.root=x")
    assert (cfg.model.name, cfg.model.weights) == ("resnet34", "imagenet")
    model = FishClassifier(["a", "b"], cfg.model.name, mean=cfg.model.mean, std=cfg.model.std)
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_automatic_augmentation_draws_one_operation_of_fourteen_for_each_image():
    cfg = composed("transforms=auto", "transforms.height=32", "transforms.width=48")
    train = hydra.utils.instantiate(cfg.transforms.train)
    drawn = next(step for step in train.transforms if isinstance(step, A.OneOf))
    assert len(drawn.transforms) == 14 and {step.p for step in drawn.transforms} == {1.0}
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for step in drawn.transforms:
        changed = step(image=image)["image"]
        assert (changed.shape, changed.dtype) == (image.shape, image.dtype), step
    recorded = A.Compose([drawn], seed=0, save_applied_params=True)
    applied = [[name for name, _ in recorded(image=image)["applied_transforms"]] for _ in range(60)]
    assert {len(names) for names in applied} == {1} and len({names[0] for names in applied}) > 8


def test_notebook_transforms_are_the_notebooks():
    cfg = composed("transforms=notebook", "data=folder", "data.root=x")
    train, evaluation = (hydra.utils.instantiate(cfg.data[key]) for key in ("train_transform", "eval_transform"))
    assert [type(step).__name__ for step in train] == [
        "Resize",
        "Rotate",
        "HorizontalFlip",
        "VerticalFlip",
        "ToTensorV2",
    ]
    resize, rotate, horizontal, vertical, _ = train
    assert (resize.height, resize.width, resize.p) == (160, 240, 1)
    assert (tuple(rotate.limit), rotate.p) == ((-35, 35), 1.0)
    assert rotate.border_mode == cv2.BORDER_REFLECT_101
    assert (horizontal.p, vertical.p) == (0.5, 0.1)
    assert [type(step).__name__ for step in evaluation] == ["Resize", "ToTensorV2"]
    assert (evaluation[0].height, evaluation[0].width) == (160, 240)
    # Normalization (mean 0, std 1, as albumentations divides by 255) is done by the model.
    assert plain(cfg.model.mean) == [0, 0, 0] and plain(cfg.model.std) == [1, 1, 1]


def test_notebook_transforms_and_the_model_compute_the_notebooks_input():
    cfg = composed("transforms=notebook", "data=folder", "data.root=x")
    pixels = np.random.default_rng(0).integers(0, 256, (445, 590, 3), dtype=np.uint8)
    notebook = A.Compose([A.Resize(160, 240), A.Normalize((0, 0, 0), (1, 1, 1)), A.pytorch.ToTensorV2()])
    model = FishClassifier(["a", "b"], "shufflenet_v2_x0_5", mean=plain(cfg.model.mean), std=plain(cfg.model.std))
    model.network = nn.Identity()
    ours = model(hydra.utils.instantiate(cfg.transforms.eval)(image=pixels)["image"].unsqueeze(0))[0]
    assert ours.shape == (3, 160, 240)
    assert torch.allclose(ours, notebook(image=pixels)["image"], atol=1e-5)


def test_the_notebooks_flips_have_their_probabilities():
    train = hydra.utils.instantiate(composed("transforms=notebook").transforms.train)
    marked = np.zeros((160, 240, 3), np.uint8)
    marked[:80, :120] = 255  # the upper left quarter
    flipped = {"h": 0, "v": 0}
    train = A.Compose([step for step in train if type(step).__name__ != "Rotate"])
    for seed in range(1000):
        train.set_random_seed(seed)
        corners = train(image=marked)["image"][0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist()
        corner = corners.index(255)
        flipped["h"] += corner in (1, 3)
        flipped["v"] += corner in (2, 3)
    assert abs(flipped["h"] - 500) < 65 and abs(flipped["v"] - 100) < 40  # four standard deviations


def test_experiment_notebook_is_the_reference_recipe():
    cfg = composed("experiment=notebook", "data.root=photos")
    assert cfg.model.name == "resnet34" and cfg.model.weights == "imagenet"
    assert plain(cfg.model.mean) == [0, 0, 0] and plain(cfg.model.std) == [1, 1, 1]
    assert cfg.model.label_smoothing == 0.0
    assert cfg.seed == 42 and cfg.data.seed == 42
    assert plain(cfg.split) == {
        "_target_": "fish_lightning.data.splits.random_split",
        "_partial_": True,
        "test": 0.15,
        "val": 0.10,
    }
    assert plain(cfg.data.split) == plain(cfg.split)
    assert cfg.data.batch_size == 128
    assert cfg.data.source._target_ == "fish_lightning.data.sources.ArchiveSource"
    assert plain(cfg.data.train_transform) == plain(composed("transforms=notebook", "data=fish").transforms.train)
    assert plain(cfg.optimizer) == {
        "_target_": "fish_lightning.models.optimizers.Adam",
        "_partial_": True,
        "lr": 0.01,
        "weight_decay": 0.0001,
        "fused": True,
        "layer_decay": None,
        "decay_norms": True,
    }
    assert cfg.scheduler._target_ == "fish_lightning.models.schedules.onecycle"
    assert cfg.scheduler.max_lr == 0.01
    assert cfg.trainer.max_epochs == 6
    assert cfg.trainer.precision == "32-true"
    assert (cfg.trainer.gradient_clip_val, cfg.trainer.gradient_clip_algorithm) == (0.1, "value")
    assert cfg.trainer.accumulate_grad_batches == 1
    assert cfg.validate_first is True  # the notebook's first history row


def test_experiment_notebook_trains_on_plain_cross_entropy():
    cfg = composed("experiment=notebook", "data.root=photos", "model.weights=null", "model.name=shufflenet_v2_x0_5")
    model = hydra.utils.instantiate(cfg.model, class_names=["a", "b"])
    assert isinstance(model.train_criterion, nn.CrossEntropyLoss)
    assert model.train_criterion.label_smoothing == 0.0 and model.train_criterion.weight is None


@pytest.mark.parametrize("override", ["model.weights=null", "trainer.precision=bf16-mixed", "seed=1"])
def test_the_command_line_overrides_an_experiment(override):
    key, _, value = override.partition("=")
    found = OmegaConf.select(composed("experiment=notebook", override), key)
    assert str(found) == {"null": "None"}.get(value, value)


class Rates(L.Callback):
    """Records each step's learning rate, and its largest gradient entry before and after clipping."""

    def __init__(self):
        self.rates, self.gradients, self.clipped = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.gradients.append(largest_gradient(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.clipped.append(largest_gradient(pl_module))


def largest_gradient(module):
    return max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)


def test_a_fit_of_experiment_notebook_follows_onecyclelr_driven_by_hand(make_folder, make_data, make_trainer, tmp_path):
    cfg = composed("experiment=notebook", "model.weights=null", "model.name=shufflenet_v2_x0_5")
    data = make_data(make_folder(tmp_path / "photos", 2, 10))  # 12 images to train on in batches of 4
    recorder = Rates()
    model = hydra.utils.instantiate(
        cfg.model,
        class_names=data.catalog.classes,
        eval_transform=A.to_dict(data.eval_transform),
        optimizer=hydra.utils.instantiate(cfg.optimizer),
        scheduler=hydra.utils.instantiate(cfg.scheduler),
    )
    trainer = make_trainer(
        max_epochs=cfg.trainer.max_epochs,
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        gradient_clip_algorithm=cfg.trainer.gradient_clip_algorithm,
        callbacks=[recorder],
    )
    trainer.fit(model, datamodule=data)

    optimizer = torch.optim.Adam(parameters(), lr=0.01, weight_decay=1e-4)
    by_hand = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, epochs=6, steps_per_epoch=3)
    expected = []
    for _ in range(18):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        by_hand.step()
    assert len(recorder.rates) == 18
    assert recorder.rates == expected
    assert 0.0099 < max(expected) < 0.01  # the peak lies between two of the 18 steps
    assert max(recorder.gradients) > 0.1 and max(recorder.clipped) == pytest.approx(0.1)  # clipped by value
    assert type(trainer.optimizers[0]) is torch.optim.Adam
    assert trainer.optimizers[0].param_groups[0]["betas"] == optimizer.param_groups[0]["betas"]  # cycled with the rate


@pytest.mark.parametrize(("precision", "fused"), [("auto", True), ("32-true", True), ("16-mixed", False)])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizers_are_fused_where_no_gradient_is_scaled(optimizer, precision, fused):
    assert composed(f"optimizer={optimizer}", f"trainer.precision={precision}").optimizer.fused is fused
