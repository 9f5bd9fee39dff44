"""The results of a run or an evaluation as text for the terminal."""

from pathlib import Path
from shlex import quote
from typing import Any

from fish_lightning.evaluation.scores import leak_sentence
from fish_lightning.evaluation.stored_calibration import FILE as CALIBRATION_FILE
from fish_lightning.files import override, shown
from fish_lightning.names import aligned, listed, printable, shortened

Summary = dict[str, Any]

CLASSES = 20  # of a table at most


def score_table(test: Summary, split: str, subset: str = "test") -> str:
    """Return the scores of a subset as a table, with at most ``CLASSES`` classes."""
    name = "accuracy" if subset == "all" else f"{subset} accuracy"
    low, high = test["accuracy_ci95"]
    wrong = round(test["n"] * (1 - test["accuracy"]))
    lines = [
        f"{name:<15}{test['accuracy']:.2%}   95% CI {low:.1%} to {high:.1%}",
        f"               {wrong} of {test['n']} wrong; split={split}",
    ]
    if test["n"] < test.get("images_in_split", test["n"]):
        lines.append(f"               tested {test['n']:,} of {test['images_in_split']:,} images")
    lines += [*_photograph_lines(test), f"macro F1       {test['macro_f1']:.4f}", f"loss           {test['loss']:.4f}"]
    predicted = [name for name, scores in test["per_class"].items() if scores["precision"] is not None]
    if len(predicted) == 1 < sum(scores["n"] > 0 for scores in test["per_class"].values()):
        lines.append(f"warning: the model predicts the same class for every image: {printable(predicted[0])}")
    return "\n".join([*lines, "", *_class_lines(test["per_class"])])


def _class_lines(per_class: Summary) -> list[str]:
    """Return precision, recall and images of each class; of many classes, those with the lowest recall."""
    shown = list(per_class)
    if len(shown) > CLASSES:
        tested = [name for name in shown if per_class[name]["n"]]
        shown = sorted(tested, key=lambda name: per_class[name]["recall"])[:CLASSES]
    names = [shortened(printable(name)) for name in shown]
    cells = [("class", "precision", "recall", "images")]
    for name, scores in zip(names, map(per_class.__getitem__, shown), strict=True):
        precision, recall = (f"{x:.1%}" if x is not None else "-" for x in (scores["precision"], scores["recall"]))
        cells.append((name, precision, recall, str(scores["n"])))
    lines = aligned(cells, right=(1, 2, 3))
    if len(shown) < len(per_class):
        lines.append(f"{len(shown)} of {len(per_class):,} classes, those with the lowest recall; all in summary.json")
    return lines


def _photograph_lines(test: Summary) -> list[str]:
    """Return the interval clustered by photograph, and a warning if copies are on both sides of the split."""
    if test["photographs"] is None:
        return ["               no CI clustered by photograph: near-duplicates are unknown (data.find_copies=true)"]
    low, high = test["accuracy_ci95_photographs"]
    lines = [f"               {low:.1%} to {high:.1%}: 95% CI clustered by photograph (n={test['photographs']})"]
    if test["leaked_test_images"]:
        lines.append("warning: " + leak_sentence(test).replace("; ", ";\n         "))
    return lines


