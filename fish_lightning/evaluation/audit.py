"""Does a model look at the object or at the background? An audit of images whose masks are known.

Each image is classified again with another background and without its object, as by K. Xiao et al. (Noise or Signal:
The Role of Image Backgrounds in Object Recognition, ICLR 2021, arXiv:2006.09994).

The verdict compares predictions, not accuracies: backgrounds need not reveal the class, but the model must take some
for different classes. Test images may lack the backgrounds that revealed the class in training: a model that learnt the
backgrounds then classifies them by what is left to it, the object. So :func:`overall_verdict` judges by an audit of
training images and one of test images: a model is cleared only if neither finds that the background decides.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from fish_lightning.data.keys import keyed_seed
from fish_lightning.errors import UserError
from fish_lightning.evaluation.arrays import copies_before
from fish_lightning.evaluation.bootstrap import Z95
from fish_lightning.evaluation.scores import photograph_interval

Pixels = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
LooksAt = Literal["object", "background", "both", "undecided"]
Predict = Callable[[Pixels], npt.NDArray[np.float32]]

#: The object (or the background) decides if predictions follow it twice as often as the other.
DECIDES = 2 / 3
#: More composites that follow neither, and the changed images confuse the model too much to show anything about it.
CONFUSED = 0.5
#: A bootstrap of fewer clusters gives intervals that are too narrow.
MIN_PHOTOGRAPHS = 10
#: The first sentence of the verdict by training and test images.
OVERALL: dict[LooksAt, str] = {
    "object": "The model looks at the object.",
    "background": "The model looks at the background.",
    "both": "The model looks at both object and background.",
    "undecided": "Inconclusive: it is unclear what the model looks at.",
}


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        value: mean of the values, 0 to 1.
        ci95: 95 % interval clustered by photograph.
        n: number of images.
        photographs: number of photographs among these images.
    """

    value: float
    ci95: tuple[float, float]
    n: int
    photographs: int


@dataclass(frozen=True)
class Audit:
    """What an audit found; ``dataclasses.asdict`` gives plain values for JSON.

    A composite is the object of one image on the background of an image of another class. It is informative if the
    model predicts different classes for the two.

    Attributes:
        accuracy: accuracy on the original images.
        mean_background: accuracy with the background replaced by its mean color.
        other_background: accuracy on composites; None if all images are of one class.
        object_removed: accuracy without the object.
        chance: accuracy of the best constant prediction: the share of the largest class.
        follows_neither: share of the informative composites whose prediction is that of neither image; None if there
            are none.
        follows_object: share of the other informative composites that are predicted like the image of the object, not
            like that of the background; None if there are none.
        heat_on_object: mean share of a heat map that lies on the object; None without heat maps.
        object_share: mean share of the image that the object covers, and thus the share of an even heat map on the
            object.
        skipped: number of images whose mask is empty or covers the whole image, which no other figure includes.
        looks_at: the verdict in one word.
        verdict: the verdict in one or two sentences.
    """

    accuracy: Estimate
    mean_background: Estimate
    other_background: Estimate | None
    object_removed: Estimate
    chance: float
    follows_neither: Estimate | None
    follows_object: Estimate | None
    heat_on_object: Estimate | None
    object_share: Estimate
    skipped: int
    looks_at: LooksAt
    verdict: str


