"""Run folders as train and evaluate leave them, with chosen answers: what ``compare`` reads."""

import csv
import json

import numpy as np

from fish_lightning.evaluation.outputs import FILE, Outputs

CLASSES = ("bass", "carp", "trout")


def save_run(folder, paths, labels, wrong=(), photographs="", classes=CLASSES, split=None, surer=(), **summary):
    """Write a run folder whose model is right about every test image but those in ``wrong``.

    Args:
        folder: to write.
        paths: of the test images.
        labels: their classes, as indices.
        wrong: indices of the images it gets wrong: it answers the next class.
        photographs: of the images; ``""``: not known.
        classes: class names.
        split: rows of ``split.csv``; None: no such file.
        surer: indices of the images whose answer is given with almost certainty.
        summary: ``summary.json``.
    """
    n, labels = len(paths), np.array(labels, dtype=np.int64)
    preds = labels.copy()
    preds[list(wrong)] = (preds[list(wrong)] + 1) % len(classes)
    logits = np.zeros((n, len(classes)), np.float32)
    logits[np.arange(n), preds] = 2
    logits[list(surer)] *= 3
    photographs = np.broadcast_to(photographs, n).astype(np.str_)
    arrays = (np.array(paths, dtype=np.str_), labels, photographs, np.full(n, "test"), logits)
    Outputs(*arrays, np.zeros((n, 4), np.float16), np.array(classes)).save(folder / FILE)
    (folder / "summary.json").write_text(json.dumps(summary))
    if split is not None:
        with (folder / "split.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("path", "label", "photograph", "split"), *split])
    return folder