def evaluation_table(folder: Path, summary: Summary, subset: str) -> str:
    """Return the results of an evaluation and its folder."""
    scores = score_table(summary[subset], f"{summary['split']}, subset={subset}", subset)
    lines = []
    if summary["unreadable_images"]:
        lines.append(f"excluded: {len(summary['unreadable_images'])} unreadable images, listed in summary.json")
    left_out = summary.get("left_out")
    if left_out and left_out["n"]:
        names = "excluded" if subset not in ("train", "all") else "included"
        lines.append(
            f"{names}: {left_out['n']} images that are copies of training images, listed in summary.json;\n"
            f"          accuracy on them {left_out['accuracy']:.2%}"
        )
    elif left_out:
        lines.append("none of the images is a copy of a training image")
    if summary.get("missing_training_images"):
        lines.append(
            f"warning: {summary['missing_training_images']:,} training images no longer exist: copies of them may be\n"
            "         among the scored images"
        )
    for key, severity, what in (
        ("changed_images", "warning", "different content than in the training run"),
        ("rewritten_images", "note", "been rewritten since the training run"),
    ):
        if paths := summary.get(key):
            count = "1 image has" if len(paths) == 1 else f"{len(paths):,} images have"
            lines.append(f"{severity}: {count} {what}: {listed(paths, 4)}")
    if unknowns := summary[subset].get("unknowns"):
        lines += [""] * bool(lines) + _unknown_lines(unknowns)
    lines += ["", f"data     {printable(summary['data'])}", f"folder   {shown(folder)}"]
    if (folder / "report.html").is_file():
        lines.append(f"report   {shown(folder / 'report.html')}")
    return "\n".join([scores, "", *lines])


def recomputed_table(folder: Path, subset: str, scores: Summary, drawn: bool) -> str:
    """Return what was computed again from the ``logits.npz`` of a run or an evaluation, perhaps without a report."""
    calibration, selective = scores["calibration"], scores["selective"]
    after = calibration["after"]
    scaled = f", {after['ece']:.2%} with the temperature {calibration['temperature']:.3f}" if after else ""
    target = f"(target_error={selective['target_error']:g})"
    answered = f"no threshold can guarantee the target error {target}"
    if selective["threshold"] is not None:
        wrong = "" if selective["error"] is None else f", {selective['error']:.1%} of the answers are wrong"
        answered = f"answers {selective['coverage']:.1%} of the images{wrong} {target}"
    return "\n".join(
        [
            f"recomputed   from logits.npz: {scores['n']:,} images, subset={subset}",
            f"calibration  ECE {calibration['ece']:.2%}{scaled}",
            f"abstention   {answered}",
            f"folder       {shown(folder)}",
            f"report       {shown(folder / 'report.html') if drawn else 'none: the run was made with report=false'}",
        ]
    )


def _unknown_lines(unknowns: Summary) -> list[str]:
    """Return how well unknown images are separated from the tested ones."""
    part = "" if unknowns["photographs"] is None else f" of {unknowns['photographs']:,} photographs"
    lines = [f"unknown  {unknowns['n']:,} images{part}"]
    if unknowns["excluded"]:
        lines.append(f"         excluded: {unknowns['excluded']:,} that are copies of images of the run or of the test")
    if unknowns["unreadable_images"]:
        lines.append(f"         excluded: {len(unknowns['unreadable_images']):,} unreadable, listed in summary.json")
    if unknowns["missing_images"]:
        lines.append(
            f"warning: {unknowns['missing_images']:,} images of the run no longer exist: copies of them may be\n"
            "         among the unknown images"
        )
    lines.append("score         AUROC  95% CI           FPR at 95%  95% CI")
    for name, found in unknowns["scores"].items():
        auroc = f"{found['auroc']:.3f}  {found['auroc_ci95'][0]:.3f} to {found['auroc_ci95'][1]:.3f}"
        fpr = f"{found['fpr95']:.1%}"
        interval = f"{found['fpr95_ci95'][0]:.1%} to {found['fpr95_ci95'][1]:.1%}"
        best = "  best" if name == unknowns["best"] else ""
        lines.append(f"{name:<12}  {auroc}  {fpr:>10}  {interval}{best}")
    if unknowns["threshold"] is None:
        lines.append("calibration.json contains no threshold")
    else:
        lines.append(
            f"threshold     {unknowns['score']} below {unknowns['threshold']:.4g}: {unknowns['rejected']:.1%} of the "
            f"unknown and {unknowns['known_rejected']:.1%} of the known images are rejected"
        )
    return lines


