"""The files of a run folder, and the text printed at the start and the end of a run."""

import json
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
from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.data.splits import leak_warning
from fish_lightning.data.trained_sources import OtherSource, UnknownImages
from fish_lightning.errors import UserError, first_line
from fish_lightning.evaluation.abstention import choose_threshold
from fish_lightning.evaluation.analysis import Analysis, analyze, calibration_of
from fish_lightning.evaluation.members import BEST, Tested
from fish_lightning.evaluation.outputs import FILE as OUTPUTS_FILE
from fish_lightning.evaluation.outputs import INPUTS_FILE, Outputs, ReportInputs
from fish_lightning.evaluation.scores import confusion_matrix
from fish_lightning.evaluation.stored_calibration import Stored, write_calibration
from fish_lightning.files import atomic_write, csv_table, read_summary, run_of, shown, write_json
from fish_lightning.models.checkpoint import weights_digest
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.names import path_cell, printable, text_cell
from fish_lightning.plotting import figures
from fish_lightning.plotting.figures import Row
from fish_lightning.plotting.thumbnails import thumbnail
from fish_lightning.report.explanations import audit_report, error_heat_maps, left_out_outputs, training_outputs
from fish_lightning.report.run_report import write_report
from fish_lightning.report.tables import closing_table, ensemble_table, evaluation_table

PICTURES = 18  # test images in plots/predictions.png
UNKNOWN_FILE = "unknown_logits.npz"
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
    outputs: Outputs | None,
    model: FishClassifier,
    data: FishDataModule,
    cfg: DictConfig,
) -> None:
    """Write the files of a finished run and print its results.

    ``summary.json`` comes last: it marks the run as complete.

    Args:
        folder: folder of the run.
        summary: summary from :func:`fish_lightning.training.summary.summarize_run`.
        history: one row per epoch.
        outputs: outputs for test and validation images, or for the latter only if there was no test: then the report is
            about the validation; None for a pruned run.
        model: the tested model.
        data: the run's data module.
        cfg: the whole config.
    """
    if history:
        for what in ("loss", "accuracy"):
            figures.save(figures.history_figure(history, what), folder / "plots" / f"{what}.png")
    if outputs and summary["test"]:
        write_test(folder, outputs, "test", data.catalog.root)
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
    outputs: Outputs,
    model: FishClassifier,
    data: FishDataModule,
    cfg: DictConfig,
    stored: Mapping[str, Any],
    unknown: tuple[UnknownImages, Outputs] | None = None,
) -> None:
    """Write the files of an evaluation and print its results.

    Args:
        folder: folder of the evaluation.
        summary: summary from :func:`fish_lightning.training.summary.summarize_evaluation`.
        outputs: outputs for the tested images.
        model: the tested model.
        data: the evaluation's data module.
        cfg: the whole config.
        stored: the training run's calibration, as ``read_calibration`` returns it; empty without one.
        unknown: unknown images, and the outputs for those that can be read.
    """
    subset = cfg.subset
    write_test(folder, outputs, subset, data.catalog.root)
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


