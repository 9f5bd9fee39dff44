"""Random numbers that depend on a key such as (seed, epoch, index) alone.

Source: the mixing function splitmix64 (Steele, Lea and Flood, OOPSLA 2014); numpy's ``SeedSequence`` takes ten times
as long per image.
"""

import numpy as np
import numpy.typing as npt

#: 2**64 divided by the golden ratio: the increment of splitmix64.
GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def keyed_seed(*key: int) -> int:
    """Return a 64-bit seed for a key of integers; the seeds of neighboring keys are uncorrelated."""
    x = 0
    for part in key:
        x = (x + part + GOLDEN) & _MASK
        for shift, factor in _STEPS:
            x = ((x ^ (x >> shift)) * factor) & _MASK
        x ^= x >> 31
    return x


def keyed_uniform(
    seed: int, epochs: npt.NDArray[np.int64], indices: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Return (count, B) uniform numbers from 0 to 1: a splitmix64 stream for each of B keys (seed, epoch, index)."""
    x = np.zeros(len(indices), np.uint64)
    with np.errstate(over="ignore"):
        for part in (np.full(len(indices), seed), epochs, indices):
            x = _mixed(x + part.astype(np.uint64) + np.uint64(GOLDEN))
        numbers = [_mixed(x + np.uint64((i + 1) * GOLDEN & _MASK)) for i in range(count)]
    return np.stack(numbers).astype(np.float64) / 2.0**64


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for shift, factor in _STEPS:
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(x ^ (x >> np.uint64(31)))
