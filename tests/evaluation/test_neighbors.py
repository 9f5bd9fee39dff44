"""Nearest training photographs: exact, at most one image of each, in blocks."""

import tracemalloc

import numpy as np
import pytest

from fish_lightning.errors import UserError
from fish_lightning.evaluation import neighbors
from fish_lightning.evaluation.neighbors import nearest_photographs


def by_hand(query, training, names, k):
    cosines = training @ query / np.linalg.norm(training, axis=1) / np.linalg.norm(query)
    chosen = []
    for candidate in np.argsort(-cosines):
        if names[candidate] not in names[chosen]:
            chosen.append(int(candidate))
    return chosen[:k], cosines[chosen[:k]]


@pytest.mark.parametrize("block", [1 << 22, 300 * 11, 7], ids=["one block", "blocks", "blocks of one query"])
def test_they_agree_with_a_search_by_hand(monkeypatch, block):
    monkeypatch.setattr(neighbors, "BLOCK", block)
    rng = np.random.default_rng(0)
    names = rng.integers(0, 40, 300)
    training, queries = rng.normal(size=(300, 8)), rng.normal(size=(25, 8))
    nearest, cosine = nearest_photographs(queries, training, names.astype(str), k=4)
    for row, query in enumerate(queries):
        chosen, cosines = by_hand(query, training, names, 4)
        assert nearest[row].tolist() == chosen
        assert cosine[row] == pytest.approx(cosines, abs=1e-5)


def test_fewer_photographs_than_k_leave_places_empty():
    nearest, cosine = nearest_photographs(np.array([[1.0, 0]]), np.eye(2), np.array(["p", "p"]), k=3)
    assert nearest.tolist() == [[0, -1, -1]]
    assert cosine.tolist() == [[1, -np.inf, -np.inf]]


def test_half_precision_and_zero_vectors():
    features = np.array([[6e4, 6e4], [0, 0]], dtype=np.float16)
    nearest, cosine = nearest_photographs(features, features, k=2)
    assert nearest[0].tolist() == [0, 1]
    assert cosine[0] == pytest.approx([1, 0], abs=1e-6)
    assert cosine[1] == pytest.approx([0, 0])


def test_memory_stays_flat_in_the_number_of_training_images():
    queries = np.ones((600, 4), dtype=np.float16)
    peaks = []
    for n in (10_000, 40_000):
        training = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float16)
        tracemalloc.start()
        nearest_photographs(queries, training, k=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 8 * 2**20  # all similarities at once: 96 MB for the larger


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="no images"):
        nearest_photographs(np.ones((1, 2)), np.ones((0, 2)))
    with pytest.raises(UserError, match="1 of 2 images have NaN or infinite features"):
        nearest_photographs(np.array([[np.nan, 1], [1, 1]]), np.ones((2, 2)))
