"""What TensorBoard shows: curves, a batch as the model sees it, test results, embeddings, hyperparameters.

Scalars: losses, accuracies and the learning rate, with a layout that puts training and validation into one chart
(Custom Scalars). The test score is drawn as a horizontal line in the chart of its curves. Images: confusion matrix,
wrong and correct test images in pages. PR Curves: one a class. Projector: test images by their features. HParams: what
was chosen. Text: config, verdict of the split.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # type: ignore[import-untyped]
from torch import Tensor

from fish_lightning import compat
from fish_lightning.data.catalog import Catalog
from fish_lightning.evaluation.outputs import Outputs, Predictions
from fish_lightning.evaluation.scores import confusion_matrix, leak_sentence, score_test
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.names import printable
from fish_lightning.plotting import figures
from fish_lightning.plotting.thumbnails import thumbnail
from fish_lightning.resume.folders import key_of, loaded, overrides_of
from fish_lightning.training.job_name import job_name

#: Charts of the Custom Scalars tab: tags as regular expressions.
LAYOUT = {
    "run": {
        "learning rate": ["Multiline", ["lr-.*"]],
        "loss": ["Multiline", ["train/loss$", "val/loss", "test/loss"]],
        "accuracy": ["Multiline", ["train/accuracy", "val/accuracy", "test/accuracy"]],
        "macro F1": ["Multiline", ["val/macro_f1", "test/macro_f1"]],
    }
}
#: Images on one page of a gallery, so that names are legible in a card of default size, and pages at most.
PAGE, PAGES = 6, 4
#: Classes with a precision-recall curve of their own at most: those recognized worst.
PR_CURVES = 20
#: Test images in the projector at most; TensorBoard's own limit for a sprite of 50 pixels an image is 26,000.
EMBEDDED, SPRITE = 2000, 50

#: Groups whose choice is a hyperparameter, and keys that always are; others are where the command line sets them.
GROUPS = ("data", "transforms", "split", "optimizer", "scheduler", "gradient_clip", "augment", "experiment")
KEYS = (
    *("seed", "model.name", "model.weights", "model.label_smoothing", "optimizer.lr", "optimizer.weight_decay"),
    *("data.batch_size", "transforms.height", "transforms.width", "trainer.max_epochs"),
)
#: What the command line sets without being a choice about the model.
NOT_HYPERPARAMETERS = ("ckpt", "hydra", "paths", "logger", "sweep", "data.root", "data.cache", "optimized_metric")


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's logger, without the ``epoch`` chart, the single dots of test scores, and an empty ``hparams.yaml``.

    Args:
        save_dir: the run folder; the event file is in it or, for a job of a sweep, in a folder named after what
            differs.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(save_dir, name=job_name(Path(save_dir)), version="", default_hp_metric=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log curves only."""
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch" and not k.startswith("test/")}, step)

    @rank_zero_only
    def save(self) -> None:
        """Flush the events."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush the events; the file stays open for what follows the fit."""
        if compat.has_started(self):
            self.experiment.flush()


