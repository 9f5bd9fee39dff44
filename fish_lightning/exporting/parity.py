"""Does an export answer as the checkpoint does? Measured from the bytes of image files, preprocessing included.

One side is what ``predict`` does with a checkpoint: decode, the albumentations pipeline, the network in float32. The
other is the ONNX file in ONNX Runtime, given the decoded pixels. Its answers are compared one image at a time, in
batches of 3 and of 32, and for odd sizes.
"""

import timeit
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from fish_lightning.data.catalog import Catalog
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import softmax
from fish_lightning.evaluation.comparison import compare
from fish_lightning.evaluation.scores import accuracy_of, photograph_interval
from fish_lightning.evaluation.stored_calibration import Stored, apply_calibration
from fish_lightning.models.exported import LOGITS, PROBABILITIES, UNKNOWN_SCORE, Session
from fish_lightning.models.trained import TrainedModel

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

OUTPUTS = (PROBABILITIES, LOGITS, UNKNOWN_SCORE)
BATCHES = (1, 3, 32)
#: A flip counts where the checkpoint's best class is this much more probable than its second.
MARGIN = 0.02
WORST = 5  # images that are named
ROUNDS = 5  # of a timing, of which the fastest counts
#: How two sides differ for an image: largest and mean difference in a probability; whether the predicted classes
#: differ, also where the checkpoint's top two are further apart than ``MARGIN``; whether *uncertain* or *none of these*
#: differ.
DIFFERENCE = np.dtype(
    [("largest", float), ("mean", float), ("flips", bool), ("flips_beyond_margin", bool), ("other_marks", bool)]
)
COUNTS = ("flips", "flips_beyond_margin", "other_marks")


@dataclass(frozen=True)
class Answer:
    """What one side says of N images.

    Attributes:
        probabilities: (N, C) probabilities, calibrated where there is a temperature.
        plain: (N, C) softmax of the logits.
        marks: (2, N) whether an answer is marked as uncertain, and whether an image as of none of the classes.
    """

    probabilities: npt.NDArray[np.float64]
    plain: npt.NDArray[np.float64]
    marks: npt.NDArray[np.bool_]


def by_checkpoint(trained: TrainedModel, images: Sequence[Pixels]) -> Answer:
    """Answer as ``predict`` does with a checkpoint, in float32."""
    seen = torch.stack([trained.transform(image=image)["image"] for image in images])
    with torch.inference_mode():
        logits, features = (part.numpy() for part in trained.module.logits_and_features(seen))
    answers = apply_calibration(trained.calibration, logits, features.astype(np.float16))
    none = np.zeros(len(images), dtype=np.bool_)
    return Answer(
        answers.probabilities if answers.calibrated is None else answers.calibrated,
        answers.probabilities,
        np.stack([none if mark is None else mark for mark in (answers.uncertain, answers.unknown)]),
    )


def by_export(session: Session, calibration: Stored, images: Sequence[Pixels], size: int) -> Answer:
    """Answer as a reader of ``model.json`` does with the ONNX file.

    Args:
        session: session of the whole graph, with the outputs ``OUTPUTS``.
        calibration: content of ``calibration.json``, whose thresholds ``model.json`` has.
        images: N images, with those of one size next to each other.
        size: maximum batch size.
    """
    probabilities, logits, score = _computed(session, images, size)
    plain = softmax(logits)
    none = np.zeros(len(images), dtype=np.bool_)
    thresholds = [(calibration.get(rule) or {}).get("threshold") for rule in ("selective", "unknown")]
    marks = [
        none if threshold is None else values < threshold
        for values, threshold in zip((plain.max(axis=1), score), thresholds, strict=True)
    ]
    return Answer(probabilities.astype(np.float64), plain, np.stack(marks))


