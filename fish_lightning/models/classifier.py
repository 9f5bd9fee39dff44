"""``FishClassifier``: a network with its losses, metrics and optimizer, as a LightningModule.

Its checkpoints contain class names and evaluation transform: evaluation and prediction require nothing else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Accuracy, F1Score, MeanMetric, Metric, MetricCollection

from fish_lightning import compat
from fish_lightning.data.dataset import UNREADABLE
from fish_lightning.distributed.ranks import gathered, share_of_step
from fish_lightning.errors import UserError, first_line, one_line
from fish_lightning.evaluation.outputs import Predictions
from fish_lightning.models.ensemble import EnsembleNetwork
from fish_lightning.models.network import accepted_size, build_network, head_name, normalization, weights_record
from fish_lightning.models.optimizers import NetworkParameters
from fish_lightning.models.tta import mean_log_probabilities, views
from fish_lightning.models.whitelist import pipeline_fault

Batch = dict[str, Any]
Arrays = tuple[npt.NDArray[Any], ...]
T = TypeVar("T")


class FishClassifier(L.LightningModule):
    """An image classifier with a network from torchvision or timm.

    Args:
        class_names: class names in label order.
        name: torchvision model name, or ``timm/NAME``.
        weights: ``"imagenet"``, a file, or None (see :func:`fish_lightning.models.network.build_network`).
        label_smoothing: label smoothing in training, 0 to 1; validation and test report plain cross-entropy.
        loss: training loss, which takes logits (N, C) and labels (N,) or class probabilities (N, C), and returns the
            loss of each image (N,) or their mean; None: cross-entropy with ``label_smoothing``.
        class_weights: (C,) weights of the classes in the training loss; None: 1.
        channels_last: whether to use the channels-last memory format; faster on CPUs and recent GPUs, equal up to
            rounding.
        compile: whether to use ``torch.compile``.
        mean: (3,) normalization mean, for pixels scaled to 0 to 1; None: that of the network's pretrained weights.
        std: (3,) normalization standard deviation; None: that of the network's pretrained weights.
        eval_transform: ``albumentations.to_dict`` of the evaluation pipeline.
        members: members of an ensemble, see :class:`~fish_lightning.models.ensemble.EnsembleNetwork`; None: a single
            network.
        optimizer: function that creates an optimizer from parameters; required for training only.
        scheduler: function that creates a schedule from (optimizer, total number of steps), stepped each batch; None:
            constant.

    Attributes:
        pretrained: origin of the initial weights, see :func:`~fish_lightning.models.network.weights_record`; None for
            random ones and after ``restore``.
    """

    mean: Tensor
    std: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        class_names: Sequence[str],
        name: str = "resnet34",
        weights: str | None = None,
        label_smoothing: float = 0.0,
        loss: nn.Module | None = None,
        class_weights: Sequence[float] | None = None,
        channels_last: bool = True,
        compile: bool = False,
        mean: Sequence[float] | None = (0.0, 0.0, 0.0),
        std: Sequence[float] | None = (1.0, 1.0, 1.0),
        eval_transform: dict[str, Any] | None = None,
        members: Sequence[dict[str, Any]] | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        fault = pipeline_fault(eval_transform) if eval_transform else None
        if fault:
            raise UserError(f"transforms.eval: {fault}")
        super().__init__()
        self.save_hyperparameters(ignore=["loss", "class_weights", "optimizer", "scheduler"], logger=False)
        self.class_names = tuple(class_names)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        if optimizer is not None:
            _create("optimizer", optimizer, NetworkParameters(nn.ParameterList([torch.zeros(1)])))  # fail early
        if mean is None or std is None:
            known = normalization(name)
            mean, std = (given or own for given, own in zip((mean, std), known, strict=True))
            self.hparams.update({"mean": mean, "std": std})  # a checkpoint is complete
        self.configure_network()
        self.pretrained = weights_record(name, weights)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        by_class = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", by_class, persistent=False)
        self.tta: str | None = None  # see fish_lightning.models.tta
        self.unreadable: set[int] = set()  # indices in the catalog
        self._resumed: dict[str, Any] = {}  # sums of the training means, by process
        self._tested: list[Arrays] = []
        self.configure_losses(loss)
        self.configure_metrics()

    def configure_network(self) -> None:
        """Build the network, in its memory format and compiled if requested."""
        classes, members = len(self.class_names), self.hparams["members"]
        if members:
            network: nn.Module = EnsembleNetwork(members, classes)
        else:
            network = build_network(self.hparams["name"], classes, self.hparams["weights"])
        if self.hparams["channels_last"]:
            network = network.to(memory_format=torch.channels_last)
        if self.hparams["compile"]:
            network.compile()  # in place: the names of the weights do not change
        self.network = network

    def configure_losses(self, loss: nn.Module | None) -> None:
        """Set the training loss; create plain cross-entropy for validation and test."""
        reduction = "mean" if self.class_weights is None else "none"
        smoothing = self.hparams["label_smoothing"]
        self.train_criterion = loss or nn.CrossEntropyLoss(label_smoothing=smoothing, reduction=reduction)
        self.criterion = nn.CrossEntropyLoss(reduction="none")

    def configure_metrics(self) -> None:
        """Create one metric collection per stage."""
        # Validating labels and logits would synchronize a GPU at each batch.
        task: dict[str, Any] = {"task": "multiclass", "num_classes": len(self.class_names), "validate_args": False}
        means = nn.ModuleDict({"loss": TrainingMean(), "accuracy": TrainingMean()})
        self.train_means = cast("Mapping[str, TrainingMean]", means)  # torch does not type the values
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        scores = MetricCollection(
            {"accuracy": Accuracy(average="micro", **task), "macro_f1": F1Score(average="macro", **task)}
        )
        self.val_metrics, self.test_metrics = scores.clone(prefix="val/"), scores.clone(prefix="test/")

    def configure_optimizers(self) -> Any:
        """Create the optimizer and a schedule over the number of steps that the trainer estimates.

        Raises:
            UserError: the module was created without an optimizer, or a setting is invalid (Lightning checks
                ``val_check_interval`` here).
        """
        if self.make_optimizer is None:
            raise UserError("FishClassifier was created without an optimizer: pass one to train it")
        optimizer = _create("optimizer", self.make_optimizer, NetworkParameters(self.network))
        if self.make_scheduler is None:
            return optimizer
        try:
            steps = int(self.trainer.estimated_stepping_batches)
        except ValueError as error:
            raise UserError(f"trainer: {one_line(error)}") from None
        schedule = _create("scheduler", self.make_scheduler, optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients as configured; a skipped batch has none, which torch refuses to clip."""
        if any(parameter.grad is not None for parameter in self.parameters()):
            compat.clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def normalize(self, images: Tensor) -> Tensor:
        """Return images (N, 3, H, W) uint8 as the network takes them."""
        images = ((images.float() / 255.0 - self.mean) / self.std).to(self.mean.dtype)  # bf16 for bf16-true
        return images.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else images

    def forward(self, images: Tensor) -> Tensor:
        """Normalize images (N, 3, H, W) uint8 and return their logits (N, C)."""
        images = self.normalize(images)
        try:
            output = self.network(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            self._explain_size(error, len(images), *images.shape[2:])
            raise
        # In training mode, inception_v3 and googlenet return a tuple of main and auxiliary logits.
        return output if isinstance(output, Tensor) else output[0]

    def _explain_size(self, error: Exception, n: int, height: int, width: int) -> None:
        """Raise a ``UserError`` if an error of the network is about the size of images."""
        name = self.hparams["name"]
        if compat.is_too_small_for_batch_norm(error):
            raise UserError(
                f"model.name={name}: a training batch of {n} image of {height}x{width} (h x w) is too small\n"
                "each process needs batches of 2 or more (data.batch_size, number of training images), or larger images"
            ) from None
        if compat.is_wrong_image_size(error):
            raise UserError(
                f"model.name={name}: images of {height}x{width} (h x w) do not fit this network\n"
                f"choose other transforms.height and transforms.width ({accepted_size(name)})"
            ) from None

    def on_fit_start(self) -> None:
        """Reset the metrics: a validation before the fit leaves inference tensors, which are read-only."""
        self.val_loss.reset()
        self.val_metrics.reset()

    def on_train_start(self) -> None:
        """Restore the training means of an epoch that is resumed."""
        for name, sums in self._resumed.items():
            self.train_means[name].restore(sums[self.trainer.global_rank])
        self._resumed = {}

    def on_train_epoch_start(self) -> None:
        """Reset the training means; Lightning does not call this when a run is resumed within an epoch."""
        for mean in self.train_means.values():
            mean.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss of one batch.

        A batch is skipped if unreadable images leave none of its images, or a single one, which batch normalization may
        refuse.
        """
        readable = self._readable(batch)
        labels: Tensor = readable["label"]
        is_skipped = len(labels) < min(2, len(batch["label"]))
        share = share_of_step(0 if is_skipped else len(labels), self.device)
        if is_skipped:
            # Other processes wait for the gradients of this one: return zeros.
            return self(batch["image"]).sum() * 0 if self.trainer.world_size > 1 else None
        target = readable.get("target", labels)
        logits = self._logits(readable)
        losses = self.train_criterion(logits, target)
        if self.class_weights is not None:
            losses = losses * (self.class_weights[target] if target.dim() == 1 else target @ self.class_weights)
        loss: Tensor = losses.mean()
        self.train_means["loss"].update(loss.detach(), len(labels))
        self.train_means["accuracy"].update((logits.detach().argmax(1) == labels).float().mean(), len(labels))
        for name, mean in self.train_means.items():
            self.log(f"train/{name}", mean, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, batch_size=len(labels))
        return loss * share

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        batch = self._readable(batch)
        if len(batch["label"]):
            self._measure("val", self._logits(batch).float(), batch["label"])

    def on_test_epoch_start(self) -> None:
        """Clear the predictions of a previous test."""
        self._tested.clear()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics and keep what :meth:`test_predictions` returns."""
        batch = self._readable(batch)
        if len(batch["label"]):
            logits, features = self.logits_and_features(batch["image"])
            self._measure("test", logits, batch["label"])
            self._tested.append(_as_arrays(batch["index"], batch["label"], logits, features))

    def test_predictions(self) -> Predictions:
        """Return the predictions of the last test, gathered from all processes, in catalog order.

        Raises:
            UserError: no image could be read.
        """
        return collect(self._tested)

    def predict_step(self, batch: Batch, batch_idx: int) -> Arrays:
        """Return indices, labels, logits and features of a batch; an unreadable image has the label ``UNREADABLE``."""
        return _as_arrays(batch["index"], batch["label"], *self.logits_and_features(batch["image"]))

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, C) of images, and features (N, D): what the network's last layer computes them from.

        With test-time augmentation, the logits are the logarithms of the mean probabilities of all views, and the
        features those of the plain image.
        """
        if self.tta is None:
            return self.single_view(images)
        (logits, features), *others = map(self.single_view, views(images, self.tta))
        return mean_log_probabilities([logits, *(other for other, _ in others)]), features

    def single_view(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`logits_and_features` without test-time augmentation.

        The features of an ensemble are those of its members, one after the other.
        """
        seen: list[Tensor] = []
        heads = (
            [member.last_layer for member in self.network]
            if isinstance(self.network, EnsembleNetwork)
            else [self.network.get_submodule(head_name(self.hparams["name"]))]
        )
        hooks = [head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach())) for head in heads]
        try:
            # A compiled network may ignore hooks added later, and runs uncompiled here.
            with torch.compiler.set_stance("force_eager"):
                logits: Tensor = self(images).float()
        finally:
            for hook in hooks:
                hook.remove()
        return logits, torch.cat([_pooled(features.float()) for features in seen], dim=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the precision for evaluations, and training-loss sums and unreadable images for resumed runs."""
        checkpoint["precision"] = str(self.trainer.precision)
        for name, mean in self.train_means.items():
            checkpoint[f"train_{name}"] = gathered(mean.sums())
        checkpoint["unreadable"] = self.all_unreadable()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the unreadable images and the sums of the training loss."""
        self.unreadable |= set(checkpoint.get("unreadable", ()))
        stored = {name: checkpoint.get(f"train_{name}") for name in self.train_means}
        self._resumed = {name: sums for name, sums in stored.items() if sums}

    def all_unreadable(self) -> list[int]:
        """Return the indices of the images that a process of the run could not read; all processes call this."""
        return sorted(set().union(*gathered(self.unreadable)))

    def _measure(self, stage: str, logits: Tensor, labels: Tensor) -> None:
        """Update and log the loss and the metrics of a stage."""
        loss, metrics = getattr(self, f"{stage}_loss"), getattr(self, f"{stage}_metrics")
        loss.update(self.criterion(logits, labels))
        metrics.update(logits, labels)
        self.log(f"{stage}/loss", loss, on_epoch=True, batch_size=len(labels))
        self.log_dict(metrics, on_epoch=True, batch_size=len(labels))

    def _logits(self, batch: Batch) -> Tensor:
        """Return logits of the images of a batch; of ``features`` where the callback ``Freeze`` has them."""
        if "features" in batch:
            head = self.network.get_submodule(head_name(self.hparams["name"]))
            return head(batch["features"].to(self.mean.dtype))  # type: ignore[no-any-return]
        return self(batch["image"])  # type: ignore[no-any-return]

    def _readable(self, batch: Batch) -> Batch:
        """Return the part of a batch whose images are readable, and record the other images."""
        if batch.get("complete"):  # known without synchronizing the device
            return batch
        readable = batch["label"] != UNREADABLE
        if bool(readable.all()):
            return batch
        self.unreadable.update(batch["index"][~readable].tolist())
        return {name: rows[readable] for name, rows in batch.items() if isinstance(rows, Tensor)}


class TrainingMean(Metric):
    """Mean over the images of an epoch, from the means of its batches, without NaN and infinite values.

    ``torchmetrics.MeanMetric`` checks for such values on the host, which synchronizes a GPU at each step.
    """

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, images: int) -> None:
        """Add the mean of a batch."""
        finite = mean.isfinite()
        self.total += torch.where(finite, mean, 0.0) * images
        self.images += finite * images

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.images

    def sums(self) -> tuple[float, float]:
        """Return the total and the number of images of this process, for a checkpoint within an epoch."""
        return float(self.total), float(self.images)

    def restore(self, sums: tuple[float, float]) -> None:
        """Continue from what :meth:`sums` returned."""
        self.total.fill_(sums[0])
        self.images.fill_(sums[1])