def audit(
    images: Pixels,
    masks: Masks,
    labels: Indices,
    photographs: npt.NDArray[np.str_],
    predict: Predict,
    heat: npt.NDArray[np.float32] | None = None,
) -> Audit:
    """Audit a model on N images.

    The verdict depends on the informative composites that follow one of their two images:

    - *object* or *background* if at least ``DECIDES`` of them follow it, and the interval excludes an even vote;
    - *both* if neither decides;
    - *undecided* if there is no composite, if more than ``CONFUSED`` follow neither image, with fewer than
      ``MIN_PHOTOGRAPHS`` photographs, or if the interval of a clear majority includes an even vote.

    Args:
        images: (N, 3, H, W) images as the model sees them.
        masks: (N, H, W) masks, True on the object.
        labels: (N,) true classes.
        photographs: (N,) name of each image's photograph.
        predict: function that returns probabilities (N, C) for images (N, 3, H, W).
        heat: (N, h, w) heat maps of the predicted classes, of any resolution.

    Raises:
        UserError: no image has both object and background, or ``predict`` returns NaN.
    """
    covered = masks.mean((1, 2)) if len(masks) else np.zeros(0)
    usable = (covered > 0) & (covered < 1)
    if not usable.any():
        raise UserError(
            f"audit: none of {len(masks)} images has a mask with both object and background\n"
            "masks are expected beside the images: '<Class> GT/<name>.png' for '<Class>/<name>.png'"
        )
    images, masks, labels, photographs = images[usable], masks[usable], labels[usable], photographs[usable]

    def predicted(changed: Pixels) -> Indices:
        probabilities = predict(changed)
        if not np.isfinite(probabilities).all():
            raise UserError("audit: the model predicts NaN or infinite probabilities")
        return np.asarray(probabilities.argmax(1))

    original = predicted(images)
    flat = predicted(mean_background(images, masks))
    removed = _share(predicted(cover_objects(images, masks)) == labels, photographs)
    donors = choose_donors(labels)
    composites, neither, follows = None, None, None
    if donors is not None:
        preds = predicted(on_background(images, masks, images[donors], masks[donors]))
        composites = _share(preds == labels, photographs)
        informative = original != original[donors]
        sided = informative & ((preds == original) | (preds == original[donors]))
        neither = _share(~sided[informative], photographs[informative]) if informative.any() else None
        follows = _share((preds == original)[sided], photographs[sided]) if sided.any() else None
    chance = float(np.bincount(labels).max() / len(labels))
    looks_at, verdict = _verdict(donors is not None, neither, follows)
    if removed.ci95[0] > chance:
        verdict += f" Without the object, {removed.value:.0%} of the predictions are still right (chance {chance:.0%})."
    return Audit(
        accuracy=_share(original == labels, photographs),
        mean_background=_share(flat == labels, photographs),
        other_background=composites,
        object_removed=removed,
        chance=chance,
        follows_neither=neither,
        follows_object=follows,
        heat_on_object=None if heat is None else _heat_on_object(heat[usable], masks, photographs),
        object_share=clustered_mean(covered[usable], photographs),
        skipped=int((~usable).sum()),
        looks_at=looks_at,
        verdict=verdict,
    )


def overall_verdict(tested: Audit, training: Audit | None) -> tuple[LooksAt, str]:
    """Return what a model looks at, in a word and in sentences, by audits of test and of training images.

    What either audit finds of the background counts. The object is what the model looks at if at least one audit says
    so and the other is undecided or says so too.

    Args:
        tested: audit of test images.
        training: audit of training images; None where they have no masks or are not known.
    """
    if training is None:
        return tested.looks_at, f"{OVERALL[tested.looks_at]} {tested.verdict}"
    found = (tested.looks_at, training.looks_at)
    looks_at: LooksAt = next(word for word in ("background", "both", "object", "undecided") if word in found)
    sentences = [OVERALL[looks_at]]
    for name, audited in (("Training", training), ("Tested", tested)):
        sentences.append(f"{name} images: {audited.verdict[:1].lower()}{audited.verdict[1:]}")
        if swapped := audited.other_background:
            accuracy = f"{audited.accuracy.value:.0%}, with the background of another class {swapped.value:.0%}"
            sentences.append(f"The accuracy is {accuracy}.")
    if looks_at in ("background", "both") and tested.looks_at in ("object", "undecided"):
        sentences.append("An audit of the tested images alone would not have shown it.")
    return looks_at, " ".join(sentences)


def mean_background(images: Pixels, masks: Masks) -> Pixels:
    """Return images (N, 3, H, W) with each background replaced by its mean color."""
    return np.where(masks[:, None], images, _background_color(images, masks))


def cover_objects(images: Pixels, masks: Masks) -> Pixels:
    """Return images (N, 3, H, W) whose objects are covered by the mean color of the background.

    The object's bounding box is filled: its outline alone may reveal the class.
    """
    rows, columns = _extent(masks, 2)[:, :, None], _extent(masks, 1)[:, None, :]
    return np.where((rows & columns)[:, None], _background_color(images, masks), images)


def on_background(images: Pixels, masks: Masks, others: Pixels, other_masks: Masks) -> Pixels:
    """Return the objects of N images on the backgrounds of N others, whose own objects are removed."""
    return np.where(masks[:, None], images, cover_objects(others, other_masks))


def choose_donors(labels: Indices, seed: int = 0) -> Indices | None:
    """Choose whose background each image gets: first another class, then an image of it, each equally likely.

    Args:
        labels: (N,) true classes.
        seed: random seed; the choice for an image depends on it, on the image's index and on the labels.

    Returns:
        (N,) indices of the images that provide the backgrounds; None if all images are of one class.
    """
    members = {label: np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}
    if len(members) < 2:
        return None
    donors = np.empty(len(labels), np.int64)
    for i, label in enumerate(labels.tolist()):
        others = [other for other in members if other != label]
        donor = members[others[keyed_seed(seed, i, 0) % len(others)]]
        donors[i] = donor[keyed_seed(seed, i, 1) % len(donor)]
    return donors