def differences(expected: Answer, found: Answer) -> npt.NDArray[Any]:
    """Return the (N,) differences between two sides, of type ``DIFFERENCE``."""
    dp = np.abs(expected.probabilities - found.probabilities)
    ranked = np.sort(expected.probabilities, axis=1)
    apart = np.empty(len(ranked), DIFFERENCE)
    apart["largest"] = np.maximum(dp, np.abs(expected.plain - found.plain)).max(axis=1)
    apart["mean"] = dp.mean(axis=1)
    apart["flips"] = expected.plain.argmax(axis=1) != found.plain.argmax(axis=1)
    apart["flips_beyond_margin"] = apart["flips"] & (ranked[:, -1] - ranked[:, -2] > MARGIN)
    apart["other_marks"] = (expected.marks != found.marks).any(axis=0)
    return apart


def parity_figures(apart: npt.NDArray[Any]) -> dict[str, Any]:
    """Return the figures in ``parity.json`` for N images, from (N,) differences of type ``DIFFERENCE``."""
    return {
        "n": len(apart),
        "max_abs_dp": float(apart["largest"].max()),
        "mean_abs_dp": float(apart["mean"].mean()),
        **{key: int(apart[key].sum()) for key in COUNTS},
    }


def measure_parity(
    trained: TrainedModel, graph: bytes, catalog: Catalog, indices: Indices, tolerance: float
) -> dict[str, Any]:
    """Compare an ONNX file with the checkpoint that it was made from.

    Args:
        trained: the checkpoint.
        graph: the serialized ONNX model.
        catalog: catalog of the training run.
        indices: indices of the images to compare.
        tolerance: largest allowed difference in any probability.

    Returns:
        ``n``; ``max_abs_dp``, the largest difference in any probability of any image, and ``mean_abs_dp``; ``flips``
        (images whose predicted class differs), ``flips_beyond_margin``, ``other_marks`` (images whose mark *uncertain*
        or *none of these* differs): over all comparisons; ``batches``: these figures for each batch size;
        ``odd_sizes``: these figures for images of odd height and width, with that size; ``worst``: path and difference
        of some images; ``unreadable_images``; ``tolerance``; ``margin``; ``passed``.

    Raises:
        UserError: none of the images can be read.
    """
    session = Session(graph, OUTPUTS)
    kept: list[int] = []
    blocks, odd, odd_size = [], np.empty(0, DIFFERENCE), (0, 0)

    def compared(images: Sequence[Pixels]) -> npt.NDArray[Any]:
        expected = by_checkpoint(trained, images)
        return np.stack(
            [differences(expected, by_export(session, trained.calibration, images, size)) for size in BATCHES]
        )

    for at, images in decoded(catalog, indices, "parity"):
        if not kept:
            corners = _odd_corners(images)
            odd, odd_size = compared(corners).ravel(), corners[0].shape[:2]
        kept += at
        blocks.append(compared(images))
    if not kept:
        raise UserError(f"export: none of the {len(indices)} images in {catalog.root} could be read")
    every = np.concatenate(blocks, axis=1)  # (batch sizes, images)
    largest = every["largest"].max(axis=0)
    total = parity_figures(np.concatenate([every.ravel(), odd])) | {"n": len(kept)}
    total |= {key: int(every[key].any(axis=0).sum()) for key in COUNTS}
    beyond = total["flips_beyond_margin"] + odd["flips_beyond_margin"].sum()
    return total | {
        "tolerance": tolerance,
        "margin": MARGIN,
        "passed": total["max_abs_dp"] <= tolerance and bool(beyond == 0),
        "batches": {str(size): parity_figures(apart) for size, apart in zip(BATCHES, every, strict=True)},
        "odd_sizes": {"height": odd_size[0], "width": odd_size[1], **parity_figures(odd)},
        "worst": [[str(catalog.paths[kept[i]]), float(largest[i])] for i in np.argsort(-largest)[:WORST]],
        "unreadable_images": [str(catalog.paths[i]) for i in indices.tolist() if i not in set(kept)],
    }


def _odd_corners(images: Sequence[Pixels]) -> list[Pixels]:
    """Return corners of images, all of one odd height and width, as a batch of 32."""
    height, width = np.min([image.shape[:2] for image in images], axis=0)
    height, width = max(1, height - 1 + height % 2), max(1, width - 1 + width % 2)
    return [images[i % len(images)][:height, :width] for i in range(BATCHES[-1])]


