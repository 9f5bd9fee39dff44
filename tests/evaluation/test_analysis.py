"""What a report says is computed from logits alone, and from any that a user can have."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from helpers import measured
from synthetic import TEXTS, halves, make_outputs, make_single
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

from fish_lightning.errors import UserError
from fish_lightning.evaluation.analysis import ERRORS, MAX_FINDINGS, analyze, calibration_of
from fish_lightning.evaluation.stored_calibration import apply_calibration, read_calibration, write_calibration
from fish_lightning.evaluation.unknowns import neighbor_score
from fish_lightning.report.run_report import write_report


@pytest.fixture(scope="module")
def outputs():
    return make_outputs(noise=2.0)


@pytest.fixture(scope="module")
def analysis(outputs):
    return analyze(*halves(outputs))


def plain(analysis):
    """What ``calibration.json`` has, and the number of training photographs beside it."""
    content = calibration_of(analysis)
    return content | {"unknown": content["unknown"] | {"features": len(content["unknown"]["features"])}}


def test_figures_are_those_of_the_test_images(outputs, analysis):
    test = outputs.subset("test")
    preds, labels = torch.from_numpy(test.preds), torch.from_numpy(test.labels)
    assert analysis.images.paths.tolist() == test.paths.tolist()
    assert (len(analysis.images), analysis.scores["photographs"], analysis.validation) == (500, 100, (400, 80))
    assert analysis.scores["accuracy"] == test.correct.mean()
    assert analysis.confusion.tolist() == multiclass_confusion_matrix(preds, labels, 4).tolist()
    assert analysis.macro_f1 == pytest.approx(float(multiclass_f1_score(preds, labels, 4)))
    intervals = (analysis.scores[key] for key in ("accuracy_ci95", "accuracy_ci95_photographs"))
    by_image, by_photograph = (high - low for low, high in intervals)
    assert by_photograph > 1.5 * by_image
    assert sum(analysis.copies_correct) == analysis.votes["photographs"] == 100


def test_temperature_and_thresholds_come_from_validation_images_only(outputs, analysis):
    shuffled = np.where(outputs.splits == "test", np.roll(outputs.labels, 3), outputs.labels)
    other = analyze(*halves(replace(outputs, labels=shuffled)))
    assert other.scores["accuracy"] < 0.5 < analysis.scores["accuracy"]
    assert plain(other) == plain(analysis)
    assert other.guarantee == analysis.guarantee
    assert analysis.calibration["temperature"] > 1.2
    assert analysis.calibration["after"]["nll"] < analysis.calibration["nll"]


def test_stored_calibration_stands_in_for_validation_images(outputs, analysis):
    stored = calibration_of(analysis)
    assert stored["classes"] == ["class a", "class b", "class c", "class d"]
    assert stored["selective"]["target_error"] == 0.05
    alone = analyze(outputs.subset("test"), stored=stored)
    assert plain(alone) == plain(analysis)
    assert alone.validation == (0, 0)
    assert alone.guarantee is None
    assert (alone.calibration, alone.selective) == (analysis.calibration, analysis.selective)
    assert alone.unknowns == analysis.unknowns
    assert alone.training_features is stored["unknown"]["features"]


def test_an_easy_test_gets_a_threshold(analysis):
    easy = analyze(*halves(make_outputs(noise=0.5)))
    assert easy.guarantee.threshold is not None
    assert easy.selective["threshold"] == easy.guarantee.threshold
    assert easy.selective["coverage"] > 0.9
    hard = analyze(*halves(make_outputs(noise=3.0)))
    assert hard.guarantee.threshold is hard.selective["coverage"] is hard.selective["error"] is None
    assert hard.guarantee.sentence.startswith("no threshold can guarantee")
    assert 0.8 < 1 - easy.unknowns["known_rejected"] <= 1


def test_images_with_a_copy_in_training_are_leaked(outputs):
    both, training = halves(outputs)
    assert analyze(both, training).scores["leaked_test_images"] == 0
    assert analyze(both).scores["leaked_test_images"] is None
    first = np.isin(both.photographs, np.unique(both.photographs[both.splits == "test"])[:10])
    leaky = analyze(both, replace(training, photographs=np.resize(both.photographs[first], len(training))))
    assert leaky.scores["leaked_test_images"] == 50
    rest = both.subset("test").correct[~first[both.splits == "test"]]
    assert leaky.scores["without_leaked"]["accuracy"] == rest.mean()
    assert leaky.scores["without_leaked"]["n"] == 450
    told = analyze(both, leaked=first)
    assert told.scores == leaky.scores
    assert analyze(both, leaked=np.ones(len(both), dtype=bool)).scores["without_leaked"] == {"n": 0}


def test_errors_are_sorted_by_confidence_one_for_each_photograph(outputs, analysis):
    test = outputs.subset("test")
    probabilities = test.confidence[[error.image for error in analysis.errors]].tolist()
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[0] == test.probabilities.max(axis=1)[~test.correct].max()
    mistakes = {(test.photographs[e.image], test.preds[e.image]) for e in analysis.errors}
    assert len(mistakes) == len(analysis.errors) == analysis.error_photographs
    assert sum(error.mistaken for error in analysis.errors) == (~test.correct).sum()
    assert all(error.copies == 5 and error.calibrated != test.confidence[error.image] for error in analysis.errors)


def test_an_error_has_its_nearest_training_photographs(outputs, analysis):
    both, training = halves(outputs)
    assert analysis.neighbors_from == "train"
    error = analysis.errors[0]
    feature = both.subset("test").features[error.image].astype(float)
    cosine = training.features.astype(float) @ feature
    cosine /= np.linalg.norm(training.features.astype(float), axis=1) * np.linalg.norm(feature)
    nearest = int(cosine.argmax())
    assert (error.neighbors[0].path, error.neighbors[0].label) == (training.paths[nearest], training.labels[nearest])
    assert error.neighbors[0].similarity == pytest.approx(cosine.max(), abs=1e-3)
    owners = dict(zip(training.paths, training.photographs, strict=True))
    assert all(len({owners[near.path] for near in error.neighbors}) == 3 for error in analysis.errors)


def test_without_training_features_neighbors_are_validation_images(outputs):
    both, training = halves(outputs)
    analysis = analyze(both)
    assert analysis.neighbors_from == "val"
    validated = set(both.subset("val").paths)
    assert all(near.path in validated for error in analysis.errors for near in error.neighbors)
    assert analyze(both.subset("test")).neighbors_from is None
    overflowed = replace(training, features=np.full_like(training.features, np.inf))
    assert analyze(both, overflowed).neighbors_from == "val"
    assert analyze(replace(both, features=both.features[:, :0])).neighbors_from is None


def test_planted_label_errors_are_suspects(outputs):
    both, _ = halves(make_outputs({"val": 100, "test": 100}, noise=0.4))
    planted = np.unique(both.photographs)[::20]
    wrong = np.where(np.isin(both.photographs, planted), (both.labels + 1) % 4, both.labels)
    owner = dict(zip(both.paths, both.photographs, strict=True))
    analysis = analyze(replace(both, labels=wrong))
    assert {owner[suspect.paths[0]] for suspect in analysis.suspects} == set(planted)
    assert all(len(suspect.paths) == 5 for suspect in analysis.suspects)
    assert (analysis.suspect_photographs, analysis.suspects_among) == (10, 1000)
    leaked = np.isin(both.photographs, planted[:4])
    fewer = analyze(replace(both, labels=wrong), leaked=leaked)
    assert {owner[suspect.paths[0]] for suspect in fewer.suspects} <= set(planted[4:])
    assert fewer.suspects_among == 980


@pytest.mark.parametrize("sure", [0.1, 5.0], ids=["weak", "overconfident"])
def test_a_model_that_always_says_the_same_has_no_suspects(outputs, sure):
    logits = np.tile(np.array([sure, 0, 0, 0], np.float32), (len(outputs), 1))
    analysis = analyze(*halves(replace(outputs, logits=logits)))
    assert analysis.suspects == []
    assert analysis.suspect_photographs == (0 if sure == 0.1 else 135)


def test_unknown_images_are_told_by_each_score(outputs):
    both, training = halves(outputs)
    foreign = replace(training, features=-training.features, logits=np.zeros_like(training.logits))
    unknowns = analyze(both, training, unknown=foreign).unknowns
    assert set(unknowns["scores"]) == {"max_softmax", "max_logit", "energy", "feature_norm", "knn"}
    assert unknowns["best"] in ("max_softmax", "energy", "max_logit", "knn")
    assert unknowns["scores"]["max_softmax"]["auroc"] > 0.99
    assert unknowns["n"] == 300
    assert set(analyze(both, unknown=foreign).unknowns["scores"]) == set(unknowns["scores"]) - {"knn"}
    without = analyze(both.subset("test"), unknown=foreign).unknowns
    assert without["threshold"] is without["known_rejected"] is without["rejected"] is None
    assert without["scores"]["energy"] == unknowns["scores"]["energy"]


def test_unknown_images_are_detected_by_their_nearest_training_photographs(outputs):
    both, training = halves(outputs)
    stored = calibration_of(analyze(both, training))["unknown"]
    assert (stored["score"], len(stored["features"])) == ("knn", 60)  # of 300 images, one of each photograph
    expected = neighbor_score(both.features, stored["features"])
    assert (expected[both.splits == "val"] >= stored["threshold"]).mean() == pytest.approx(0.95, abs=0.02)
    found = apply_calibration({"unknown": stored}, both.logits, both.features).unknown
    assert found.tolist() == (expected < stored["threshold"]).tolist()
    overflowed = np.full_like(both.features[:1], np.inf)
    assert apply_calibration({"unknown": stored}, both.logits[:1], overflowed).unknown is not None
    for without in (None, replace(training, features=np.full_like(training.features, np.inf))):
        assert calibration_of(analyze(both, without))["unknown"].keys() == {"score", "threshold"}
        assert calibration_of(analyze(both, without))["unknown"]["score"] == "max_softmax"


def test_what_is_stored_is_read_again(outputs, tmp_path):
    stored = calibration_of(analyze(*halves(outputs), candidates=3)) | {"weights": "w", "tta": None}
    write_calibration(tmp_path, stored)
    read, note = read_calibration(tmp_path, stored["classes"], "w", None)
    assert note == "" and np.array_equal(read["unknown"].pop("features"), stored["unknown"].pop("features"))
    assert read == stored and read["selective"]["candidates"] == 3
    file = tmp_path / "training_features.npz"
    for damage in (lambda: file.write_bytes(file.read_bytes()[:50]), file.unlink):
        damage()
        with pytest.raises(UserError, match=r"training_features\.npz is corrupt"):
            read_calibration(tmp_path, stored["classes"], "w", None)


def test_without_validation_images_nothing_is_fitted(outputs):
    analysis = analyze(outputs.subset("test"))
    assert analysis.calibration["temperature"] is analysis.calibration["after"] is analysis.reliability_after is None
    assert analysis.guarantee is analysis.unknowns is None
    assert analysis.selective["threshold"] is None
    assert calibration_of(analysis)["unknown"] is None


@pytest.mark.parametrize("subset", ["train", "val", "all"])
def test_any_subset_can_be_reported(outputs, subset):
    analysis = analyze(outputs, subset=subset)
    assert len(analysis.images) == {"train": 300, "val": 400, "all": 1200}[subset]
    assert analysis.neighbors_from is None  # validation images would be their own neighbors
    with pytest.raises(UserError, match="subset=test: there are no images"):
        analyze(outputs.subset("val"))


def test_a_test_set_of_one_class():
    outputs = make_outputs(noise=2.0)
    one = outputs.take((outputs.splits != "test") | (outputs.labels == 2))
    analysis = analyze(*halves(one))
    assert [score["recall"] is None for score in analysis.per_class] == [True, True, False, True]
    assert analysis.confusion.sum(axis=1).tolist() == [0, 0, 125, 0]


def test_a_test_set_of_one_image():
    analysis = analyze(make_single(1))
    assert (analysis.scores["accuracy"], len(analysis.images), analysis.scores["photographs"]) == (1.0, 1, 1)
    assert analysis.scores["accuracy_ci95_photographs"][0] < 0.3
    assert len(analysis.curve.coverage) == 1


def test_a_class_that_is_never_predicted(outputs):
    logits = outputs.logits.copy()
    logits[:, 1] = -99
    analysis = analyze(*halves(replace(outputs, logits=logits)))
    assert analysis.per_class[1]["precision"] is None
    assert analysis.per_class[1]["recall"] == 0
    assert analysis.confusion[:, 1].sum() == 0


def test_unknown_photographs_count_as_images_and_are_not_claimed():
    analysis = analyze(*halves(make_outputs(known=False, noise=0.5)))
    assert analysis.guarantee.threshold is not None
    assert analysis.guarantee.sentence.endswith("if no image is a copy of another")
    assert analysis.selective["error"] is not None and analysis.selective["error_ci95_photographs"] is None
    for key in ("photographs", "accuracy_ci95_photographs", "leaked_test_images"):
        assert analysis.scores[key] is None
    assert analysis.votes["accuracy"] == analysis.scores["accuracy"]
    assert analysis.error_photographs == (~analysis.images.correct).sum()


@pytest.mark.parametrize("split", ["val", "test"])
def test_logits_that_are_nan_are_refused(outputs, split):
    logits = outputs.logits.copy()
    logits[np.flatnonzero(outputs.splits == split)[:7]] = np.nan
    with pytest.raises(UserError, match=r"7 of 900 images have NaN or infinite logits"):
        analyze(*halves(replace(outputs, logits=logits)))


def test_outputs_of_another_model_are_refused(outputs):
    both, training = halves(outputs)
    with pytest.raises(ValueError, match="3 classes, not 4"):
        analyze(both, replace(training, logits=training.logits[:, :3]))


def test_a_thousand_classes_are_analyzed():
    analysis = analyze(*halves(make_outputs({"train": 1000, "val": 200, "test": 1000}, copies=1, classes=1000)))
    assert analysis.confusion.shape == (1000, 1000)
    assert len(analysis.errors) <= ERRORS


def test_a_report_of_a_hundred_thousand_images_takes_little_more_memory_than_one_of_ten_thousand(tmp_path):
    """Beyond logits and features, whose arrays grow with the images."""

    def extra(photographs):
        outputs = make_outputs({"train": 100, "val": photographs // 5, "test": photographs}, copies=10, noise=1.5)

        def report():
            picture = np.zeros((30, 40, 3), np.uint8)
            write_report(tmp_path / "report.html", analyze(*halves(outputs)), TEXTS, lambda _: picture)

        return measured(report), sum(array.nbytes for array in outputs.arrays().values()) / 1e6

    (few, few_arrays), (many, many_arrays) = extra(1000), extra(10_000)
    print(f"10,000 and 100,000 images: {few:.0f} and {many:.0f} MB, arrays {few_arrays:.0f} and {many_arrays:.0f} MB")
    # Some copies of the arrays of N images are made: probabilities, and those of one subset.
    assert many - few < 8 * (many_arrays - few_arrays)
    assert (tmp_path / "report.html").stat().st_size < 1e6


def test_what_is_kept_of_many_images_is_short():
    outputs = make_outputs({"val": 500, "test": 3000}, copies=10, classes=9, noise=1.5)
    analysis = analyze(outputs)
    assert analysis.error_photographs > ERRORS == len(analysis.errors)
    assert len(analysis.worst_photographs) == MAX_FINDINGS
    assert len(analysis.curve.coverage) <= 200
    assert analysis.curve.coverage[-1] == 1
    assert analysis.curve.risk[-1] == pytest.approx(1 - analysis.scores["accuracy"])
    kept = [getattr(analysis, f.name) for f in fields(analysis)]
    assert not any(isinstance(value, np.ndarray) and value.size > 9 * 9 for value in kept)  # but those of the images