class TensorBoardPictures(Callback):
    """Shows the first training batch and the results of the test; does nothing without a TensorBoard logger.

    Args:
        count: maximum number of images of the first training batch to show.
    """

    def __init__(self, count: int = 24) -> None:
        self.count = count

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lay out the charts."""
        if (writer := _writer(trainer)) is not None:
            writer.add_custom_scalars(LAYOUT)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the first batch as the model gets it, augmented."""
        assert isinstance(pl_module, FishClassifier)
        writer = _writer(trainer)
        if writer is None or trainer.global_step > 0 or batch_idx > 0:
            return
        names = [pl_module.class_names[label] if label >= 0 else "unreadable" for label in batch["label"].tolist()]
        images: Tensor = batch["image"][: self.count]
        for page, start in enumerate(range(0, len(images), PAGE)):
            shown = [image.permute(1, 2, 0).cpu().numpy() for image in images[start : start + PAGE]]
            figure = figures.picture_figure(shown, names[start : start + PAGE], columns=3)
            writer.add_figure("train/first_batch", figure, page)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show confusion matrix, wrong and correct images, precision-recall curves and embeddings."""
        assert isinstance(pl_module, FishClassifier)
        predictions = pl_module.test_predictions()  # a collective call: before the next line
        writer = _writer(trainer)
        if writer is None:
            return
        catalog, step = trainer.datamodule.catalog, trainer.global_step  # type: ignore[attr-defined]
        scores = score_test(predictions, catalog, pl_module.class_names, trainer.callback_metrics)
        if scores["leaked_test_images"]:
            writer.add_text("test/leak", leak_sentence(scores), step)
        for name in ("accuracy", "loss", "macro_f1"):
            for at in (0, step):  # a line across the curves rather than a dot
                writer.add_scalar(f"test/{name}", scores[name], at)
        matrix = confusion_matrix(predictions, len(catalog.classes))
        writer.add_figure("test/confusion_matrix", figures.confusion_figure(matrix, catalog.classes), step)
        order, outputs = np.random.default_rng(0).permutation(len(predictions.labels)), Outputs.of(predictions, catalog)
        for tag, chosen in (("wrong", ~predictions.correct), ("correct", predictions.correct)):
            shown = order[chosen[order]][: PAGE * PAGES]
            for page, start in enumerate(range(0, len(shown), PAGE)):
                part = shown[start : start + PAGE]
                writer.add_figure(f"test/{tag}", figures.prediction_page(outputs, catalog.root, part), page)
        recall = np.divide(matrix.diagonal(), matrix.sum(1), where=matrix.sum(1) > 0, out=np.full(len(matrix), np.inf))
        worst = np.argsort(recall, kind="stable")[: min(PR_CURVES, np.isfinite(recall).sum())]
        for label in sorted(worst):
            is_class, probability = predictions.labels == label, predictions.probabilities[:, label]
            tag = f"test/{printable(catalog.classes[label])}"
            writer.add_pr_curve(tag, is_class, probability, step, num_thresholds=101)
        _embed(writer, predictions, catalog, order[:EMBEDDED])


def _embed(writer: Any, predictions: Predictions, catalog: Catalog, chosen: npt.NDArray[np.int64]) -> None:
    """Show test images in the projector, with thumbnails and classes."""
    shutil.rmtree(Path(writer.get_logdir(), "00000"), ignore_errors=True)  # of a test before
    rows = []
    thumbnails = np.full((len(chosen), SPRITE, SPRITE, 3), 255, np.uint8)
    for place, i in enumerate(chosen):
        label, pred = (catalog.classes[of[i]] for of in (predictions.labels, predictions.preds))
        path = str(catalog.paths[predictions.indices[i]])
        rows.append([*map(printable, (label, pred, path)), str(bool(predictions.correct[i]))])
        small = thumbnail(catalog.root / path, SPRITE)
        top, left = (SPRITE - small.shape[0]) // 2, (SPRITE - small.shape[1]) // 2
        thumbnails[place, top : top + small.shape[0], left : left + small.shape[1]] = small
    sprite = torch.from_numpy(thumbnails).permute(0, 3, 1, 2).float() / 255
    header = ["class", "prediction", "path", "correct"]
    writer.add_embedding(
        predictions.features[chosen].astype(np.float32), rows, sprite, tag="test", metadata_header=header
    )


def log_config(trainer: L.Trainer, cfg: DictConfig) -> None:
    """Show the resolved config in the Text tab of TensorBoard; other loggers get it as hyperparameters."""
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    writer = _writer(trainer)
    if writer is not None:
        text = OmegaConf.to_yaml(cfg, resolve=True)
        writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))  # indented: code in Markdown


def log_hyperparameters(trainer: L.Trainer, cfg: DictConfig, folder: Path) -> None:
    """Show what was chosen for this run in the HParams tab, beside its scores; TensorBoard puts first what differs.

    Args:
        trainer: the run's trainer.
        cfg: the whole config.
        folder: run folder, where Hydra has written choices and overrides.
    """
    writer = _writer(trainer)
    if writer is not None:
        trial = " ".join(filter(None, (folder.name, job_name(folder), f"({folder.absolute().parent.name})")))
        writer.file_writer.add_summary(hparams_pb(hyperparameters(cfg, folder), trial_id=trial))
        writer.flush()


def hyperparameters(cfg: DictConfig, folder: Path) -> dict[str, bool | int | float | str]:
    """Return the choices of a run: those of some groups and keys, and others that the command line has set.

    Hydra has written choices and overrides in the folder of the run.
    """
    choices = OmegaConf.select(loaded(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.choices") or {}
    chosen: dict[str, Any] = {group: choices[group] for group in GROUPS if choices.get(group) not in (None, "none")}
    for key in dict.fromkeys([*KEYS, *map(key_of, overrides_of(folder))]):
        value = OmegaConf.select(cfg, key, default=None)
        if not f"{key}.".startswith(tuple(f"{of}." for of in NOT_HYPERPARAMETERS)):
            if isinstance(value, bool | int | float | str):
                chosen[key] = value
            elif value is None and key in KEYS:
                chosen[key] = "none"
    return chosen


def _writer(trainer: L.Trainer) -> Any:
    """Return the SummaryWriter of rank 0, or None."""
    if not trainer.is_global_zero:
        return None
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
