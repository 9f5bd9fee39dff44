"""The run in numbers: what is said before it starts, ``summary.json``, and the closing table on the screen."""

import csv
import json
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import lightning as L
from omegaconf import DictConfig

from fish_lightning.callbacks.checkpoints import BestCheckpoint
from fish_lightning.callbacks.history import History
from fish_lightning.callbacks.nonfinite import NonFiniteLoss
from fish_lightning.callbacks.pruning import ReportToStudy
from fish_lightning.config import fingerprint
from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.data.sources import OtherSource
from fish_lightning.errors import UserError
from fish_lightning.files import override, shown, whole_file
from fish_lightning.models.classifier import FishClassifier, Predictions, gathered
from fish_lightning.report import plots
from fish_lightning.report.scores import accuracy_of, leak_warning, score_test

PICTURES = 18  # test pictures on plots/predictions.png
Summary = dict[str, Any]
C = TypeVar("C", bound=L.Callback)


def found(trainer: L.Trainer, kind: type[C]) -> C | None:
    """The trainer's callback of that class, if it has one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)  # type: ignore[attr-defined]


def write_start(folder: Path, trainer: L.Trainer, model: FishClassifier, data: FishDataModule) -> None:
    """Write ``split.csv`` and say in four lines what is about to run; on the first process alone."""
    if not trainer.is_global_zero:
        return
    data.catalog.write_csv(folder / "split.csv")
    weights = model.hparams["weights"] or "random"
    device = trainer.strategy.root_device.type + (f" x {trainer.world_size}" if trainer.world_size > 1 else "")
    leaked = int(data.catalog.leaked().sum())
    counts = ", ".join(f"{n:,} {split}" for split, n in data.catalog.counts().items())
    print(
        f"model  {model.hparams['name']}, {weights} weights; {device}, {trainer.precision}",
        f"data   {len(data.catalog):,} images of {len(data.catalog.classes)} kinds in {data.catalog.root}",
        f"split  {data.split_name}, seed {data.seed}: {counts}",
        f"run    {shown(folder)}",
        sep="\n",
        flush=True,
    )
    if leaked:
        kept = " data.keep_split=false" if data.split_name == "folder" else ""
        print(
            f"warning: {leaked} test images have a copy in training; split=photograph{kept} keeps copies together",
            flush=True,
        )


def summarize_run(trainer: L.Trainer, model: FishClassifier, data: FishDataModule, tested: bool) -> Summary:
    """``summary.json`` of a training run (keys: DESIGN, command-line contract).

    Call it on every process: what they hold is brought together.

    Args:
        trainer: after the fit, and after the test if there was one.
        model: what was trained.
        data: what it was trained on.
        tested: whether the best checkpoint was tested.
    """
    history, best = found(trainer, History), found(trainer, BestCheckpoint)
    nonfinite = found(trainer, NonFiniteLoss)
    pruning = found(trainer, ReportToStudy)
    validated: dict[str, float | None] = dict(best.best_metrics) if best else {}
    if not validated and history and history.rows:  # no checkpoint is kept
        validated = {key.replace("_", "/", 1): value for key, value in history.rows[-1].items()}
    unreadable = sorted(set().union(*gathered(model.unreadable)))
    return {
        "test": score_test(model.test_predictions(), data.catalog, model.class_names, trainer.callback_metrics)
        if tested
        else {},
        "val": {key: validated[f"val/{key}"] for key in ("accuracy", "macro_f1", "loss") if f"val/{key}" in validated}
        | {"n": data.catalog.counts()["val"]},
        "best_epoch": best.best_epoch if best else None,
        "epochs": history.rows[-1]["epoch"] if history and history.rows else trainer.current_epoch,
        "seconds": history.seconds if history else None,
        "train_images_per_second": history.images_per_second if history else None,
        "seed": data.seed,
        "split": data.split_name,
        "images": data.catalog.counts(),
        "leaked_test_images": int(data.catalog.leaked().sum()) if data.catalog.photographs_known else None,
        "classes": list(model.class_names),
        "model": model.hparams["name"],
        "weights": model.hparams["weights"],
        "precision": str(trainer.precision),
        "device": trainer.strategy.root_device.type,
        "processes": trainer.world_size,
        "skipped_batches": nonfinite.skipped if nonfinite else 0,
        "unreadable_images": [str(data.catalog.paths[row]) for row in unreadable],
        "checkpoint": (best.best_model_path or None) if best else None,
        "pruned": pruning.pruned if pruning else False,
    }


def summarize_trained(trainer: L.Trainer, model: FishClassifier, data: FishDataModule, source: OtherSource) -> Summary:
    """What an evaluation on other images says of those that are copies of training images. Call it on every process.

    Returns:
        ``left_out`` (accuracy, interval, n and the images' paths; None where it is not known which these are) and
        ``missing_training_images`` (that are gone, so that copies of them may be among the images scored).
    """
    if source.trained is None:
        return {"left_out": None, "missing_training_images": source.missing}
    images = data.catalog.paths[source.trained].tolist()
    scores: Summary = {"n": 0}
    if images:
        data.test_subset = "train"  # what OtherSource makes of them
        trainer.test(model, datamodule=data, verbose=False)
        scores = accuracy_of(model.test_predictions().correct)
    return {"left_out": scores | {"images": images}, "missing_training_images": source.missing}


def write_run(folder: Path, trainer: L.Trainer, model: FishClassifier, data: FishDataModule, summary: Summary) -> None:
    """Write ``summary.json`` and the plots, and say what came out and what to do next; on the first process alone."""
    predictions = model.test_predictions() if summary["test"] else None
    if not trainer.is_global_zero:
        return
    write_summary(folder, summary)
    history = found(trainer, History)
    if history:
        plots.save(plots.loss_figure(history.rows), folder / "plots" / "loss.png")
        plots.save(plots.accuracy_figure(history.rows), folder / "plots" / "accuracy.png")
    if predictions:
        write_test(folder, predictions, data, summary["test"])
    print("\n" + closing_table(folder, summary), flush=True)


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json``."""
    with whole_file(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def write_test(folder: Path, predictions: Predictions, data: FishDataModule, test: Summary) -> None:
    """Write ``test_predictions.csv``, ``plots/confusion_matrix.png`` and ``plots/predictions.png``."""
    catalog = data.catalog
    with (
        whole_file(folder / "test_predictions.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        lines = csv.writer(stream)
        lines.writerow(("path", "label", "photograph", "prediction", "probability", "correct"))
        for row, label, pred, probabilities in zip(
            predictions.rows, predictions.labels, predictions.preds, predictions.probabilities, strict=True
        ):
            lines.writerow(
                (
                    catalog.paths[row],
                    catalog.classes[label],
                    catalog.photographs[row],
                    catalog.classes[pred],
                    f"{probabilities[pred]:.6f}",
                    int(pred == label),
                )
            )
    plots.save(plots.confusion_figure(test["confusion_matrix"], catalog.classes), folder / "plots/confusion_matrix.png")
    plots.save(plots.prediction_figure(predictions, catalog, PICTURES), folder / "plots/predictions.png")


def finished(folder: Path, cfg: DictConfig) -> Summary | None:
    """The ``summary.json`` of a run that has been to its end in this folder; None where there is none.

    Raises:
        UserError: it was another run.
    """
    file = folder / "summary.json"
    if not file.is_file():
        return None
    summary: Summary = json.loads(file.read_text(encoding="utf-8"))
    if summary.get("config") != fingerprint(cfg):
        raise UserError(f"ckpt=auto: {shown(folder)} holds a finished run with other settings\nchoose another folder")
    print(f"finished before: {shown(folder)}", flush=True)
    return summary


def metrics(summary: Summary) -> dict[str, float]:
    """The numbers of a summary by their metric names (``val/accuracy``, ``test/macro_f1``)."""
    return {
        f"{stage}/{key}": value
        for stage in ("val", "test")
        for key, value in summary[stage].items()
        if isinstance(value, float)
    }


def require_metric(name: str, tested: bool) -> None:
    """Refuse an ``optimized_metric`` that a run will not measure, before it starts.

    Raises:
        UserError: with the names that there are.
    """
    known = [f"{stage}/{key}" for stage in ("val", "test")[: 1 + tested] for key in ("accuracy", "loss", "macro_f1")]
    if name not in known:
        raise UserError(f"optimized_metric={name}: this run measures {', '.join(known)}")


def score_table(test: Summary, split: str) -> str:
    """The scores of a test as a table for the screen."""
    low, high = test["accuracy_ci95"]
    wrong = round(test["n"] * (1 - test["accuracy"]))
    width = max(len(name) for name in test["per_class"])
    lines = [
        f"test accuracy  {test['accuracy']:.2%}   95 % interval {low:.1%} to {high:.1%}",
        f"               {wrong} of {test['n']} wrong; split={split}",
        *_photograph_lines(test),
        f"macro F1       {test['macro_f1']:.4f}",
        f"loss           {test['loss']:.4f}",
        "",
        f"{'kind':<{width}}  precision  recall  images",
    ]
    for name, scores in test["per_class"].items():
        lines.append(f"{name:<{width}}  {scores['precision']:9.1%}  {scores['recall']:6.1%}  {scores['n']:6d}")
    return "\n".join(lines)


def _photograph_lines(test: Summary) -> list[str]:
    """The interval that knows about copies, and a warning where they stand on both sides."""
    if test["photographs"] is None:
        return ["               which images are copies of one photograph is not known (data.find_copies=true)"]
    low, high = test["accuracy_ci95_photographs"]
    lines = [f"               {low:.1%} to {high:.1%} by photograph, of which there are {test['photographs']}"]
    if test["leaked_test_images"]:
        lines.append("warning: " + leak_warning(test).replace("; ", ";\n         "))
    return lines


def evaluation_table(folder: Path, summary: Summary, subset: str) -> str:
    """What an evaluation found and where it is."""
    scores = score_table(summary[subset], f"{summary['split']}, subset={subset}")
    lines = []
    if summary["unreadable_images"]:
        lines.append(f"left out: {len(summary['unreadable_images'])} unreadable images, named in summary.json")
    left_out = summary.get("left_out")
    if left_out and left_out["n"]:
        names = "left out" if subset not in ("train", "all") else "not left out"
        lines.append(
            f"{names}: {left_out['n']} images that are copies of training images, named in summary.json;\n"
            f"          accuracy on them {left_out['accuracy']:.2%}"
        )
    elif left_out:
        lines.append("none of the images is a copy of a training image")
    if summary.get("missing_training_images"):
        lines.append(
            f"warning: {summary['missing_training_images']:,} training images are gone: whether copies of them are\n"
            "         among the images scored cannot be checked"
        )
    lines += ["", f"data     {summary['data']}", f"folder   {shown(folder)}"]
    return "\n".join([scores, "", *lines])


def closing_table(folder: Path, summary: Summary) -> str:
    """What came out of a training run, where it is, and the commands that come next."""
    lines = [score_table(summary["test"], summary["split"])] if summary["test"] else ["not tested (test=false)"]
    if summary["unreadable_images"]:
        lines.append(f"\nleft out: {len(summary['unreadable_images'])} unreadable images, named in summary.json")
    if summary["skipped_batches"]:
        lines.append(f"\nbatches passed over, their loss being no number (on_nan=skip): {summary['skipped_batches']}")
    if summary["seconds"]:
        speed = f", {summary['train_images_per_second']:.0f} training images a second" if summary["seconds"] else ""
        lines.append(f"\n{summary['epochs']} epochs in {summary['seconds']:.0f} s{speed}")
    checkpoint = summary["checkpoint"]
    lines.append(
        f"best epoch   {summary['best_epoch']} by validation accuracy" if checkpoint else "no checkpoint was kept"
    )
    lines += [f"run folder   {shown(folder)}", f"pictures     {shown(folder / 'plots')}"]
    if checkpoint:
        lines.append(f"predict      python -m fish_lightning.predict {override('ckpt', checkpoint)} input=FOLDER")
    return "\n".join([*lines, f"tensorboard  tensorboard --logdir {quote(shown(folder))}"])
