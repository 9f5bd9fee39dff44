"""Synthetic worlds whose predictors are known to look at the object, the background, or something else."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from fish_lightning.errors import UserError
from fish_lightning.evaluation.audit import (
    MIN_PHOTOGRAPHS,
    audit,
    choose_donors,
    clustered_mean,
    cover_objects,
    mean_background,
    on_background,
    overall_verdict,
    spread_over_photographs,
)

CLASSES, SIZE = 4, 24


def world(backgrounds="shortcut", photographs=40, copies=2, classes=CLASSES, seed=0):
    """Images whose object tells the class by its red (200 + class), and whose background may tell it by its blue."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(photographs) % classes, copies)
    n = len(labels)
    shown = labels if backgrounds == "shortcut" else rng.integers(0, CLASSES, n)
    images = rng.integers(0, 100, (n, 3, SIZE, SIZE)).astype(np.uint8)
    images[:, 2] = 10 * shown[:, None, None]
    masks = np.zeros((n, SIZE, SIZE), bool)
    for i, (top, left) in enumerate(rng.integers(2, SIZE - 10, (n, 2))):
        masks[i, top : top + 6, left : left + 8] = np.tri(6, 8, 2, dtype=bool)
    images[:, 0][masks] = np.repeat(200 + labels, masks.sum((1, 2)))
    return images, masks, labels, np.repeat(np.arange(photographs).astype(str), copies)


def of_object(images):
    """Class that the object tells; 0 where there is none."""
    return np.maximum(images[:, 0].max((1, 2)).astype(int) - 200, 0)


def of_background(images):
    """Class that a corner tells: objects never lie there."""
    return images[:, 2, 0, 0].astype(int) // 10


def predictor(classify):
    def predict(images):
        assert images.dtype == np.uint8 and len(images)
        return np.eye(CLASSES, dtype=np.float32)[classify(images)]

    return predict


def test_it_clears_a_model_that_looks_at_the_object():
    found = audit(*world(), predictor(of_object))
    assert found.looks_at == "object" and found.verdict.startswith("The predictions follow the object: ")
    assert "100% of the predictions follow the object and 0% the background" in found.verdict
    assert found.accuracy.value == found.mean_background.value == found.other_background.value == 1
    assert found.object_removed.value == found.chance == 0.25
    assert (found.follows_object.value, found.follows_neither.value) == (1, 0)
    assert (found.accuracy.n, found.accuracy.photographs, found.skipped) == (80, 40, 0)


def test_it_exposes_a_model_that_looks_at_the_background():
    found = audit(*world(), predictor(of_background))
    assert found.looks_at == "background"
    assert found.verdict.startswith("The predictions follow the background, not the object: ")
    assert found.accuracy.value == found.mean_background.value == found.object_removed.value == 1
    assert found.other_background.value == found.follows_object.value == 0


def test_it_exposes_that_model_where_the_background_tells_nothing_about_the_class():
    found = audit(*world(backgrounds="random"), predictor(of_background))
    assert found.accuracy.value < 0.4 and found.object_removed.value < 0.4  # no accuracy shows what it looks at
    assert found.looks_at == "background" and found.follows_object.value == 0


def test_a_shortcut_that_test_images_lack_is_found_in_training_images():
    def classify(images):  # backgrounds that told nothing in training are ignored
        blue = images[:, 2, 0, 0].astype(int)
        return np.where(blue < 100, of_background(images), of_object(images))

    training, tested = world(), world(backgrounds="random", seed=1)
    tested[0][:, 2][~tested[1]] += 100
    on_training, on_test = (audit(*images, predictor(classify)) for images in (training, tested))
    assert (on_training.looks_at, on_test.looks_at) == ("background", "object")
    looks_at, verdict = overall_verdict(on_test, on_training)
    assert looks_at == "background"
    assert verdict.startswith("The model looks at the background. Training images: the predictions follow the backgr")
    assert "The accuracy is 100%, with the background of another class 0%." in verdict
    assert "Tested images: the predictions follow the object" in verdict
    assert verdict.endswith("An audit of the tested images alone would not have shown it.")
    assert overall_verdict(on_test, None) == ("object", f"The model looks at the object. {on_test.verdict}")


@pytest.mark.parametrize(
    ("tested", "training", "looks_at"),
    [
        ("object", "object", "object"),
        ("object", "undecided", "object"),
        ("undecided", "object", "object"),
        ("object", "both", "both"),
        ("background", "object", "background"),
        ("both", "background", "background"),
        ("undecided", "undecided", "undecided"),
    ],
)
def test_a_model_is_cleared_only_if_neither_audit_finds_the_background(tested, training, looks_at):
    found = audit(*world(), predictor(of_object))
    of_test, of_training = (replace(found, looks_at=word) for word in (tested, training))
    word, verdict = overall_verdict(of_test, of_training)
    assert word == looks_at and verdict.count("Training images: ") == verdict.count("Tested images: ") == 1


