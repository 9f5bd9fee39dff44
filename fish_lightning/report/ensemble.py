"""The folder of an ensemble, and what is printed about it."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.evaluation.members import BEST, Tested
from fish_lightning.evaluation.stored_calibration import FILE as CALIBRATION_FILE
from fish_lightning.files import atomic_write, override, shown
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.names import listed, printable
from fish_lightning.report.run import Summary, explain, write_summary, write_test
from fish_lightning.report.tables import score_table


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
        folder: of the ensemble.
        checkpoint: of the ensemble, which becomes ``checkpoints/best.ckpt``.
        summary: see :func:`fish_lightning.training.ensemble.summarize_ensemble`.
        tested: what the test has found; None where there was no image to score.
        model: the ensemble.
        data: its data.
        cfg: the whole config.
    """
    with atomic_write(folder / BEST) as temporary:
        torch.save(checkpoint, temporary)
    data.catalog.write_csv(folder / "split.csv")
    if tested is not None:
        write_test(folder, tested.predictions, tested.outputs, data.catalog)
        summary[tested.subset] |= explain(
            folder, model, data, tested.outputs, cfg, tested.subset, candidates=summary["compared_checkpoints"]
        )
    write_summary(folder, summary | {"checkpoint": str(folder / BEST)})
    print(ensemble_table(folder, summary, tested.subset if tested else None))


def ensemble_table(folder: Path, summary: Summary, subset: str | None) -> str:
    """Return the results of an ensemble as text.

    Args:
        folder: of the ensemble.
        summary: its ``summary.json``.
        subset: what was tested; None: nothing.
    """
    members, cost = summary["members"], summary["cost"]
    networks = listed(list(dict.fromkeys(member["model"] for member in members)))
    lines = [f"ensemble     {len(members)} members ({networks}): {listed([member['run'] for member in members])}"]
    if subset is None:
        lines += _unscored_lines(summary)
    else:
        words = f"{summary['split']}; {_scored_words(subset)}"
        lines = [score_table(summary[subset], words, subset), "", *lines, *_gain_lines(summary["gain"])]
    times = f"{cost['forward']:.1f} times the forward pass of a member, " if cost["forward"] else ""
    lines.append(f"cost         {times}{cost['mb']:.1f} MB instead of {cost['member_mb']:.1f} MB")
    lines += [_calibration_line(folder, summary), f"folder       {shown(folder)}"]
    if (folder / "report.html").is_file():
        lines.append(f"report       {shown(folder / 'report.html')}")
    if subset is None:
        lines.append(
            f"score it     python -m fish_lightning.evaluate {override('ckpt', folder)} data=folder data.root=DIR"
        )
    return "\n".join([*lines, f"predict      python -m fish_lightning.predict {override('ckpt', folder)} input=FOLDER"])


def _scored_words(subset: str) -> str:
    if subset == "test":
        return "images in every member's test set"
    return "images no member was trained on, though some selected their epoch on them"


def _gain_lines(gain: Summary) -> list[str]:
    best = gain["best_by_validation"]
    names = [("the average member", gain["mean_member"])]
    if best:
        names.append((f"the member with the best validation accuracy, {printable(best['run'])}", best))
    lines: list[str] = []
    for name, found in names:
        low, high = (f"{100 * bound:+.1f}" for bound in found["difference_ci95_photographs"])
        lines.append(
            f"{'gain' if not lines else '':<11}  {100 * found['difference']:+.1f} points over {name} "
            f"({found['accuracy']['member']:.1%}); 95% CI {low} to {high}: {found['verdict']}"
        )
    return lines


def _unscored_lines(summary: Summary) -> list[str]:
    """Return why there is no score, and how the members do one by one."""
    images = sum(summary["images"].values())
    lines = [f"not scored   each of the {images:,} images, or a copy of it, was in some member's training set"]
    if pooled := summary["members_pooled"]:
        interval = pooled["accuracy_ci95_photographs"] or pooled["accuracy_ci95"]
        clustered = " clustered by photograph" if pooled["accuracy_ci95_photographs"] else ""
        lines.append(
            f"             its members one by one, each on its own test images: {pooled['accuracy']:.1%} of "
            f"{pooled['n']:,};\n             95% CI {interval[0]:.1%} to {interval[1]:.1%}{clustered}"
        )
    return lines


def _calibration_line(folder: Path, summary: Summary) -> str:
    if (folder / CALIBRATION_FILE).is_file():
        return f"calibration  from {summary['images']['val']:,} images that no member was trained on"
    return "calibration  none: no images are held out from every member"