def spread_over_photographs(photographs: npt.NDArray[np.str_], limit: int, seed: int = 0) -> Indices:
    """Choose up to ``limit`` images of as many photographs as possible: a first image of each, then a second one.

    An audit classifies each image four times, and further copies of a photograph narrow its intervals little.

    Returns:
        Sorted indices.
    """
    shuffled = np.random.default_rng(seed).permutation(len(photographs))
    turn = copies_before(photographs[shuffled])
    return np.asarray(np.sort(shuffled[np.argsort(turn, kind="stable")[:limit]]))


def clustered_mean(values: npt.NDArray[np.float64], photographs: npt.NDArray[np.str_]) -> Estimate:
    """Return the mean of values between 0 and 1; its interval is that of a ratio of sums over photographs.

    Source: W. G. Cochran, Sampling Techniques (1977), chapter 9A (clusters of unequal sizes).
    """
    _, group = np.unique(photographs, return_inverse=True)
    sizes, sums = np.bincount(group), np.bincount(group, weights=values)
    mean, k = float(values.mean()), len(sizes)
    if k == 1:
        return Estimate(mean, (0.0, 1.0), len(values), 1)
    half = Z95 * math.sqrt(k / (k - 1) * ((sums - mean * sizes) ** 2).sum()) / len(values)
    return Estimate(mean, (max(0.0, mean - half), min(1.0, mean + half)), len(values), k)


def _background_color(images: Pixels, masks: Masks) -> Pixels:
    """Return the (N, 3, 1, 1) mean colors outside the masks."""
    outside = ~masks[:, None]
    total = np.where(outside, images, 0).sum((2, 3), keepdims=True, dtype=np.float64)
    return np.asarray(np.rint(total / outside.sum((2, 3), keepdims=True)), dtype=np.uint8)


def _extent(masks: Masks, axis: int) -> Masks:
    """Return an (N, L) mask, True from the first line along ``axis`` that has any of the object to the last."""
    lines: Any = masks.any(axis)
    extent: Masks = np.logical_or.accumulate(lines, 1) & np.logical_or.accumulate(lines[:, ::-1], 1)[:, ::-1]
    return extent


def _heat_on_object(heat: npt.NDArray[np.float32], masks: Masks, photographs: npt.NDArray[np.str_]) -> Estimate | None:
    """Return the mean share of heat on the object; None if all maps are zero, which have no share.

    A cell of a heat map counts by how much of it is object.
    """
    cells = F.adaptive_avg_pool2d(torch.from_numpy(masks).float(), heat.shape[1:]).numpy()
    total, on_object = (values.sum((1, 2), dtype=np.float64) for values in (heat, heat * cells))
    warm = total > 0
    return clustered_mean(on_object[warm] / total[warm], photographs[warm]) if warm.any() else None


def _share(true: Masks, photographs: npt.NDArray[np.str_]) -> Estimate:
    return Estimate(float(true.mean()), photograph_interval(true, photographs), len(true), len(np.unique(photographs)))


def _verdict(has_donors: bool, neither: Estimate | None, follows: Estimate | None) -> tuple[LooksAt, str]:
    """Return the verdict in a word and in a sentence."""
    if not has_donors:
        return "undecided", "Inconclusive: all images with masks are of one class, so there is no other background."
    if neither is None:
        return "undecided", "Inconclusive: the model predicts the same class whatever the image."
    composed = "with the object of one image on the background of another"
    if follows is None or neither.value > CONFUSED:
        return "undecided", (
            f"Inconclusive: {composed}, {neither.value:.0%} of the predictions are those of neither image, so the "
            "changed images confuse the model."
        )
    (low, high), share = follows.ci95, follows.value
    clear = max(share, 1 - share) >= DECIDES
    looks_at: LooksAt = "both" if not clear else "object" if share > 0.5 else "background"
    says = {
        "object": "The predictions follow the object",
        "background": "The predictions follow the background, not the object",
        "both": "Neither object nor background decides alone",
    }[looks_at]
    if follows.photographs < MIN_PHOTOGRAPHS or (clear and low <= 0.5 <= high):
        looks_at, says = "undecided", "Inconclusive, too few photographs"
    return looks_at, (
        f"{says}: {composed}, {share:.0%} of the predictions follow the object and {1 - share:.0%} the background "
        f"(95% CI for the object {low:.0%} to {high:.0%}, clustered by photograph, n={follows.photographs})."
    )
