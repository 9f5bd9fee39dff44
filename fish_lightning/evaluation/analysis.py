"""Everything that a report says about a test, computed from logits and features: no model, no image files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fish_lightning.errors import UserError
from fish_lightning.evaluation.abstention import (
    RiskCoverage,
    SelectiveThreshold,
    choose_threshold,
    risk_coverage,
    selective_scores,
)
from fish_lightning.evaluation.arrays import Bools, Floats, Ints, photograph_index, require_finite, softmax
from fish_lightning.evaluation.bootstrap import per_photograph
from fish_lightning.evaluation.calibration import (
    ReliabilityCurve,
    calibration_scores,
    fit_temperature,
    reliability_curve,
)
from fish_lightning.evaluation.label_suspects import LabelSuspect, find_label_suspects
from fish_lightning.evaluation.neighbors import nearest_photographs
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.evaluation.scores import (
    accuracy_scores,
    class_scores,
    confusion_matrix,
    mean_by_photograph,
    vote_scores,
)
from fish_lightning.evaluation.stored_calibration import unknown_score
from fish_lightning.evaluation.unknowns import (
    SCORE,
    SCORE_WITHOUT_FEATURES,
    best_score,
    detection,
    image_scores,
    keep_threshold,
)

NEIGHBORS = 3  # nearest training photographs of an error
ERRORS = 40  # kept at most, each with a heat map in the report; the total is counted
MAX_FINDINGS = 100  # photographs and label suspects kept at most, likewise
CURVE = 200  # points of the risk-coverage curve kept at most
#: Of a single run, a lower probability contradicts no label: its model may be weak. A sweep over folds is made to find
#: label errors, and finds more of them with the paper's thresholds.
CONFIDENT = 0.5
#: Share of photographs whose label the model contradicts, and their number: more, and it is the model that is wrong.
SUSPECT_SHARE, FEW_SUSPECTS = 0.1, 2
MANY_CLASSES = 100  # beyond, intervals of classes come from fewer draws, to stay within seconds


@dataclass(frozen=True)
class Neighbor:
    """A training image that is near to an error in feature space.

    Attributes:
        path: path of the image, relative to the training data's folder.
        label: class of the image.
        similarity: cosine similarity, -1 to 1.
    """

    path: str
    label: int
    similarity: float


@dataclass(frozen=True)
class Error:
    """A photograph predicted as another class; its most confident copy represents all with that prediction.

    Attributes:
        image: index of the copy among the tested images.
        calibrated: probability of the prediction after temperature scaling; None without a temperature.
        mistaken: number of copies with this label and prediction.
        copies: number of tested copies.
        neighbors: nearest training photographs, nearest first.
    """

    image: int
    calibrated: float | None
    mistaken: int
    copies: int
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True)
class Photograph:
    """A photograph of which not every copy is recognized.

    Attributes:
        image: index of one of its copies among the tested images.
        vote: the class its copies vote for, with the mean of their probabilities.
        copies: number of tested copies.
        correct: number of copies recognized.
    """

    image: int
    vote: int
    copies: int
    correct: int


@dataclass(frozen=True)
class Analysis:
    """What a report draws.

    Attributes:
        classes: class names in label order.
        subset: subset of the data that was tested: train, val, test or all.
        images: outputs for the tested images.
        scores: accuracy scores, see :func:`~fish_lightning.evaluation.scores.accuracy_scores`.
        macro_f1: mean F1 over the classes that are tested or predicted.
        per_class: scores of each class, see :func:`~fish_lightning.evaluation.scores.class_scores`.
        confusion: (C, C) number of images; rows are true classes, columns predicted classes.
        votes: scores of the votes of copies, see :func:`~fish_lightning.evaluation.scores.vote_scores`.
        copies_correct: number of photographs of which all, some and no copies are recognized.
        worst_photographs: photographs with the smallest share of recognized copies, smallest first; at most
            ``MAX_FINDINGS``.
        validation: number of validation images and of their photographs, from which temperature and threshold are
            chosen.
        leaked_validation: number of validation images with a copy among the training images; None if unknown.
        calibration: ``calibration`` block of ``summary.json``.
        reliability: reliability curve before temperature scaling.
        reliability_after: reliability curve after temperature scaling; None without a temperature.
        guarantee: the threshold and what it guarantees; None if temperature and thresholds were not chosen here, on
            ``validation``.
        candidates: number of checkpoints compared on the validation images.
        selective: ``selective`` block of ``summary.json``.
        curve: risk-coverage curve of at most ``CURVE`` points.
        unknowns: ``unknowns`` block of ``summary.json``; None without a threshold and without unknown images.
        training_features: (M, D) features of the training photographs that the score ``knn`` compares with; None for
            other scores.
        errors: the most confident errors, most confident first; at most ``ERRORS``.
        error_photographs: number of errors, listed or not.
        neighbors_from: split in which neighbors were searched for; None if there was none.
        neighbors_among: number of photographs that were searched.
        suspects: label suspects, most certain first; at most ``MAX_FINDINGS``, and none if there are more than label
            errors explain.
        suspect_photographs: number of photographs whose label the model contradicts with confidence, listed or not.
        suspects_among: number of images that were searched for suspects.
    """

    classes: tuple[str, ...]
    subset: str
    images: Outputs
    scores: dict[str, Any]
    macro_f1: float
    per_class: list[dict[str, Any]]
    confusion: npt.NDArray[np.int64]
    votes: dict[str, Any]
    copies_correct: tuple[int, int, int]
    worst_photographs: list[Photograph]
    validation: tuple[int, int]
    leaked_validation: int | None
    calibration: dict[str, Any]
    reliability: ReliabilityCurve
    reliability_after: ReliabilityCurve | None
    guarantee: SelectiveThreshold | None
    candidates: int
    selective: dict[str, Any]
    curve: RiskCoverage
    unknowns: dict[str, Any] | None
    training_features: Floats | None
    errors: list[Error]
    error_photographs: int
    neighbors_from: str | None
    neighbors_among: int
    suspects: list[LabelSuspect]
    suspect_photographs: int
    suspects_among: int


def analyze(
    outputs: Outputs,
    training: Outputs | None = None,
    target_error: float = 0.05,
    *,
    subset: str = "test",
    leaked: Bools | None = None,
    unknown: Outputs | None = None,
    stored: Mapping[str, Any] | None = None,
    candidates: int = 1,
) -> Analysis:
    """Compute everything that a report draws.

    Temperature and thresholds come from the validation images among ``outputs``, else from ``stored``. Label suspects
    are searched for among all images that are neither trained on nor leaked.

    Args:
        outputs: outputs for test and validation images.
        training: outputs for training images, used for nearest neighbors, leaks and, unless its features are stored,
            the score ``knn``; None: neighbors are searched for among validation images.
        target_error: largest error among answered images that the threshold is to allow.
        subset: subset to analyze: train, val, test or all.
        leaked: (len(outputs),) whether a copy of an image is among the training images; None: determined from the
            photographs of ``training``, and unknown without it.
        unknown: outputs for unknown images; their labels are not used.
        stored: the training run's calibration, as ``read_calibration`` returns it.
        candidates: number of checkpoints compared on the validation images, see :func:`choose_threshold`.

    Raises:
        UserError: there are no images in the subset, or logits or features are NaN or infinite.
        ValueError: ``training`` or ``unknown`` has other classes.
    """
    for other in (training, unknown):
        if other is not None and other.logits.shape[1] != len(outputs.classes):
            raise ValueError(f"{other.logits.shape[1]} classes, not {len(outputs.classes)}")
    chosen = np.ones(len(outputs), dtype=np.bool_) if subset == "all" else outputs.splits == subset
    if not chosen.any():
        raise UserError(f"subset={subset}: there are no images to report on")
    require_finite(outputs.logits, "logits")
    if leaked is None and training is not None and (outputs.photographs != "").any():
        leaked = outputs.copies_of(training.photographs)
    tested, val = outputs.take(chosen), outputs.subset("val")
    names, index = tested.known_photographs, photograph_index(tested.known_photographs, len(tested))

    fit = {} if len(val) else dict(stored or {})
    temperature = fit.get("temperature")
    guarantee = None
    if len(val):
        temperature = fit_temperature(val.logits, val.labels, val.known_photographs)
        guarantee = choose_threshold(val.confidence, val.correct, val.known_photographs, target_error, candidates)
    selective = fit.get("selective") or {"threshold": guarantee and guarantee.threshold, "target_error": target_error}
    calibrated = None if temperature is None else softmax(tested.logits.astype(np.float64) / temperature)

    per_class = class_scores(
        tested.preds,
        tested.labels,
        len(outputs.classes),
        names,
        resamples=4000 if len(outputs.classes) <= MANY_CLASSES else 1000,
    )
    copies_correct, worst = _worst_photographs(tested)
    errors, error_photographs, neighbors_from = _errors(
        tested, index, calibrated, {"train": training, "val": val if subset == "test" else None}
    )
    detector = _detector(stored, training)
    searched = outputs.take((outputs.splits != "train") & (True if leaked is None else ~leaked))
    suspects, credible = _suspects(searched)
    return Analysis(
        classes=tuple(str(name) for name in outputs.classes),
        subset=subset,
        images=tested,
        scores=accuracy_scores(tested.correct, names, None if leaked is None else leaked[chosen]),
        macro_f1=float(np.mean([score["f1"] for score in per_class if score["f1"] is not None])),
        per_class=per_class,
        confusion=confusion_matrix(tested, len(outputs.classes)),
        votes=vote_scores(tested.probabilities, tested.labels, names),
        copies_correct=copies_correct,
        worst_photographs=worst,
        validation=(len(val), _number_of_photographs(val)),
        leaked_validation=None if leaked is None else int(leaked[outputs.splits == "val"].sum()),
        calibration=calibration_scores(tested.logits, tested.labels, temperature),
        reliability=reliability_curve(tested.probabilities, tested.labels, names),
        reliability_after=None if calibrated is None else reliability_curve(calibrated, tested.labels, names),
        guarantee=guarantee,
        candidates=candidates,
        selective=selective_scores(
            tested.confidence, tested.correct, selective["threshold"], selective["target_error"], names
        ),
        curve=_thinned(risk_coverage(tested.confidence, tested.correct)),
        unknowns=_unknowns(tested, val, unknown, detector, fit.get("unknown")),
        training_features=detector.get("features"),
        errors=errors,
        error_photographs=error_photographs,
        neighbors_from=neighbors_from,
        neighbors_among=_number_of_photographs({"train": training, "val": val}.get(neighbors_from or "")),
        suspects=suspects[:MAX_FINDINGS] if credible else [],
        suspect_photographs=len(suspects),
        suspects_among=len(searched),
    )


def calibration_of(analysis: Analysis) -> dict[str, Any]:
    """Return what ``predict`` and later evaluations reuse from the validation, for ``write_calibration``.

    Returns:
        ``temperature``, ``selective`` (``threshold``, ``target_error``, ``candidates``), ``unknown`` (``score``,
        ``threshold`` and, for ``knn``, ``features``) and ``classes``; None for what could not be determined.
    """
    selective = {key: analysis.selective[key] for key in ("threshold", "target_error")}
    unknown = analysis.unknowns and {key: analysis.unknowns[key] for key in ("score", "threshold")}
    if unknown and analysis.training_features is not None:
        unknown["features"] = analysis.training_features
    return {
        "temperature": analysis.calibration["temperature"],
        "selective": selective | {"candidates": analysis.candidates},
        "unknown": unknown,
        "classes": list(analysis.classes),
    }


def _number_of_photographs(outputs: Outputs | None) -> int:
    return 0 if outputs is None else len(np.unique(outputs.photographs_or_paths))


def _worst_photographs(images: Outputs) -> tuple[tuple[int, int, int], list[Photograph]]:
    """Return how many photographs have all, some and no copies recognized, and those with the smallest share."""
    means = mean_by_photograph(images.probabilities, images.labels, images.known_photographs)
    right, copies = per_photograph(means.index, images.correct, np.ones(len(images))).T.astype(np.int64)
    all_right, none_right = int((right == copies).sum()), int((right == 0).sum())
    votes = means.probabilities.argmax(axis=1)
    # One of its errors shows a photograph best: errors come first, then the first image of each photograph is taken.
    order = np.argsort(images.correct, kind="stable")
    shown = order[np.unique(means.index[order], return_index=True)[1]]
    wrong = np.flatnonzero(right < copies)
    ranked = wrong[np.lexsort((-copies[wrong], right[wrong] / copies[wrong]))][:MAX_FINDINGS]
    worst = [
        Photograph(
            image=int(shown[entry]),
            vote=int(votes[entry]),
            copies=int(copies[entry]),
            correct=int(right[entry]),
        )
        for entry in ranked
    ]
    return (all_right, len(copies) - all_right - none_right, none_right), worst


def _errors(
    images: Outputs, index: Ints, calibrated: Floats | None, others: Mapping[str, Outputs | None]
) -> tuple[list[Error], int, str | None]:
    """Return the listed errors, the number of all, and the split that neighbors come from.

    Args:
        images: outputs for the tested images.
        index: (N,) index of each image's photograph.
        calibrated: (N, C) probabilities after temperature scaling; None without a temperature.
        others: outputs of the splits in which neighbors are searched for, the preferred one first.
    """
    wrong = np.flatnonzero(~images.correct)
    order = wrong[np.argsort(-images.confidence[wrong], kind="stable")]
    classes = len(images.classes)
    mistake = (index[order] * classes + images.labels[order]) * classes + images.preds[order]
    _, first, mistaken = np.unique(mistake, return_index=True, return_counts=True)
    rank = np.argsort(first)[:ERRORS]
    listed, copies = order[first[rank]], np.bincount(index)
    neighbors, split = _neighbors(images.features[listed], others)
    errors = [
        Error(
            image=int(image),
            calibrated=None if calibrated is None else float(calibrated[image, images.preds[image]]),
            mistaken=int(number),
            copies=int(copies[index[image]]),
            neighbors=near,
        )
        for image, number, near in zip(listed, mistaken[rank], neighbors, strict=True)
    ]
    return errors, len(first), split


def _neighbors(features: Floats, others: Mapping[str, Outputs | None]) -> tuple[list[tuple[Neighbor, ...]], str | None]:
    """Return the nearest photographs of each of E errors, and the split they come from."""
    for split, other in others.items():
        # Features are float16 and may overflow where logits do not: a report without neighbors is better than none.
        if other is not None and len(other) and len(features) and _usable(features) and _usable(other.features):
            found = nearest_photographs(features, other.features, other.known_photographs, NEIGHBORS)
            return [
                tuple(
                    Neighbor(str(other.paths[key]), int(other.labels[key]), float(cosine))
                    for key, cosine in zip(keys, cosines, strict=True)
                    if key >= 0
                )
                for keys, cosines in zip(*found, strict=True)
            ], split
    return [()] * len(features), None


def _suspects(searched: Outputs) -> tuple[list[LabelSuspect], bool]:
    """Return the label suspects among some images, and whether there are few enough to be label errors."""
    if not len(searched):
        return [], True
    suspects = find_label_suspects(
        searched.probabilities, searched.labels, searched.known_photographs, searched.paths, confident=CONFIDENT
    )
    return suspects, len(suspects) <= max(FEW_SUSPECTS, SUSPECT_SHARE * _number_of_photographs(searched))


def _usable(features: Floats) -> bool:
    return bool(features.shape[1]) and bool(np.isfinite(features).all())


def _thinned(curve: RiskCoverage) -> RiskCoverage:
    """Return a curve of at most ``CURVE`` points, evenly spaced in coverage, both ends kept."""
    points = len(curve.coverage)
    if points <= CURVE:
        return curve
    wanted = np.searchsorted(curve.coverage, np.linspace(curve.coverage[0], 1, CURVE))
    kept = np.unique(np.minimum(wanted, points - 1))
    return RiskCoverage(curve.threshold[kept], curve.coverage[kept], curve.risk[kept], curve.aurc)


def _detector(stored: Mapping[str, Any] | None, training: Outputs | None) -> dict[str, Any]:
    """Return ``score`` and ``features`` of the stored score, else of ``SCORE`` with one image of each photograph."""
    if stored and stored["unknown"]:
        return dict(stored["unknown"])
    if training is None or not len(training) or not _usable(training.features):
        return {"score": SCORE_WITHOUT_FEATURES}
    _, first = np.unique(training.photographs_or_paths, return_index=True)
    return {"score": SCORE, "features": training.features[np.sort(first)]}


def _unknowns(
    tested: Outputs,
    val: Outputs,
    unknown: Outputs | None,
    detector: Mapping[str, Any],
    stored: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """Return the ``unknowns`` block of ``summary.json``; None without a threshold and without unknown images.

    Returns:
        ``n`` (0 if there are no unknown images to measure with) and ``photographs`` of the unknown images; ``scores``
        (see :func:`~fish_lightning.evaluation.unknowns.detection`) and the ``best`` of them; the ``score`` and
        ``threshold`` that ``predict`` uses, and the shares of unknown (``rejected``) and of tested images
        (``known_rejected``) below it. None for what is not known.
    """
    threshold = stored["threshold"] if stored else None
    if len(val):
        threshold = keep_threshold(unknown_score(detector, val.logits, val.features), val.known_photographs)
    if threshold is None and unknown is None:
        return None

    def below(scores: Floats) -> float | None:
        return None if threshold is None else float((scores < threshold).mean())

    inside = unknown_score(detector, tested.logits, tested.features)
    block: dict[str, Any] = {"n": 0, "photographs": None, "scores": {}, "best": None}
    block |= {"score": detector["score"], "threshold": threshold, "rejected": None, "known_rejected": below(inside)}
    if unknown is None or not len(unknown):
        return block
    outside, names = unknown_score(detector, unknown.logits, unknown.features), unknown.known_photographs
    known, foreign = (image_scores(part.logits, part.features) for part in (tested, unknown))
    # The score in use is measured too where it is none of these: knn.
    known, foreign = known | {detector["score"]: inside}, foreign | {detector["score"]: outside}
    scores = {
        score: detection(known[score], foreign[score], tested.known_photographs, names)
        for score in known
        if np.isfinite(known[score]).all() and np.isfinite(foreign[score]).all()
    }
    return block | {
        "n": len(unknown),
        "photographs": None if names is None else len(np.unique(names)),
        "scores": scores,
        "best": best_score(scores),
        "rejected": below(outside),
    }