def write_ensemble(
    folder: Path,
    checkpoint: dict[str, Any],
    summary: Summary,
    tested: Tested | None,
    model: FishClassifier,
    data: FishDataModule,
    cfg: DictConfig,
) -> None:
    """Write the folder of an ensemble and print its results; ``summary.json`` comes last.

    Args:
        folder: folder of the ensemble.
        checkpoint: checkpoint of the ensemble, which becomes ``checkpoints/best.ckpt``.
        summary: summary from :func:`fish_lightning.training.ensemble.summarize_ensemble`.
        tested: results of the test; None where there was no image to score.
        model: the ensemble.
        data: the ensemble's data module.
        cfg: the whole config.
    """
    with atomic_write(folder / BEST) as temporary:
        torch.save(checkpoint, temporary)
    data.catalog.write_csv(folder / "split.csv")
    if tested is not None:
        write_test(folder, tested.outputs, tested.subset, data.catalog.root)
        summary[tested.subset] |= explain(
            folder, model, data, tested.outputs, cfg, tested.subset, candidates=summary["compared_checkpoints"]
        )
    write_summary(folder, summary | {"checkpoint": str(folder / BEST)})
    print(ensemble_table(folder, summary, tested.subset if tested else None))


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
        folder: folder of the run or evaluation.
        model: the tested model.
        data: the model's data module.
        outputs: outputs for the tested images, and for validation images where they are known.
        cfg: the whole config; ``report`` says whether the report is written.
        subset: subset that was tested.
        history: one row per epoch of a training run.
        run: ``summary.json`` of a training run; None for an evaluation.
        stored: the training run's calibration, as ``read_calibration`` returns it; None unless this is an evaluation.
        unknown: outputs for unknown images.
        candidates: number of checkpoints compared on the validation images; None: as ``run`` or ``stored`` says.

    Returns:
        ``calibration``, ``selective``, ``audit`` (None without a report or without masks) and, with unknown images or
        where a class was left out, ``unknowns``: they become part of the scores in ``summary.json``.
    """
    model.eval()
    catalog, detector = data.catalog, (stored or {}).get("unknown") or {}
    trained = catalog.photographs[catalog.splits == "train"]
    excluded = 0
    if unknown is None:
        unknown, excluded = left_out_outputs(model, data)
    training, known_catalog = None, catalog
    if cfg.report or not detector:
        # Of an evaluation on other data, the training images are in another folder, if they are still there.
        known_catalog = data.source.known if isinstance(data.source, OtherSource) else catalog
        training = training_outputs(model, data, known_catalog)
        if training is None:
            training, known_catalog = training_outputs(model, data, catalog), catalog
    selective = (stored or {}).get("selective") or {}
    if candidates is None:
        candidates = selective.get("candidates", 1) if run is None else run["compared_checkpoints"]
    photographs = known_catalog.photographs_or_paths[known_catalog.indices("train")]
    texts: dict[str, Any] = {
        "title": f"{model.hparams['name']} on {printable(catalog.root.resolve().name)}",
        "subset": subset,
        "split": data.split_name,
        "root": str(catalog.root.resolve()),
        "training_root": str(known_catalog.root.resolve()),
        "training_photographs": len(np.unique(photographs)),
        "heat_note": "",
        "audit": "",
        "history": list(history),
        "best_epoch": run and run["best_epoch"],
        "config": OmegaConf.to_yaml(cfg, resolve=True),
        "environment": _environment(model, run),
        "report": bool(cfg.report),
        "candidates": candidates,
        "target_error": cfg.evaluate.target_error or selective.get("target_error", TARGET_ERROR),
        "stored": None if stored is None else _without_features(stored),
        "fitted_to": {"weights": weights_digest(model), "tta": model.tta},
    }
    leaked = outputs.copies_of(trained) if catalog.photographs_known else None
    inputs = ReportInputs(training, detector.get("features"), leaked, {}, texts)
    analysis = _analyze(folder, outputs, inputs, stored, unknown)
    if cfg.report:
        texts["audit"] = audit_report(model, data, outputs.subset(subset), training=subset in ("test", "val"))
        heat, texts["heat_note"] = error_heat_maps(model, data, analysis)
        inputs.heat.update((path, cells.astype(np.float16)) for path, cells in heat.items())
    inputs.save(folder / INPUTS_FILE)
    blocks = _write_findings(folder, analysis, inputs, unknown)
    if unknown is not None and data.left_out is not None:
        unknown.save(folder / UNKNOWN_FILE)
    if "unknowns" in blocks:
        blocks["unknowns"]["excluded"] = excluded
    return blocks | {"audit": None if isinstance(texts["audit"], str) else texts["audit"]}


def recompute(folder: Path, target_error: float | None = None) -> tuple[str, Summary, bool]:
    """Compute calibration, abstention and report of a run or an evaluation from ``logits.npz`` again.

    ``calibration.json``, ``report.html`` (unless there is none, with ``report=false``) and their figures in
    ``summary.json`` are replaced. For another target error, an evaluation chooses the threshold on the validation
    images of its training run.

    Args:
        folder: folder of the run or evaluation.
        target_error: target error, see :func:`~fish_lightning.evaluation.abstention.choose_threshold`; None: as before.

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
    texts["target_error"] = target_error or texts["target_error"]
    blocks = _write_findings(folder, _analyze(folder, outputs, inputs, stored, unknown), inputs, unknown)
    if "unknowns" in blocks:
        blocks["unknowns"] = scores.get("unknowns", {}) | blocks["unknowns"]
    scores |= blocks
    write_summary(folder, summary)
    return subset, scores, texts["report"]


