"""``FishClassifier``: a network with its loss, metrics and optimization, as Lightning runs it.

Class names and the evaluation transform travel in the checkpoint: evaluation and prediction need nothing else.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import albumentations as A
import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Accuracy, F1Score, MeanMetric, Metric, MetricCollection

from fish_lightning.data.dataset import UNREADABLE
from fish_lightning.errors import UserError, first_line
from fish_lightning.models.network import build_network

Batch = dict[str, Any]
T = TypeVar("T")

#: What torch and torchvision say where a network shrinks an image to nothing, or is made for one size alone.
_WRONG_SIZE = (
    "Kernel size can't be greater than actual input size",
    "Output size is too small",
    "Wrong image height",
    "Wrong image width",
    "is invalid for input of size",
)

#: Transforms that evaluation may want, none of which reads a file or keeps a function.
EVALUATION = {
    *("Compose", "Sequential", "NoOp", "Resize", "LongestMaxSize", "SmallestMaxSize", "CenterCrop", "Crop"),
    *("CropAndPad", "Pad", "PadIfNeeded", "Transpose", "HorizontalFlip", "VerticalFlip", "ToGray", "ToRGB", "ToFloat"),
    *("FromFloat", "Normalize", "Equalize", "AutoContrast", "CLAHE", "InvertImg", "ToTensorV2"),
}


@dataclass(frozen=True)
class Predictions:
    """What a model said of N labelled images.

    Attributes:
        rows: (N,) int64, row numbers in the catalog.
        labels: (N,) int64, the truth.
        probabilities: (N, C) float32, 0 to 1.
    """

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @property
    def preds(self) -> npt.NDArray[np.int64]:
        """(N,) the most probable class."""
        preds: npt.NDArray[np.int64] = self.probabilities.argmax(1)
        return preds

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the most probable class is the true one."""
        return np.equal(self.preds, self.labels)


