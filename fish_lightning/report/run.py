"""The files of a run folder, and the text printed at the start and the end of a run."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torchvision
from omegaconf import DictConfig, OmegaConf

from fish_lightning import __version__
from fish_lightning.data.catalog import Catalog
from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.data.splits import leak_warning
from fish_lightning.data.trained_sources import OtherSource, UnknownImages
from fish_lightning.errors import UserError, first_line
from fish_lightning.evaluation.analysis import Analysis, analyze, calibration_of, guaranteed, unknowns_block
from fish_lightning.evaluation.outputs import FILE as OUTPUTS_FILE
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.evaluation.predictions import Predictions
from fish_lightning.evaluation.scores import confusion_matrix
from fish_lightning.evaluation.stored_calibration import Stored, write_calibration
from fish_lightning.files import atomic_write, csv_table, read_summary, run_of, shown
from fish_lightning.models.checkpoint import weights_digest
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.names import path_cell, printable, text_cell
from fish_lightning.plotting import figures
from fish_lightning.plotting.figures import Row
from fish_lightning.plotting.thumbnails import thumbnail
from fish_lightning.report.explanations import (
    audit_report,
    error_heat_maps,
    left_out_outputs,
    training_outputs,
)
from fish_lightning.report.inputs import FILE as INPUTS_FILE
from fish_lightning.report.inputs import ReportInputs
from fish_lightning.report.run_report import write_report
from fish_lightning.report.tables import closing_table, evaluation_table

PICTURES = 18  # test images in plots/predictions.png
UNKNOWN_FILE = "unknown_logits.npz"
#: Of the texts of ``report_inputs.npz``, those that the report shows as they are.
_SHOWN = (
    "title",
    "heat_note",
    "history",
    "best_epoch",
    "split",
    "audit",
    "training_photographs",
    "config",
    "environment",
)
TARGET_ERROR = 0.05  # of an evaluation of a run that says none
Summary = dict[str, Any]


def write_start(folder: Path, trainer: L.Trainer, model: FishClassifier, data: FishDataModule) -> None:
    """Write ``split.csv`` and print model, data, split and folder, on the first process only."""
    if not trainer.is_global_zero:
        return
    data.catalog.write_csv(folder / "split.csv")
    weights = model.hparams["weights"] or "random"
    device = trainer.strategy.root_device.type + (f" x {trainer.world_size}" if trainer.world_size > 1 else "")
    root = printable(str(data.catalog.root))
    counts = ", ".join(f"{n:,} {split}" for split, n in data.catalog.counts().items())
    print(
        f"model  {model.hparams['name']}, {weights} weights; {device}, {trainer.precision}",
        f"data   {len(data.catalog):,} images of {len(data.catalog.classes)} classes in {root}",
        f"split  {data.split_name}, seed {data.seed}: {counts}",
        f"run    {shown(folder)}",
        sep="\n",
        flush=True,
    )
    if warning := leak_warning(data.catalog, data.split_name):
        print(warning, flush=True)


def write_run(
    folder: Path,
    summary: Summary,
    history: list[dict[str, float | None]],
    predictions: Predictions | None,
    outputs: Outputs | None,
    model: FishClassifier,
    data: FishDataModule,
    cfg: DictConfig,
) -> None:
    """Write the files of a finished run and print its results.

    ``summary.json`` comes last: it marks the run as complete.

    Args:
        folder: of the run.
        summary: see :func:`fish_lightning.training.summary.summarize_run`.
        history: one row per epoch.
        predictions: of the test; None: not tested, then the report is of the validation.
        outputs: of test and validation images, of the latter only if there was no test; None for a pruned run.
        model: tested.
        data: of the run.
        cfg: the whole config.
    """
    if history:
        figures.save(figures.loss_figure(history), folder / "plots" / "loss.png")
        figures.save(figures.accuracy_figure(history), folder / "plots" / "accuracy.png")
    if predictions and outputs:
        write_test(folder, predictions, outputs, data.catalog)
        summary["test"] |= explain(folder, model, data, outputs, cfg, history=history, run=summary)
    elif outputs:
        outputs.save(folder / OUTPUTS_FILE)
        try:
            summary["val"] |= explain(folder, model, data, outputs, cfg, "val", history=history, run=summary)
        except UserError as error:  # no score depends on it, as it would if there were a test
            print(f"no report: {first_line(error)}")
    write_summary(folder, summary)
    print("\n" + closing_table(folder, summary), flush=True)


def write_evaluation(
    folder: Path,
    summary: Summary,
    predictions: Predictions,
    model: FishClassifier,
    data: FishDataModule,
    cfg: DictConfig,
    stored: Mapping[str, Any],
    unknown: tuple[UnknownImages, Outputs] | None = None,
) -> None:
    """Write the files of an evaluation and print its results.

    Args:
        folder: of the evaluation.
        summary: see :func:`fish_lightning.training.summary.summarize_evaluation`.
        predictions: of the test.
        model: tested.
        data: its data.
        cfg: the whole config.
        stored: of the training run, see ``read_calibration``; empty without one.
        unknown: unknown images, and what the model computes for those that can be read.
    """
    subset, outputs = cfg.subset, Outputs.of(predictions, data.catalog)
    write_test(folder, predictions, outputs, data.catalog)
    summary[subset] |= explain(folder, model, data, outputs, cfg, subset, stored=stored, unknown=unknown and unknown[1])
    if unknown:
        images, foreign = unknown
        foreign.save(folder / UNKNOWN_FILE)
        unreadable = images.catalog.paths[~np.isin(images.catalog.paths, foreign.paths)].tolist()
        summary[subset]["unknowns"] |= {
            "excluded": len(images.copies),
            "excluded_images": images.copies,
            "unreadable_images": unreadable,
            "missing_images": images.missing,
        }
    write_summary(folder, summary)
    print(evaluation_table(folder, summary, subset))


def explain(
    folder: Path,
    model: FishClassifier,
    data: FishDataModule,
    outputs: Outputs,
    cfg: DictConfig,
    subset: str = "test",
    history: Sequence[Row] = (),
    run: Mapping[str, Any] | None = None,
    stored: Mapping[str, Any] | None = None,
    unknown: Outputs | None = None,
    candidates: int | None = None,
) -> Summary:
    """Write the calibration (of a training run), ``report.html`` and ``report_inputs.npz``.

    Args:
        folder: of the run or evaluation.
        model: tested.
        data: its data.
        outputs: of the tested images, and of validation images where they are known.
        cfg: the whole config; ``report`` says whether the report is written.
        subset: what was tested.
        history: one row per epoch of a training run.
        run: ``summary.json`` of a training run; None: of an evaluation.
        stored: of an evaluation, what ``read_calibration`` returns for the training run.
        unknown: of unknown images.
        candidates: number of checkpoints that the validation images chose among; None: as ``run`` or ``stored`` says.

    Returns:
        ``calibration``, ``selective``, ``audit`` (None without a report or without masks) and, with unknown images or
        where a class was left out, ``unknowns``: they become part of the scores in ``summary.json``.
    """
    model.eval()
    catalog = data.catalog
    trained = catalog.photographs[catalog.splits == "train"]
    leaked = outputs.copies_of(trained) if catalog.photographs_known else None
    excluded = 0
    if unknown is None:
        unknown, excluded = left_out_outputs(model, data)
    training, known_catalog = None, catalog
    detector = (stored or {}).get("unknown") or {}
    if cfg.report or not detector:
        # Of an evaluation on other data, the training images are in another folder, if they are still there.
        known_catalog = data.source.known if isinstance(data.source, OtherSource) else catalog
        training = training_outputs(model, data, known_catalog)
        if training is None:
            training, known_catalog = training_outputs(model, data, catalog), catalog
    selective = (stored or {}).get("selective") or {}
    target = cfg.evaluate.target_error or selective.get("target_error", TARGET_ERROR)
    if candidates is None:
        candidates = selective.get("candidates", 1) if run is None else run["compared_checkpoints"]
    settings: dict[str, Any] = {"subset": subset, "leaked": leaked, "unknown": unknown, "candidates": candidates}
    analysis = analyze(outputs, training, target, stored=stored, **settings)
    fitted_to = {"weights": weights_digest(model), "tta": model.tta}
    _write_calibration(folder, analysis, stored, fitted_to)
    audit: dict[str, Any] | str = ""
    heat: dict[str, Any] = {}
    heat_note = ""
    if cfg.report:
        audit = audit_report(
            model,
            data,
            outputs.subset(subset) if subset != "all" else outputs,
            training=subset in ("test", "val"),
        )
        heat, heat_note = error_heat_maps(model, data, analysis)
    photographs = known_catalog.photographs_or_paths[known_catalog.indices("train")]
    texts = {
        "title": f"{model.hparams['name']} on {printable(catalog.root.resolve().name)}",
        "subset": subset,
        "split": data.split_name,
        "root": str(catalog.root.resolve()),
        "training_root": str(known_catalog.root.resolve()),
        "training_photographs": len(np.unique(photographs)),
        "heat_note": heat_note,
        "audit": audit,
        "history": list(history),
        "best_epoch": run and run["best_epoch"],
        "config": OmegaConf.to_yaml(cfg, resolve=True),
        "environment": _environment(model, run),
        "report": bool(cfg.report),
        "candidates": candidates,
        "target_error": target,
        "stored": None if stored is None else _without_features(stored),
        "fitted_to": fitted_to,
    }
    warm = {path: cells.astype(np.float16) for path, cells in heat.items()}
    inputs = ReportInputs(training, detector.get("features"), leaked, warm, texts)
    inputs.save(folder / INPUTS_FILE)
    if cfg.report:
        _draw(folder, analysis, inputs)
    if unknown is not None and data.left_out is not None:
        unknown.save(folder / UNKNOWN_FILE)
    blocks = _blocks(analysis, unknown) | {"audit": None if isinstance(audit, str) else audit}
    if "unknowns" in blocks:
        blocks["unknowns"]["excluded"] = excluded
    return blocks


def recompute(folder: Path, target_error: float | None = None) -> tuple[str, Summary, bool]:
    """Compute calibration, abstention and report of a run or an evaluation from ``logits.npz`` again.

    ``calibration.json``, ``report.html`` (unless there is none, with ``report=false``) and their figures in
    ``summary.json`` are replaced. For another target error, an evaluation chooses the threshold on the validation
    images of its training run.

    Args:
        folder: of the run or evaluation.
        target_error: see :func:`~fish_lightning.evaluation.abstention.choose_threshold`; None: as before.

    Returns:
        The subset that was tested, its scores in ``summary.json``, and whether there is a report.

    Raises:
        UserError: one of the files is missing or corrupt, or there are no validation images for another target error.
    """
    outputs = Outputs.load(folder / OUTPUTS_FILE)
    inputs = ReportInputs.load(folder / INPUTS_FILE)
    texts, subset = inputs.texts, inputs.texts["subset"]
    if inputs.leaked is not None and len(inputs.leaked) != len(outputs):
        raise UserError(f"{shown(folder)}: {OUTPUTS_FILE} and {INPUTS_FILE} do not belong to the same run")
    summary: Summary = read_summary(folder)
    if subset not in summary:
        raise UserError(f"{shown(folder / 'summary.json')} is missing, or not of an evaluation of subset={subset}")
    scores = summary[subset]
    unknown = Outputs.load(folder / UNKNOWN_FILE) if (folder / UNKNOWN_FILE).is_file() else None
    stored: Stored | None = texts["stored"]
    if stored and inputs.features is not None:
        stored = stored | {"unknown": stored["unknown"] | {"features": inputs.features}}
    if target_error is not None and stored is not None and not (outputs.splits == "val").any():
        stored = for_target(stored, summary["checkpoint"], target_error)
    analysis = analyze(
        outputs,
        inputs.training,
        target_error or texts["target_error"],
        subset=subset,
        leaked=inputs.leaked,
        unknown=unknown,
        stored=stored,
        candidates=texts["candidates"],
    )
    _write_calibration(folder, analysis, stored, texts["fitted_to"])
    if texts["report"]:
        _draw(folder, analysis, inputs)
    blocks = _blocks(analysis, unknown)
    if "unknowns" in blocks:
        blocks["unknowns"] = scores.get("unknowns", {}) | blocks["unknowns"]
    scores |= blocks
    write_summary(folder, summary)
    return subset, scores, texts["report"]


def _write_calibration(
    folder: Path, analysis: Analysis, stored: Mapping[str, Any] | None, fitted_to: Mapping[str, str | None]
) -> None:
    """Write the calibration of a training run, for which nothing is stored yet."""
    if stored is None and analysis.fitted_here:
        write_calibration(folder, calibration_of(analysis) | dict(fitted_to))


def for_target(stored: Mapping[str, Any], ckpt: str | Path, target_error: float) -> Stored:
    """Return the calibration of a training run with the abstention threshold for another target error.

    It is chosen on the validation images in the run's ``logits.npz``.

    Args:
        stored: what ``read_calibration`` returns for the run.
        ckpt: the run folder, or a checkpoint in it.
        target_error: see :func:`~fish_lightning.evaluation.abstention.choose_threshold`.

    Raises:
        UserError: the run has no calibration, or no validation images are recorded.
    """
    run = run_of(Path(ckpt).expanduser())
    val = Outputs.load(run / OUTPUTS_FILE).subset("val") if stored and (run / OUTPUTS_FILE).is_file() else None
    if val is None or not len(val):
        what = f"no validation images in {shown(run / OUTPUTS_FILE)}" if stored else "the model has no calibration.json"
        raise UserError(
            f"evaluate.target_error={target_error:g}: {what}, so there is nothing to choose a threshold on\n"
            "pass the folder of a training run (ckpt=RUN), or leave evaluate.target_error out"
        )
    candidates = stored["selective"].get("candidates", 1)
    threshold = guaranteed(val, target_error, candidates).threshold
    selective = {"threshold": threshold, "target_error": target_error, "candidates": candidates}
    return {**stored, "selective": selective}


def _without_features(stored: Mapping[str, Any]) -> Stored:
    """Return a calibration as plain values: the features are an array."""
    unknown = {key: value for key, value in (stored.get("unknown") or {}).items() if key != "features"}
    return {**stored, "unknown": unknown or None} if stored else {}


def _environment(model: FishClassifier, run: Mapping[str, Any] | None) -> dict[str, str]:
    """Return names and values of what a result depends on beside config and data."""
    versions = {"fish_lightning": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
    versions |= {"lightning": L.__version__, "python": platform.python_version(), "device": str(model.device)}
    if run is None:
        return versions
    seconds = {} if run["seconds"] is None else {"training": f"{run['seconds']:.0f} s"}
    return versions | {"precision": run["precision"], "processes": str(run["processes"])} | seconds


def _draw(folder: Path, analysis: Analysis, inputs: ReportInputs) -> None:
    texts = inputs.texts
    root, training_root = Path(texts["root"]), Path(texts["training_root"])
    write_report(
        folder / "report.html",
        analysis,
        thumbnail=lambda path: thumbnail(root / path, 256),
        training_thumbnail=lambda path: thumbnail(training_root / path, 256),
        heat=inputs.heat,
        **{key: texts[key] for key in _SHOWN},
    )


def _blocks(analysis: Analysis, unknown: Outputs | None) -> Summary:
    """Return what the analysis adds to the scores in ``summary.json``."""
    blocks: Summary = {"calibration": analysis.calibration, "selective": analysis.selective}
    if unknown is not None and analysis.unknowns:
        blocks["unknowns"] = unknowns_block(analysis.unknowns)
    return blocks


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json``; JSON has no NaN and no infinity, which become null."""
    with atomic_write(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """Return a value with None for NaN and infinite numbers."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_test(folder: Path, predictions: Predictions, outputs: Outputs, catalog: Catalog) -> None:
    """Write ``logits.npz``, ``test_predictions.csv``, ``confusion_matrix.csv`` and its plot, and example images."""
    outputs.save(folder / OUTPUTS_FILE)
    with csv_table(folder / "test_predictions.csv") as lines:
        lines.writerow(("path", "label", "prediction", "probability", "photograph", "correct"))
        for index, label, pred, probabilities in zip(
            predictions.indices, predictions.labels, predictions.preds, predictions.probabilities, strict=True
        ):
            named = (text_cell(catalog.classes[of]) for of in (label, pred))
            probability, photograph = f"{probabilities[pred]:.6f}", path_cell(str(catalog.photographs[index]))
            lines.writerow((path_cell(str(catalog.paths[index])), *named, probability, photograph, int(pred == label)))
    matrix = confusion_matrix(predictions, len(catalog.classes))
    with csv_table(folder / "confusion_matrix.csv") as lines:
        lines.writerow(("true", *map(text_cell, catalog.classes)))
        lines.writerows((text_cell(name), *row) for name, row in zip(catalog.classes, matrix.tolist(), strict=True))
    plots = folder / "plots"
    figures.save(figures.confusion_figure(matrix, catalog.classes), plots / "confusion_matrix.png")
    figures.save(figures.prediction_figure(predictions, catalog, PICTURES), plots / "predictions.png")


def metrics(summary: Summary) -> dict[str, float]:
    """Return the scores of a summary by metric name (``val/accuracy``, ``test/macro_f1``)."""
    return {
        f"{stage}/{key}": value
        for stage in ("val", "test")
        for key, value in summary[stage].items()
        if isinstance(value, float)
    }