def _analyze(
    folder: Path, outputs: Outputs, inputs: ReportInputs, stored: Mapping[str, Any] | None, unknown: Outputs | None
) -> Analysis:
    """Analyze, and write the calibration of a training run, for which nothing is stored yet."""
    texts = inputs.texts
    settings: dict[str, Any] = {"subset": texts["subset"], "leaked": inputs.leaked, "candidates": texts["candidates"]}
    analysis = analyze(outputs, inputs.training, texts["target_error"], stored=stored, unknown=unknown, **settings)
    if stored is None and analysis.guarantee:
        write_calibration(folder, calibration_of(analysis) | texts["fitted_to"])
    return analysis


def _write_findings(folder: Path, analysis: Analysis, inputs: ReportInputs, unknown: Outputs | None) -> Summary:
    """Write ``report.html``.

    Returns:
        What the analysis adds to the scores in ``summary.json``.
    """
    texts = inputs.texts
    if texts["report"]:
        root, training_root = Path(texts["root"]), Path(texts["training_root"])
        write_report(
            folder / "report.html",
            analysis,
            texts,
            lambda path: thumbnail(root / path, 256),
            lambda path: thumbnail(training_root / path, 256),
            inputs.heat,
        )
    blocks: Summary = {"calibration": analysis.calibration, "selective": analysis.selective}
    if unknown is not None and analysis.unknowns:
        blocks["unknowns"] = dict(analysis.unknowns)
    return blocks


def for_target(stored: Mapping[str, Any], ckpt: str | Path, target_error: float) -> Stored:
    """Return the calibration of a training run with the abstention threshold for another target error.

    It is chosen on the validation images in the run's ``logits.npz``.

    Args:
        stored: calibration of the run, as ``read_calibration`` returns it.
        ckpt: the run folder, or a checkpoint in it.
        target_error: target error, see :func:`~fish_lightning.evaluation.abstention.choose_threshold`.

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
    chosen = choose_threshold(val.confidence, val.correct, val.known_photographs, target_error, candidates)
    selective = {"threshold": chosen.threshold, "target_error": target_error, "candidates": candidates}
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


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json``; JSON has no NaN and no infinity, which become null."""
    finite = json.loads(json.dumps(summary), parse_constant=lambda constant: None)
    write_json(folder / "summary.json", finite)


def write_test(folder: Path, outputs: Outputs, subset: str, root: Path) -> None:
    """Write ``logits.npz``, ``test_predictions.csv``, ``confusion_matrix.csv`` and its plot, and example images.

    Args:
        folder: folder to write to.
        outputs: outputs for the tested images and for those on which temperature and thresholds are chosen.
        subset: subset that was tested.
        root: folder that the images' paths are relative to.
    """
    outputs.save(folder / OUTPUTS_FILE)
    tested, classes = outputs.subset(subset), outputs.classes.tolist()
    with csv_table(folder / "test_predictions.csv") as lines:
        lines.writerow(("path", "label", "prediction", "probability", "photograph", "correct"))
        columns = (tested.paths.tolist(), tested.labels, tested.preds, tested.confidence, tested.photographs.tolist())
        for path, label, pred, probability, photograph in zip(*columns, strict=True):
            named = (text_cell(classes[of]) for of in (label, pred))
            lines.writerow((path_cell(path), *named, f"{probability:.6f}", path_cell(photograph), int(pred == label)))
    matrix = confusion_matrix(tested, len(classes))
    with csv_table(folder / "confusion_matrix.csv") as lines:
        lines.writerow(("true", *map(text_cell, classes)))
        lines.writerows((text_cell(name), *row) for name, row in zip(classes, matrix.tolist(), strict=True))
    figures.save(figures.confusion_figure(matrix, classes), folder / "plots" / "confusion_matrix.png")
    figures.save(figures.prediction_figure(tested, root, PICTURES), folder / "plots" / "predictions.png")


def metrics(summary: Summary) -> dict[str, float]:
    """Return the scores of a summary by metric name (``val/accuracy``, ``test/macro_f1``)."""
    return {
        f"{stage}/{key}": value
        for stage in ("val", "test")
        for key, value in summary[stage].items()
        if isinstance(value, float)
    }
