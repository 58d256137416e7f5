"""The state of random generators of Python and NumPy as values; saved state is tried on a new generator first."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

NUMPY = (np.random.Generator, np.random.RandomState, np.random.BitGenerator)
_HIGHEST = {"pos": 624, "buffer_pos": 4, "has_uint32": 1, "has_gauss": 1}  # NumPy itself does not check these


def is_generator(thing: Any) -> bool:
    """Return whether `thing` is a random generator of Python or NumPy."""
    return isinstance(thing, (random.Random, *NUMPY))


def get_state(generator: Any) -> Any:
    """Return the state of a generator."""
    if isinstance(generator, random.Random):
        version, numbers, gauss = generator.getstate()
        return [version, list(numbers), gauss]
    legacy = generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else {}
    return {**_bits(generator).state, **legacy}


def prepare(generator: Any, saved: Any) -> Callable[[], object]:
    """Check a state that `get_state` returned, and return a function that gives it to the generator.

    Raises
    ------
    ValueError
        If it is not the state of a generator of this kind.
    """
    try:
        if not _in_bounds(saved):
            raise ValueError("a number is out of range")
        trial = _like(generator)
        _setting(trial, saved)()
        if not _same(saved, get_state(trial)):
            raise ValueError("a number is out of range")
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"the saved state is not that of a {type(generator).__name__} ({error})") from error
    return _setting(generator, saved)


def _bits(generator: Any) -> Any:
    """Return the bit generator of a NumPy generator."""
    if isinstance(generator, np.random.RandomState):
        return generator._bit_generator
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


def _like(generator: Any) -> Any:
    """Return a new generator with the same kind of state."""
    if isinstance(generator, random.Random):
        return random.Random()
    bits = type(_bits(generator))()
    return np.random.RandomState(bits) if isinstance(generator, np.random.RandomState) else bits


def _setting(generator: Any, saved: Any) -> Callable[[], object]:
    if isinstance(generator, random.Random):
        version, numbers, gauss = saved
        state = version, tuple(numbers), gauss
        return lambda: generator.setstate(state)
    if isinstance(generator, np.random.RandomState):
        return lambda: generator.set_state(saved)
    return lambda: setattr(_bits(generator), "state", saved)


def _in_bounds(state: Any) -> bool:
    if isinstance(state, dict):
        return all(_in_bounds(value) and _fits(key, value) for key, value in state.items())
    gauss = state[2] if isinstance(state, list) else None
    return gauss is None or (type(gauss) is float and math.isfinite(gauss))


def _fits(key: str, value: Any) -> bool:
    if key == "gauss":
        return type(value) is float and math.isfinite(value)
    return key not in _HIGHEST or (type(value) is int and 0 <= value <= _HIGHEST[key])


def _same(saved: Any, present: Any) -> bool:
    """Return whether the saved state equals the present one, in types and bits."""
    if type(saved) is not type(present):
        return False
    if isinstance(saved, dict):
        return all(key in present and _same(value, present[key]) for key, value in saved.items())
    if isinstance(saved, list):
        return len(saved) == len(present) and all(map(_same, saved, present))
    if isinstance(saved, np.ndarray):
        return bool(saved.dtype == present.dtype and saved.shape == present.shape and (saved == present).all())
    return bool(saved == present)