def collect(batches: Sequence[Arrays]) -> Predictions:
    """Gather the readable images of ``test_step`` or ``predict_step`` from all processes, in catalog order.

    Raises:
        UserError: there are none.
    """
    parts = [part for parts in gathered(list(batches)) for part in parts]
    if not parts:
        raise UserError("none of the images could be read")
    indices, labels, logits, features = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(indices, kind="stable")
    order = order[labels[order] != UNREADABLE]
    return Predictions(indices[order], labels[order], logits[order], features[order])


def _pooled(features: Tensor) -> Tensor:
    """Return features (N, D) also of networks that classify positions (SqueezeNet) or tokens (a few of timm's)."""
    places = {3: (1,), 4: (2, 3)}.get(features.dim())
    return features.mean(places) if places else features


def _as_arrays(indices: Tensor, labels: Tensor, logits: Tensor, features: Tensor) -> Arrays:
    return tuple(part.cpu().numpy() for part in (indices, labels, logits, features.half()))


def _create(group: str, create: Callable[..., T], *arguments: Any) -> T:
    """Return ``create(*arguments)``; a ``UserError`` shows the settings of the config group if one is invalid."""
    try:
        return create(*arguments)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        settings = ", ".join(f"{group}.{name}={value}" for name, value in getattr(create, "keywords", {}).items())
        raise UserError(f"{group}: invalid setting ({first_line(error)})\n{settings}") from None