def test_a_model_that_needs_the_background_only_without_an_object_looks_at_the_object():
    def classify(images):
        return np.where(images[:, 0].max((1, 2)) >= 200, of_object(images), of_background(images))

    found = audit(*world(), predictor(classify))
    assert found.looks_at == "object" and found.object_removed.value == 1
    assert "Without the object, 100% of the predictions are still right (chance 25%)" in found.verdict


def test_a_model_that_looks_at_either_looks_at_both():
    def classify(images):  # by the column of the object: a photograph's copies differ
        column = (images[:, 0] >= 200).any(1).argmax(1)
        return np.where(column % 2, of_object(images), of_background(images))

    found = audit(*world(), predictor(classify))
    assert found.looks_at == "both" and 1 / 3 < found.follows_object.value < 2 / 3
    assert found.verdict.startswith("Neither object nor background decides alone: ")


def test_a_model_that_changed_images_confuse_is_not_judged():
    def classify(images):  # where object and background disagree: a class that is neither
        a, b = of_object(images), of_background(images)
        other = np.array([min({0, 1, 2} - {x, y}) for x, y in zip(a, b, strict=True)])
        return np.where(a == b, a, other)

    found = audit(*world(), predictor(classify))
    assert found.looks_at == "undecided" and found.follows_neither.value == 1 and found.follows_object is None
    assert "100% of the predictions are those of neither image" in found.verdict


def test_a_model_that_always_predicts_one_class_is_not_judged():
    found = audit(*world(), predictor(lambda images: np.zeros(len(images), int)))
    assert found.looks_at == "undecided" and found.follows_object is found.follows_neither is None
    assert found.verdict == "Inconclusive: the model predicts the same class whatever the image."
    assert found.accuracy.value == found.chance


def test_a_test_set_of_one_class_has_no_other_background():
    found = audit(*world(classes=1), predictor(of_object))
    assert found.looks_at == "undecided" and "one class" in found.verdict
    assert found.other_background is None and found.accuracy.value == found.chance == 1


@pytest.mark.parametrize(("photographs", "looks_at"), [(MIN_PHOTOGRAPHS - 1, "undecided"), (MIN_PHOTOGRAPHS, "object")])
def test_many_copies_of_few_photographs_decide_nothing(photographs, looks_at):
    found = audit(*world(photographs=photographs, copies=12), predictor(of_object))
    assert found.looks_at == looks_at
    assert ("too few photographs" in found.verdict) == (looks_at == "undecided")


def test_one_image_is_audited():
    found = audit(*world(photographs=1, copies=1), predictor(of_object))
    assert found.looks_at == "undecided" and found.accuracy.n == found.object_share.photographs == 1
    assert found.object_share.ci95 == (0, 1)


def test_images_without_object_or_without_background_are_in_no_figure():
    images, masks, labels, photographs = world()
    heat = np.ones((len(images), 3, 3), np.float32)
    masks[:10], masks[10:14] = False, True
    found = audit(images, masks, labels, photographs, predictor(of_object), heat)
    assert found.skipped == 14 and found.accuracy.n == found.heat_on_object.n == found.object_share.n == 66
    rest = audit(images[14:], masks[14:], labels[14:], photographs[14:], predictor(of_object), heat[14:])
    assert asdict(found) == asdict(rest) | {"skipped": 14}


@pytest.mark.parametrize("mask", [False, True, None])
def test_without_any_mask_of_an_object_there_is_nothing_to_audit(mask):
    images, masks, labels, photographs = (column[: 0 if mask is None else 5] for column in world())
    with pytest.raises(UserError, match=r"none of [05] images has a mask with both object and background"):
        audit(images, np.full_like(masks, bool(mask)), labels, photographs, predictor(of_object))


def test_nan_probabilities_are_an_error():
    with pytest.raises(UserError, match="NaN"):
        audit(*world(), lambda images: np.full((len(images), CLASSES), np.nan, np.float32))


def test_equal_arguments_give_equal_audits_that_json_takes():
    images, masks, labels, photographs = world()
    heat = np.random.default_rng(3).random((len(images), 5, 5), np.float32)
    given = [column.copy() for column in (images, masks, labels)]
    first, second = (audit(images, masks, labels, photographs, predictor(of_object), heat) for _ in range(2))
    assert first == second and json.loads(json.dumps(asdict(first)))["looks_at"] == "object"
    assert all(np.array_equal(a, b) for a, b in zip(given, (images, masks, labels), strict=True))