def decoded(catalog: Catalog, indices: Indices, bar: str) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Yield the indices of up to 32 images at a time, and the images, with those of equal size next to each other.

    Args:
        catalog: catalog that contains the images.
        indices: indices of the images; unreadable ones are left out.
        bar: name of the progress bar.
    """
    starts = range(0, len(indices), BATCHES[-1])
    for start in tqdm(starts, bar, unit="batch", leave=False, disable=None):
        read: list[tuple[int, Pixels]] = []
        for index in indices[start : start + BATCHES[-1]].tolist():
            try:
                read.append((index, decode(catalog.root / str(catalog.paths[index]))))
            except UnreadableImage:
                continue  # named in parity.json
        read.sort(key=lambda pair: pair[1].shape)
        if read:
            yield [index for index, _ in read], [image for _, image in read]


def _computed(session: Session, images: Sequence[Pixels], size: int) -> list[npt.NDArray[Any]]:
    """Return the outputs for images, in batches of those of equal size, which are next to each other."""
    groups = [list(equal) for _, equal in groupby(images, key=np.shape)]
    batches = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    outputs = [session(np.stack(batch)) for batch in batches]
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def compare_precisions(
    full: bytes, small: bytes, catalog: Catalog, indices: Indices, margin: float = 0.01
) -> dict[str, Any]:
    """Compare an export in 8 bits with that in float32, on labeled images.

    Args:
        full: the ONNX model in float32, serialized.
        small: the quantized ONNX model.
        catalog: catalog of the training run.
        indices: indices of held-out images.
        margin: difference in accuracy that does not matter.

    Returns:
        ``verdict`` and ``compare`` (of ``fp32`` as A and ``int8`` as B, see
        :func:`fish_lightning.evaluation.comparison.compare`); ``accuracy``, ``accuracy_ci95`` (Wilson),
        ``accuracy_ci95_photographs`` (clustered by photograph; None where photographs are unknown), ``megabytes`` and
        ``ms_per_image`` by batch size, each of ``fp32`` and ``int8``; ``flips``; ``n``.
    """
    sessions = {"fp32": Session(full, OUTPUTS), "int8": Session(small, OUTPUTS)}
    preds: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in sessions}
    at: list[int] = []
    first: list[Pixels] = []
    for kept, images in decoded(catalog, indices, "parity"):
        at += kept
        first = first or images[:1]
        for name, session in sessions.items():
            _, logits, _ = _computed(session, images, BATCHES[-1])
            preds[name].append(logits.argmax(axis=1))
    photographs = catalog.photographs_or_paths[at] if catalog.photographs_known else None
    found = {name: np.concatenate(parts) for name, parts in preds.items()}
    correct = {name: labels == catalog.labels[at] for name, labels in found.items()}
    compared = compare(correct["fp32"], correct["int8"], photographs, margin)
    scores = {name: accuracy_of(right) for name, right in correct.items()}
    return {
        "n": len(at),
        "verdict": compared["verdict"],
        **{key: {name: of[key] for name, of in scores.items()} for key in ("accuracy", "accuracy_ci95")},
        "accuracy_ci95_photographs": {
            name: None if photographs is None else list(photograph_interval(right, photographs))
            for name, right in correct.items()
        },
        "flips": int((found["fp32"] != found["int8"]).sum()),
        "megabytes": {"fp32": len(full) / 1e6, "int8": len(small) / 1e6},
        "ms_per_image": {str(size): _milliseconds(sessions, first[0], size) for size in (1, BATCHES[-1])},
        "compare": compared,
    }


def _milliseconds(sessions: dict[str, Session], image: Pixels, size: int) -> dict[str, float]:
    """Return milliseconds per image of each graph, timed alternately; the fastest of ``ROUNDS``."""
    batch = np.repeat(image[None], size, axis=0)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            seconds[name].append(timeit.timeit(partial(session, batch), number=1))
    return {name: 1000 * min(times) / size for name, times in seconds.items()}
