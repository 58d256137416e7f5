"""Random bits for stochastic rounding: a hash of what is rounded, so that they depend on nothing else.

The number for an element is `random[element % 256] ^ key`. The 256 numbers are hashes of the optimizer's seed and
the number of the update. The key is a hash of these, of the number of the variable in the order of `build`, of the
slot, and of `element // 256`. So neither threads nor sparse rows change it, and a resumed run continues it.

`rounding.pxi` computes the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastvar.formats import GROUP, groups_of

SEEDS = np.dtype([("shared", np.uint64), ("own", np.uint64)])
"""The hashes for a variable in an update: without its number, and with it."""


def hashed(h: Any, x: Any) -> Any:
    """Return a hash of a hash and a number: the output function of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = (np.uint64(h) ^ np.asarray(x, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def set_seeds(seeds: npt.NDArray[Any], seed: int, updates: Any, numbers: Any) -> None:
    """Set the hashes of variables for an update: its number for each, from 1, and the number of each variable."""
    seeds["shared"] = hashed(hashed(0, seed), updates)
    seeds["own"] = hashed(seeds["shared"], numbers)


def random_bits(seeds: Any, slot: int, n: int) -> npt.NDArray[np.uint32]:
    """Return the random numbers for the first `n` elements of a slot, given the record of its variable."""
    shared = hashed(seeds["shared"], np.arange(GROUP)) >> np.uint64(32)
    keys = hashed(hashed(seeds["own"], slot), np.arange(groups_of(n))) >> np.uint64(32)
    bits: npt.NDArray[Any] = (keys[:, None] ^ shared).astype(np.uint32)
    return bits.reshape(-1)[:n]