def test_copies_of_a_photograph_do_not_narrow_the_intervals():
    images, masks, labels, photographs = world(copies=1)
    wrong = labels.copy()
    wrong[::4] = (wrong[::4] + 1) % CLASSES  # 75 % right
    few = audit(images, masks, wrong, photographs, predictor(of_object))
    many = audit(*(np.repeat(column, 9, 0) for column in (images, masks, wrong, photographs)), predictor(of_object))
    assert many.accuracy.ci95 == few.accuracy.ci95 and many.accuracy.n == 9 * few.accuracy.n
    assert many.object_share.ci95 == pytest.approx(few.object_share.ci95)
    assert few.accuracy.ci95[0] < 0.75 < few.accuracy.ci95[1]


def test_heat_on_the_object_is_told_from_even_heat():
    images, masks, labels, photographs = world()
    on_object = masks.reshape(-1, 6, 4, 6, 4).mean((2, 4)) == 1  # cells that are all object
    even = np.ones((len(images), 6, 6), np.float32)
    found = audit(images, masks, labels, photographs, predictor(of_object), even)
    assert found.heat_on_object.value == pytest.approx(found.object_share.value)
    found = audit(images, masks, labels, photographs, predictor(of_object), on_object.astype(np.float32))
    assert found.heat_on_object.value == pytest.approx(1) and found.heat_on_object.n == on_object.any((1, 2)).sum()
    found = audit(images, masks, labels, photographs, predictor(of_object), np.zeros_like(even))
    assert found.heat_on_object is None


def test_backgrounds_come_from_any_image_of_any_other_class():
    labels = np.repeat([0, 1, 5], [200, 40, 10])
    donors = choose_donors(labels, seed=0)
    assert (labels[donors] != labels).all()
    of_first = labels[donors][labels == 0]
    assert (of_first == 1).mean() == pytest.approx(0.5, abs=0.12)  # classes equally, whatever their sizes
    assert set(donors[labels == 0].tolist()) >= set(range(240, 250))
    assert np.array_equal(donors, choose_donors(labels, seed=0))
    assert not np.array_equal(donors, choose_donors(labels, seed=1))


@pytest.fixture
def small():
    """One image of 4x5: a gray object with a gap between its parts, on a background of 10s with one 40."""
    image, mask = np.full((1, 3, 4, 5), 10, np.uint8), np.zeros((1, 4, 5), bool)
    mask[0, 1, 1] = mask[0, 2, 3] = True
    image[:, :, mask[0]] = 200
    image[0, 0, 3, 4] = 46  # mean of red: (17 * 10 + 46) / 18 = 12
    return image, mask


def test_the_background_is_replaced_by_its_mean_color(small):
    image, mask = small
    assert (mean_background(image, mask)[0, :, ~mask[0]] == [12, 10, 10]).all()
    assert (mean_background(image, mask)[0, :, mask[0]] == 200).all()


def test_the_bounding_box_of_the_object_is_filled_so_that_its_outline_tells_nothing(small):
    image, mask = small
    filled = cover_objects(image, mask)
    assert (filled[0, 0, 1:3, 1:4] == 12).all() and (filled[0, 1:, 1:3, 1:4] == 10).all()
    outside = np.ones((4, 5), bool)
    outside[1:3, 1:4] = False
    assert np.array_equal(filled[0, :, outside], image[0, :, outside])


def test_a_composite_has_one_object_only(small):
    image, mask = small
    composite = on_background(image, mask, image[:, :, ::-1], mask[:, ::-1])
    assert (composite[0, :, mask[0]] == 200).all() and (composite[0, :, ~mask[0]] < 50).all()
    assert composite[0, 0, 0, 4] == 46  # of the other background


def test_the_interval_of_a_mean_covers_the_truth_where_copies_agree():
    rng, covered, trials = np.random.default_rng(2), 0, 400
    for _ in range(trials):
        copies = rng.integers(1, 30, 40)
        values = np.repeat(rng.beta(2, 3, 40), copies)  # mean 0.4
        low, high = clustered_mean(values, np.repeat(np.arange(40), copies).astype(str)).ci95
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / trials <= 0.98


def test_a_sample_has_an_image_of_each_photograph_before_a_second_one():
    photographs = np.repeat(np.arange(30).astype(str), 20)
    for limit, most in ((10, 1), (30, 1), (45, 2), (600, 20), (1000, 20)):
        chosen = spread_over_photographs(photographs, limit)
        _, counts = np.unique(photographs[chosen], return_counts=True)
        assert len(set(chosen.tolist())) == len(chosen) == min(limit, 600)
        assert len(counts) == min(limit, 30) and counts.max() == most and (np.diff(chosen) > 0).all()
    assert np.ptp(spread_over_photographs(photographs, 10)) > 300  # not the first ones only
