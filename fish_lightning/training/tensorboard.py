"""TensorBoard besides scalars: the config, an augmented batch, the confusion matrix, test images, HParams."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fish_lightning.evaluation.scores import leak_warning, score_test
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.plotting import figures


class TensorBoardPictures(Callback):
    """Logs figures to TensorBoard, if the run has a TensorBoard logger.

    Args:
        count: largest number of images shown of the first training batch and of the test set.
    """

    def __init__(self, count: int = 24) -> None:
        self.count = count

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log the first batch as the model sees it, augmented."""
        assert isinstance(pl_module, FishClassifier)
        writer = _writer(trainer)
        if writer is None or trainer.global_step > 0 or batch_idx > 0:
            return
        images: Tensor = batch["image"][: self.count]
        pictures = [image.permute(1, 2, 0).cpu().numpy() for image in images]
        titles = [pl_module.class_names[label] if label >= 0 else "unreadable" for label in batch["label"].tolist()]
        writer.add_figure("train/first_batch", figures.picture_figure(pictures, titles), 0)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the confusion matrix and some test images with labels and predictions."""
        assert isinstance(pl_module, FishClassifier)
        predictions = pl_module.test_predictions()  # a collective operation: before the return below
        writer = _writer(trainer)
        if writer is None:
            return
        catalog = trainer.datamodule.catalog  # type: ignore[attr-defined]
        scores = score_test(predictions, catalog, pl_module.class_names, trainer.callback_metrics)
        step = trainer.global_step
        if scores["leaked_test_images"]:
            writer.add_text("test/leak", leak_warning(scores), step)
        writer.add_figure(
            "test/confusion_matrix", figures.confusion_figure(scores["confusion_matrix"], catalog.classes), step
        )
        writer.add_figure("test/predictions", figures.prediction_figure(predictions, catalog, self.count), step)


def log_config(trainer: L.Trainer, cfg: DictConfig) -> None:
    """Log the resolved config to TensorBoard's Text tab."""
    writer = _writer(trainer)
    if writer is not None:
        text = OmegaConf.to_yaml(cfg, resolve=True)
        writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))  # a code block in Markdown


def log_hyperparameters(trainer: L.Trainer, cfg: DictConfig, metrics: dict[str, float]) -> None:
    """Log settings and final metrics to TensorBoard's HParams tab.

    Args:
        trainer: of the run.
        cfg: the whole config; settings are named as on the command line (``optimizer.lr``).
        metrics: final metrics, logged as ``final/…`` to keep them apart from the curves.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            final = {f"final/{name}": value for name, value in metrics.items()}
            logger.log_hyperparams(_choices(cfg), final, step=trainer.global_step)
            logger.save()


def _writer(trainer: L.Trainer) -> Any:
    """Return the SummaryWriter; None on other ranks than 0, or without a TensorBoard logger."""
    if not trainer.is_global_zero:
        return None
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _choices(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that distinguish runs, named as on the command line; a group's value is its class."""
    everything = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(everything, dict)
    flat: dict[str, Any] = {"seed": everything["seed"]}
    for group in ("split", "transforms", "model", "optimizer", "scheduler"):
        for key, value in everything[group].items():
            if key == "_target_":
                flat[group] = value.rpartition(".")[2]
            elif isinstance(value, bool | int | float | str) and not key.startswith("_"):
                flat[f"{group}.{key}"] = value
    flat["data.batch_size"] = everything["data"]["batch_size"]
    for key in ("max_epochs", "precision", "gradient_clip_algorithm", "gradient_clip_val", "accumulate_grad_batches"):
        flat[f"trainer.{key}"] = str(everything["trainer"][key])
    return flat
