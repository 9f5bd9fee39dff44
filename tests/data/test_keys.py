"""Keyed random numbers: the values that earlier runs were trained with, uncorrelated between neighboring keys."""

from itertools import pairwise

import numpy as np
import pytest

from fish_lightning.data.keys import GOLDEN, keyed_seed, keyed_uniform


@pytest.mark.parametrize(
    ("key", "seed"),
    [
        ((0, 0, 0), 0x238275BC38FCBE91),
        ((42, 0, 0), 0x6310BF04D8207F46),
        ((42, 0, 1), 0xB682EE25CE24109E),
        ((42, 1, 0), 0x2CE02C4EE4D2EA09),
        ((43, 0, 0), 0x9BB6C981ED5EF223),
        ((4294967295, 99, 8999), 0x2FF464B8CE60EF0),
    ],
)
def test_seeds_never_change(key, seed):
    assert keyed_seed(*key) == seed


def test_uniform_numbers_never_change():
    epochs, indices = np.array([0, 0, 1, 99]), np.array([0, 1, 0, 8999])
    assert keyed_uniform(42, epochs, indices, 2).tolist() == [
        [0.7553888514674879, 0.4752842837149406, 0.08575571775449506, 0.41130668704527995],
        [0.44621019341119594, 0.7649922332932484, 0.2442220094523433, 0.14230069869194698],
    ]
    assert keyed_uniform(4294967295, epochs, indices, 2).tolist() == [
        [0.8035317474921746, 0.8327326102939077, 0.7214540894933272, 0.5848530590745428],
        [0.2514344471699584, 0.13959853522296106, 0.8433519635053248, 0.28600844259866987],
    ]


def test_vectorized_numbers_are_the_scalar_ones():
    numbers = keyed_uniform(7, np.array([0, 3, 3]), np.array([5, 5, 6]), 4)
    for column, key in enumerate([(7, 0, 5), (7, 3, 5), (7, 3, 6)]):
        expected = [keyed_seed(*key, place * GOLDEN) / 2**64 for place in range(4)]
        assert numbers[:, column].tolist() == expected


@pytest.mark.parametrize("neighbors", [lambda n: (n, 0, 0), lambda n: (42, n, 0), lambda n: (42, 0, n)])
def test_neighboring_keys_are_uncorrelated(neighbors):
    seeds = [keyed_seed(*neighbors(n)) for n in range(4000)]
    assert len(set(seeds)) == 4000
    changed = [(a ^ b).bit_count() for a, b in pairwise(seeds)]
    assert np.mean(changed) == pytest.approx(32, abs=0.25)  # four standard errors of half the bits
    keys = np.array([neighbors(n)[1:] for n in range(4000)])
    if keys.any():
        numbers = keyed_uniform(42, keys[:, 0], keys[:, 1], 2)
        assert numbers.mean() == pytest.approx(0.5, abs=0.015)
        for ours, next_ones in ((numbers[0, :-1], numbers[0, 1:]), (numbers[0], numbers[1])):
            assert np.corrcoef(ours, next_ones)[0, 1] == pytest.approx(0, abs=0.065)
