"""Does an export answer as the checkpoint does? Measured from the bytes of image files, preprocessing included.

One side is what ``predict`` does with a checkpoint: decode, the albumentations pipeline, the network in float32. The
other is the ONNX file in ONNX Runtime, given the decoded pixels. Its answers are compared one image at a time, in
batches of 3 and of 32, and for odd sizes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from fish_lightning.models.exported import FEATURES, LOGITS, PROBABILITIES, UNKNOWN_SCORE, Session
from fish_lightning.models.trained import TrainedModel

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

BATCHES = (1, 3, 32)
#: A flip counts where the checkpoint's best class is this much more probable than its second.
MARGIN = 0.02
WORST = 5  # images that are named
ROUNDS = 5  # of a timing, of which the fastest counts


@dataclass(frozen=True)
class Answer:
    """What one side says of N images.

    Attributes:
        probabilities: (N, C), calibrated where there is a temperature.
        plain: (N, C) softmax of the logits.
        uncertain: (N,) whether an answer is marked as uncertain.
        unknown: (N,) whether an image is marked as of none of the classes.
    """

    probabilities: npt.NDArray[np.float64]
    plain: npt.NDArray[np.float64]
    uncertain: npt.NDArray[np.bool_]
    unknown: npt.NDArray[np.bool_]


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
        none if answers.uncertain is None else answers.uncertain,
        none if answers.unknown is None else answers.unknown,
    )


def by_export(session: Session, calibration: Stored, images: Sequence[Pixels]) -> Answer:
    """Answer as a reader of ``model.json`` does with the ONNX file.

    Args:
        session: of the whole graph, with the outputs ``OUTPUTS``.
        calibration: content of ``calibration.json``, whose thresholds ``model.json`` has.
        images: of one size.
    """
    probabilities, logits, _, score = session(np.stack(images))
    plain = softmax(logits)
    least = (calibration.get("selective") or {}).get("threshold")
    known = (calibration.get("unknown") or {}).get("threshold")
    none = np.zeros(len(images), dtype=np.bool_)
    return Answer(
        probabilities.astype(np.float64),
        plain,
        none if least is None else plain.max(axis=1) < least,
        none if known is None else score < known,
    )


OUTPUTS = (PROBABILITIES, LOGITS, FEATURES, UNKNOWN_SCORE)


@dataclass
class Differences:
    """How two sides differ, image by image.

    Attributes:
        largest: largest difference in any probability, for each image.
        mean: mean difference over the classes, for each image.
        flipped: whether the predicted classes differ.
        beyond: whether they differ although the checkpoint's top two classes are further apart than ``MARGIN``.
        marks: whether the marks *uncertain* or *none of these* differ.
    """

    largest: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    flipped: list[bool] = field(default_factory=list)
    beyond: list[bool] = field(default_factory=list)
    marks: list[bool] = field(default_factory=list)

    def add(self, expected: Answer, found: Answer) -> None:
        """Add some images."""
        apart = np.abs(expected.probabilities - found.probabilities)
        plain = np.abs(expected.plain - found.plain)
        ranked = np.sort(expected.probabilities, axis=1)
        flipped = expected.plain.argmax(axis=1) != found.plain.argmax(axis=1)
        self.largest += np.maximum(apart, plain).max(axis=1).tolist()
        self.mean += apart.mean(axis=1).tolist()
        self.flipped += flipped.tolist()
        self.beyond += (flipped & (ranked[:, -1] - ranked[:, -2] > MARGIN)).tolist()
        marks = (expected.uncertain != found.uncertain) | (expected.unknown != found.unknown)
        self.marks += marks.tolist()

    def figures(self) -> dict[str, Any]:
        """Return the figures of ``parity.json``."""
        return {
            "n": len(self.largest),
            "max_abs_dp": float(np.max(self.largest)) if self.largest else 0.0,
            "mean_abs_dp": float(np.mean(self.mean)) if self.mean else 0.0,
            "flips": sum(self.flipped),
            "flips_beyond_margin": sum(self.beyond),
            "other_marks": sum(self.marks),
        }


def measure_parity(
    trained: TrainedModel, graph: bytes, catalog: Catalog, indices: Indices, tolerance: float
) -> dict[str, Any]:
    """Compare an ONNX file with the checkpoint that it was made from.

    Args:
        trained: the checkpoint.
        graph: the serialized ONNX model.
        catalog: of the training run.
        indices: of the images that are compared.
        tolerance: largest difference in any probability.

    Returns:
        ``n``; ``max_abs_dp``, the largest difference in any probability of any image, and ``mean_abs_dp``;
        ``flips`` (images whose predicted class differs), ``flips_beyond_margin``, ``other_marks`` (images whose mark
        *uncertain* or *none of these* differs): over all comparisons; ``batches``: the same for each size of batches;
        ``odd_sizes``: the same for images of odd height and width, with that size; ``worst``: path and difference of
        some images; ``unreadable_images``; ``tolerance``; ``margin``; ``passed``.

    Raises:
        UserError: none of the images can be read.
    """
    session = Session(graph, OUTPUTS)
    kept: list[int] = []
    by_batch = {size: Differences() for size in BATCHES}
    odd, odd_size = Differences(), [0, 0]
    for at, images in _blocks(catalog, indices):
        expected = by_checkpoint(trained, images)
        if not kept:
            odd_size = _compare_odd(trained, session, images, odd)
        kept += at.tolist()
        for size, differences in by_batch.items():
            found = [by_export(session, trained.calibration, part) for part in _batches(images, size)]
            differences.add(expected, _joined(found))
    if not kept:
        raise UserError(f"export: none of the {len(indices)} images in {catalog.root} could be read")
    largest = np.max([differences.largest for differences in by_batch.values()], axis=0)
    every = Differences(
        [*largest.tolist(), *odd.largest],
        [part for differences in by_batch.values() for part in differences.mean] + odd.mean,
    )
    figures = {key: by_batch[1].figures()[key] for key in ("n",)} | {
        "max_abs_dp": float(np.max(every.largest)),
        "mean_abs_dp": float(np.mean(every.mean)),
        **{
            key: int(np.any([getattr(part, name) for part in by_batch.values()], axis=0).sum())
            for key, name in (("flips", "flipped"), ("flips_beyond_margin", "beyond"), ("other_marks", "marks"))
        },
    }
    worst = np.argsort(-largest)[:WORST]
    return figures | {
        "tolerance": tolerance,
        "margin": MARGIN,
        "passed": figures["max_abs_dp"] <= tolerance and figures["flips_beyond_margin"] + sum(odd.beyond) == 0,
        "batches": {str(size): differences.figures() for size, differences in by_batch.items()},
        "odd_sizes": {"height": odd_size[0], "width": odd_size[1], **odd.figures()},
        "worst": [[str(catalog.paths[kept[i]]), float(largest[i])] for i in worst],
        "unreadable_images": [str(catalog.paths[i]) for i in indices.tolist() if i not in set(kept)],
    }


def _compare_odd(trained: TrainedModel, session: Session, images: Sequence[Pixels], odd: Differences) -> list[int]:
    """Compare corners of images, of one odd height and width, in a batch of 32; return that size."""
    height, width = (min(image.shape[axis] for image in images) for axis in (0, 1))
    height, width = height - 1 + height % 2, width - 1 + width % 2
    corners = [images[i % len(images)][: max(1, height), : max(1, width)] for i in range(BATCHES[-1])]
    expected = by_checkpoint(trained, corners)
    for size in BATCHES:
        odd.add(expected, _joined([by_export(session, trained.calibration, part) for part in _batches(corners, size)]))
    return [int(length) for length in corners[0].shape[:2]]


def _joined(parts: Sequence[Answer]) -> Answer:
    columns = ("probabilities", "plain", "uncertain", "unknown")
    return Answer(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


def _blocks(catalog: Catalog, indices: Indices) -> Iterator[tuple[Indices, list[Pixels]]]:
    """Yield up to 32 decoded images at a time, those of equal size beside each other, and their indices."""
    starts = range(0, len(indices), BATCHES[-1])
    for start in tqdm(starts, "parity", unit="batch", leave=False, disable=None):
        read: list[tuple[int, Pixels]] = []
        for index in indices[start : start + BATCHES[-1]].tolist():
            try:
                read.append((index, decode(catalog.root / str(catalog.paths[index]))))
            except UnreadableImage:
                continue  # named in parity.json
        read.sort(key=lambda pair: pair[1].shape)
        if read:
            yield np.array([index for index, _ in read]), [image for _, image in read]


def _batches(images: Sequence[Pixels], size: int) -> Iterator[Sequence[Pixels]]:
    """Yield batches of images of equal size, which are beside each other."""
    start = 0
    while start < len(images):
        end = start + 1
        while end < min(start + size, len(images)) and images[end].shape == images[start].shape:
            end += 1
        yield images[start:end]
        start = end


def compare_precisions(
    full: bytes, small: bytes, catalog: Catalog, indices: Indices, margin: float = 0.01
) -> dict[str, Any]:
    """Compare an export in 8 bits with that in float32, on labeled images.

    Args:
        full: the ONNX model in float32.
        small: the same, quantized.
        catalog: of the training run.
        indices: of held-out images.
        margin: difference in accuracy that does not matter.

    Returns:
        ``verdict`` and ``compare`` (of ``fp32`` as A and ``int8`` as B, see
        :func:`fish_lightning.evaluation.comparison.compare`); ``accuracy``, ``accuracy_ci95`` (Wilson),
        ``accuracy_ci95_photographs`` (clustered by photograph; None where photographs are unknown), ``megabytes`` and
        ``ms_per_image`` by batch size, each of ``fp32`` and ``int8``; ``flips``; ``n``.
    """
    sessions = {"fp32": Session(full, OUTPUTS), "int8": Session(small, OUTPUTS)}
    preds: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in sessions}
    kept: list[Indices] = []
    first: list[Pixels] = []
    for at, images in _blocks(catalog, indices):
        kept.append(at)
        first = first or [image for image in images if image.shape == images[0].shape]
        for name, session in sessions.items():
            computed = [session(np.stack(part))[1] for part in _batches(images, BATCHES[-1])]
            preds[name].append(np.concatenate(computed).argmax(axis=1))
    at = np.concatenate(kept)
    photographs = catalog.photographs_or_paths[at] if catalog.photographs_known else None
    found = {name: np.concatenate(parts) for name, parts in preds.items()}
    correct = {name: labels == catalog.labels[at] for name, labels in found.items()}
    compared = compare(correct["fp32"], correct["int8"], photographs, margin)
    scores = {name: accuracy_of(right) for name, right in correct.items()}
    return {
        "n": len(at),
        "verdict": compared["verdict"],
        "accuracy": {name: score["accuracy"] for name, score in scores.items()},
        "accuracy_ci95": {name: score["accuracy_ci95"] for name, score in scores.items()},
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
            seconds[name].append(_timed(lambda session=session: session(batch)))  # type: ignore[misc]
    return {name: 1000 * min(times) / size for name, times in seconds.items()}


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