def closing_table(folder: Path, summary: Summary) -> str:
    """Return the results of a training run, its folder and the next commands."""
    lines = [score_table(summary["test"], summary["split"])] if summary["test"] else ["not tested (test=false)"]
    if summary["unreadable_images"]:
        lines.append(f"\nexcluded: {len(summary['unreadable_images'])} unreadable images, listed in summary.json")
    if summary["skipped_batches"]:
        lines.append(f"\nskipped batches with a NaN or infinite loss (on_nan=skip): {summary['skipped_batches']}")
    if summary["seconds"]:
        speed = f"{summary['train_images_per_second']:.0f} training images/s"
        lines.append(f"\n{summary['epochs']} epochs in {summary['seconds']:.0f} s, {speed}")
    if summary["stopped_by"]:
        further = {
            "max_time": "; resume with\n"
            f"  python -m fish_lightning.train {override('ckpt', folder)} trainer.max_time=null",
            "max_steps": "; to train longer, start a new run with a larger trainer.max_steps",
        }.get(summary["stopped_by"], "")
        lines.append(f"stopped by {summary['stopped_by']} in epoch {summary['epochs']:.0f}{further}")
    if summary["limits"]:
        limits = ", ".join(f"{key}={value}" for key, value in summary["limits"].items())
        lines.append(f"warning: only part of the data was used ({limits})")
    checkpoint = summary["checkpoint"]
    if not checkpoint:
        lines.append("no checkpoint was kept")
    elif summary["best_by"] == "step":
        lines.append(f"last epoch   {summary['best_epoch']} was kept (callbacks.best.monitor=step)")
    else:
        lines.append(f"best epoch   {summary['best_epoch']} by {summary['best_by'].replace('val/', 'validation ')}")
    lines += [f"run folder   {shown(folder)}", f"plots        {shown(folder / 'plots')}"]
    if (folder / "report.html").is_file():
        lines.append(f"report       {shown(folder / 'report.html')}")
    if checkpoint:
        lines.append(_predict_line(checkpoint, summary["tta"]))
    return "\n".join([*lines, f"tensorboard  tensorboard --logdir {quote(shown(folder))}"])


def ensemble_table(folder: Path, summary: Summary, subset: str | None) -> str:
    """Return the results of an ensemble as text.

    Args:
        folder: folder of the ensemble.
        summary: ``summary.json`` of the ensemble.
        subset: subset that was tested; None: none.
    """
    members, cost = summary["members"], summary["cost"]
    networks = listed(list(dict.fromkeys(member["model"] for member in members)))
    lines = [f"ensemble     {len(members)} members ({networks}): {listed([member['run'] for member in members])}"]
    if subset is None:
        lines += _unscored_lines(summary)
    else:
        scored = "images in every member's test set"
        if subset != "test":
            scored = "images no member was trained on, though some selected their epoch on them"
        table = score_table(summary[subset], f"{summary['split']}; {scored}", subset)
        lines = [table, "", *lines, *_gain_lines(summary["gain"])]
    times = f"{cost['forward']:.1f} times the forward pass of a member, " if cost["forward"] else ""
    lines.append(f"cost         {times}{cost['mb']:.1f} MB instead of {cost['member_mb']:.1f} MB")
    calibrated = "none: no images are held out from every member"
    if (folder / CALIBRATION_FILE).is_file():
        calibrated = f"from {summary['images']['val']:,} images that no member was trained on"
    lines += [f"calibration  {calibrated}", f"folder       {shown(folder)}"]
    if (folder / "report.html").is_file():
        lines.append(f"report       {shown(folder / 'report.html')}")
    if subset is None:
        lines.append(
            f"score it     python -m fish_lightning.evaluate {_model(folder, summary['tta'])} data=folder data.root=DIR"
        )
    return "\n".join([*lines, _predict_line(folder, summary["tta"])])


def _predict_line(ckpt: str | Path, tta: str | None) -> str:
    """Return the next command; with the views of the test, for which the probabilities are calibrated."""
    return f"predict      python -m fish_lightning.predict {_model(ckpt, tta)} input=FOLDER"


def _model(ckpt: str | Path, tta: str | None) -> str:
    return override("ckpt", ckpt) + (f" tta={tta}" if tta else "")


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
