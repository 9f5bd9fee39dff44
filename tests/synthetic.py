"""Outputs of a model that never was: features clustered by class, and copies in groups."""

from dataclasses import replace

import numpy as np

from fish_lightning.evaluation.outputs import Outputs

#: Texts of a report that says as little as it can.
TEXTS = {"title": "a run", "split": None, "history": [], "best_epoch": None, "config": "", "environment": {}}
TEXTS |= {"heat_note": "", "audit": "", "training_photographs": None}


def make_outputs(photographs=None, copies=5, classes=4, noise=1.0, known=True, seed=0):
    """``photographs`` of each split (train, val, test), each with as many copies; the logits are too confident."""
    rng = np.random.default_rng(seed)
    photographs = photographs or {"train": 60, "val": 80, "test": 100}
    splits = np.repeat(list(photographs), [copies * n for n in photographs.values()])
    number = np.arange(len(splits)) // copies
    centers = rng.normal(size=(classes, 16))
    labels = number % classes
    own = rng.normal(size=(number.max() + 1, 16))[number]
    features = centers[labels] + noise * (own + 0.2 * rng.normal(size=(len(splits), 16)))
    logits = 2 * (features @ centers.T - (centers**2).sum(axis=1) / 2)
    names = np.array([f"class {'abcdefghijklmnopqrstuvwxyz'[i % 26]}{i // 26 or ''}" for i in range(classes)])
    return Outputs(
        paths=np.array([f"{names[label]}/{i:06}.png" for i, label in enumerate(labels)]),
        labels=labels,
        photographs=np.array([f"photo {i}" if known else "" for i in number]),
        splits=splits,
        logits=logits.astype(np.float32),
        features=features.astype(np.float16),
        classes=names,
    )


def make_single(n, **changes):
    """N test images without copies and without training or validation."""
    return replace(make_outputs({"test": n}, copies=1), **changes)


def halves(outputs):
    """Outputs as a run keeps them: those of val and test, and those of the training images."""
    return outputs.take(outputs.splits != "train"), outputs.subset("train")