class TrainingLoss(Metric):
    """Mean loss of the images of an epoch.

    A loss that is no number stops the run or is passed over (``callbacks.not_a_number``); the mean is of the others.
    torchmetrics' ``MeanMetric`` looks for such numbers on the host, which then waits for the device at each step.
    """

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Take the mean loss of so many images into account."""
        finite = loss.isfinite()
        self.total += torch.where(finite, loss, 0.0) * images
        self.images += finite * images

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.images


class FishClassifier(L.LightningModule):
    """An image classifier over a torchvision backbone.

    Args:
        class_names: in label order.
        name: torchvision model name.
        weights: ``"imagenet"``, a file, or None (see :func:`fish_lightning.models.network.build_network`).
        label_smoothing: 0 to 1, of the training loss; validation and test report plain cross-entropy.
        channels_last: memory layout of the convolutions; faster on CPUs and recent GPUs, equal in result but rounding.
        compile: fuse the network's operations with ``torch.compile`` when it is first used.
        mean: (3,) subtracted from pixels on the scale 0 to 1.
        std: (3,) divided by, after that.
        eval_transform: ``albumentations.to_dict`` of the evaluation pipeline.
        optimizer: makes an optimizer from parameters; not needed to evaluate.
        scheduler: makes a schedule from (optimizer, total number of steps), stepped each batch; None: constant.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        name: str = "resnet34",
        weights: str | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
        compile: bool = False,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        eval_transform: dict[str, Any] | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        _require_plain(eval_transform or {})
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)
        self.class_names = tuple(class_names)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        if optimizer is not None:
            _made("optimizer", optimizer, [nn.Parameter(torch.zeros(1))])  # refused here, before a minute is lost
        self.network = build_network(name, len(self.class_names), weights)
        if channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()  # in place: names of weights stay
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.unreadable: set[int] = set()  # rows of the catalog
        self._train_loss: list[tuple[float, float]] | None = None  # sum and images of each process
        self._begun: tuple[dict[str, Any], dict[str, Any]] | None = None  # states of optimizer and schedule
        self._tested: list[tuple[npt.NDArray[Any], ...]] = []
        self.configure_losses()
        self.configure_metrics()

    def configure_losses(self) -> None:
        """Smoothed cross-entropy to train on, plain cross-entropy to report."""
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])
        self.criterion = nn.CrossEntropyLoss(reduction="none")

    def configure_metrics(self) -> None:
        """One collection a stage; all sums are exact however the images fall into batches."""
        # Checks of labels and logits would make a GPU wait at each batch.
        task: dict[str, Any] = {"task": "multiclass", "num_classes": len(self.class_names), "validate_args": False}
        self.train_loss, self.val_loss, self.test_loss = TrainingLoss(), MeanMetric(), MeanMetric()
        scores = MetricCollection(
            {"accuracy": Accuracy(average="micro", **task), "macro_f1": F1Score(average="macro", **task)}
        )
        self.val_metrics, self.test_metrics = scores.clone(prefix="val/"), scores.clone(prefix="test/")

    def on_fit_start(self) -> None:
        """Renew the metrics' states: those of the validation before are inference tensors, which no fit may change."""
        self.val_loss.reset()
        self.val_metrics.reset()

    def on_train_start(self) -> None:
        """Go on with the mean loss of the epoch that this process was in the middle of."""
        if self._train_loss is not None:
            total, images = self._train_loss[self.trainer.global_rank]
            self.train_loss.total.fill_(total)
            self.train_loss.images.fill_(images)
            self._train_loss = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what an evaluation or a resumed run cannot know.

        The precision, so that an evaluation computes what the end of the training run did, the sums that the training
        loss of an epoch is the mean of, by process, and the unreadable images.
        """
        checkpoint["precision"] = str(self.trainer.precision)
        checkpoint["train_loss"] = gathered((float(self.train_loss.total), float(self.train_loss.images)))
        checkpoint["unreadable"] = sorted(set().union(*gathered(self.unreadable)))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what a resumed run goes on with.

        Raises:
            UserError: the run trains another network.
        """
        begun = checkpoint["hyper_parameters"]["name"]
        if begun != self.hparams["name"]:
            raise UserError(
                f"ckpt: the run trains {begun}, and this command says model.name={self.hparams['name']}\n"
                f"go on with model.name={begun}, or leave ckpt out to start another run"
            )
        self.unreadable |= set(checkpoint.get("unreadable", ()))
        self._train_loss = checkpoint.get("train_loss")
        if checkpoint.get("optimizer_states"):
            self._begun = (checkpoint["optimizer_states"][0], next(iter(checkpoint["lr_schedulers"]), {}))

    def configure_optimizers(self) -> Any:
        """Optimizer and per-step schedule; the total comes from the run itself.

        Raises:
            UserError: the module was made without an optimizer, a setting is refused (Lightning finds here that
                ``val_check_interval`` is too large), or the run that is resumed began with another optimizer or
                schedule.
        """
        if self.make_optimizer is None:
            raise UserError("FishClassifier was made without an optimizer: pass one to train it.")
        optimizer = _made("optimizer", self.make_optimizer, self.parameters())
        if self.make_scheduler is None:
            return optimizer
        try:
            steps = int(self.trainer.estimated_stepping_batches)
        except ValueError as error:
            raise UserError("trainer: " + " ".join(str(error).split())[:400]) from None
        schedule = _made("scheduler", self.make_scheduler, optimizer, steps)
        if self._begun is not None:
            _require_same(*self._begun, optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; a batch that is passed over leaves no gradients, which torch refuses to clip.

        For a fused optimizer Lightning refuses to, since it may take a gradient scale away in its step; bf16 has none.
        """
        if all(parameter.grad is None for parameter in self.parameters()):
            return
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            super(MixedPrecision, plugin).clip_gradients(optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W), uint8: normalization happens here, on the model's device."""
        images = ((images.float() / 255.0 - self.mean) / self.std).to(self.mean.dtype)  # the weights' (bf16-true)
        if self.hparams["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            output = self.network(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            self._explain_size(error, len(images), *images.shape[2:])
            raise
        # inception_v3 and googlenet answer with a tuple of main and auxiliary logits while training.
        return output if isinstance(output, Tensor) else output[0]

    def _explain_size(self, error: Exception, n: int, height: int, width: int) -> None:
        """Tell a user what images the network refuses.

        Raises:
            UserError: where ``error`` is about their size.
        """
        name = self.hparams["name"]
        if "Expected more than 1 value per channel when training" in str(error):
            raise UserError(
                f"model.name={name}: {n} image of {height}x{width} (h x w) is too little for a batch to train on\n"
                "choose another data.batch_size, so that no batch of one image is left over, or larger images"
            ) from None
        if any(words in str(error) for words in _WRONG_SIZE):
            raise UserError(
                f"model.name={name}: it does not take images of {height}x{width} (h x w)\n"
                "choose other transforms.height and transforms.width (all take 224 but inception_v3: 299), or another "
                "network"
            ) from None

    def on_train_epoch_start(self) -> None:
        """A new epoch, a new mean; not called where a run goes on in the middle of one."""
        self.train_loss.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Loss of one batch; a batch of which no image could be read is passed over."""
        images, labels, _ = self._readable(batch)
        if len(labels) == 0:
            # The other processes of a run wait for this one's gradients: none, of the black images in their place.
            return self(batch["image"]).sum() * 0 if self.trainer.world_size > 1 else None
        loss: Tensor = self.train_criterion(self(images), labels)
        self.train_loss.update(loss.detach(), len(labels))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        images, labels, _ = self._readable(batch)
        if len(labels) == 0:
            return
        logits = self(images).float()
        self.val_loss.update(self.criterion(logits, labels))
        self.val_metrics.update(logits, labels)
        self.log("val/loss", self.val_loss, on_epoch=True, batch_size=len(labels))
        self.log_dict(self.val_metrics, on_epoch=True, batch_size=len(labels))

    def on_test_epoch_start(self) -> None:
        """Forget the predictions of an earlier test."""
        self._tested.clear()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics and keep the probabilities for :meth:`test_predictions`."""
        images, labels, rows = self._readable(batch)
        if len(labels) == 0:
            return
        logits = self(images).float()
        self.test_loss.update(self.criterion(logits, labels))
        self.test_metrics.update(logits, labels)
        self.log("test/loss", self.test_loss, on_epoch=True, batch_size=len(labels))
        self.log_dict(self.test_metrics, on_epoch=True, batch_size=len(labels))
        self._tested.append(tuple(part.cpu().numpy() for part in (rows, labels, logits.softmax(1))))

    def test_predictions(self) -> Predictions:
        """What the last test predicted, of all processes together, in catalog order.

        Raises:
            UserError: no image was tested.
        """
        parts = [part for parts in gathered(self._tested) for part in parts]
        if not parts:
            raise UserError("no image was tested: none of the test split could be read.")
        rows, labels, probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(rows, kind="stable")
        return Predictions(rows[order], labels[order], probabilities[order])

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities (N, C) of a batch of images; not-a-number for one that could not be read."""
        probabilities: Tensor = self(batch["image"]).float().softmax(1)
        return torch.where((batch["label"] == UNREADABLE).unsqueeze(1), torch.nan, probabilities)

    def _readable(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and rows without those that could not be read, which are remembered."""
        images, labels, rows = batch["image"], batch["label"], batch["row"]
        if batch.get("whole"):  # known before the batch went to the device, which need not be waited for
            return images, labels, rows
        readable = labels != UNREADABLE
        if bool(readable.all()):
            return images, labels, rows
        self.unreadable.update(rows[~readable].tolist())
        return images[readable], labels[readable], rows[readable]


def _require_plain(transform: dict[str, Any]) -> None:
    """Refuse an evaluation pipeline that a checkpoint may not name: what reads it makes the transforms by their names.

    Args:
        transform: ``albumentations.to_dict`` of it.

    Raises:
        UserError: it holds another transform than ``EVALUATION``.
    """

    def names(node: dict[str, Any]) -> Iterator[str]:
        yield str(node["__class_fullname__"])
        for child in node.get("transforms", ()):
            yield from names(child)

    refused = sorted(set(names(transform["transform"])) - EVALUATION) if transform else []
    if refused:
        raise UserError(
            f"transforms.eval: {', '.join(refused)} may not stand in a checkpoint\n"
            f"it holds {', '.join(sorted(EVALUATION))}"
        )


def _made(group: str, make: Callable[..., T], *arguments: Any) -> T:
    """What ``make`` makes of the arguments.

    Raises:
        UserError: it refuses a setting that the group of that name holds.
    """
    try:
        return make(*arguments)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        settings = ", ".join(f"{group}.{name}={value}" for name, value in getattr(make, "keywords", {}).items())
        raise UserError(f"{group}: one of its settings is refused ({first_line(error)})\nthey are {settings}") from None


def _require_same(
    optimizer_state: dict[str, Any], schedule_state: dict[str, Any], optimizer: Optimizer, schedule: LRScheduler
) -> None:
    """Refuse to go on with another kind of optimizer or schedule, or with one made for another number of steps.

    Raises:
        UserError: with what the run began with.
    """
    now = schedule.state_dict()
    if now.keys() != schedule_state.keys():
        raise UserError("ckpt: the run began with another scheduler\ngo on with the overrides that it was started with")
    for key in ("total_steps", "T_max"):  # of OneCycleLR, of CosineAnnealingLR
        if key in now and now[key] != schedule_state[key]:
            raise UserError(
                f"ckpt: the run's schedule was made for {schedule_state[key]} steps, and this command asks for "
                f"{now[key]}\n"
                "go on with its trainer.max_epochs and data.batch_size; scheduler=none alone has no end"
            )
    if optimizer.param_groups[0].keys() != optimizer_state["param_groups"][0].keys():
        raise UserError("ckpt: the run began with another optimizer\ngo on with the overrides that it was started with")


def gathered(value: T) -> list[T]:
    """``value`` of every process, in rank order; of this one alone where there is no process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint, weights-only: nothing in it is executed.

    Raises:
        UserError: no file, or no checkpoint of this project.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"ckpt: no file {file} (seen from {Path.cwd()})\ngive one with ckpt=…/checkpoints/best.ckpt")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes make torch's unpickler raise whatever it meets
        named = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it wants to run {named[1]}, and a checkpoint is loaded as data alone" if named else first_line(error)
        raise UserError(f"ckpt: {file} is not a checkpoint ({why})") from None
    needed = {"state_dict", "hyper_parameters", "FishDataModule", "precision"}
    if not isinstance(checkpoint, dict) or not needed <= set(checkpoint):
        raise UserError(
            f"ckpt: {file} is not a checkpoint of fish_lightning\nexpected …/checkpoints/best.ckpt of a run"
        )
    return checkpoint


@contextmanager
def well_formed(file: str | Path) -> Iterator[None]:
    """Say it in one line where a checkpoint has the keys of one, and in them what no run wrote.

    Raises:
        UserError: in place of what the reader met.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"ckpt: {file} is not whole ({type(error).__name__}: {first_line(error)})") from None


def restore(checkpoint: dict[str, Any], file: str | Path) -> tuple[FishClassifier, A.Compose]:
    """The trained classifier and its evaluation transform, from what :func:`load_checkpoint` read from ``file``.

    ``albumentations.from_dict`` makes nothing but transforms of ``EVALUATION``.

    Raises:
        UserError: its content is malformed.
    """
    with well_formed(file):
        arguments = dict(checkpoint["hyper_parameters"]) | {"weights": None, "compile": False}
        model = FishClassifier(**arguments)
        model.load_state_dict(checkpoint["state_dict"])
        transform = A.from_dict(arguments["eval_transform"])
        assert isinstance(transform, A.Compose)
        return model.eval(), transform
