"""Keras's NumPy backend, where an assignment leaves arrays alone that others have taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from tests.support.keras_steps import BACKEND, apply, as_array, gradients, pair

pytestmark = [
    pytest.mark.skipif(BACKEND != "numpy", reason="of the NumPy backend"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.mark.parametrize(
    "taken",
    [lambda v: v.value, lambda v: v.value[:2], lambda v: memoryview(v.value), lambda v: v.value.T.ravel("K")[::2]],
    ids=["array", "view", "memoryview", "view of a view"],
)
def test_arrays_that_others_have_do_not_change(taken: Callable[[Any], Any]) -> None:
    optimizer, of, *_ = pair("Adam")
    held: list[tuple[Any, Any]] = []
    for t in range(6):
        if t % 2:
            for v in (of[0], of[4], optimizer._momentums[0]):
                held.append((taken(v), np.array(taken(v))))
        apply(optimizer, gradients(t), of)
        for now, before in held:
            np.testing.assert_array_equal(np.asarray(now), before)
    assert (optimizer.kernel_steps, len(held)) == (6, 9)


def test_arrays_stay_where_they_are_otherwise() -> None:
    """The kernels work in place: no step makes a new array unless somebody has the old one."""
    optimizer, of, *_ = pair("Adam", constraint=keras.constraints.NonNeg())
    apply(optimizer, gradients(0), of)
    first = optimizer._momentums[0].value.ctypes.data
    plan = optimizer._plan
    for t in range(1, 5):
        _ = of[0].value.sum(), as_array(of[0])
        apply(optimizer, gradients(t), of)  # Keras assigns the projected weights
    assert optimizer._plan is plan
    assert optimizer._momentums[0].value.ctypes.data == first


def test_what_was_assigned_belongs_to_who_assigned_it() -> None:
    optimizer, of, *_ = pair("SGD")
    apply(optimizer, gradients(0), of)
    given = np.ones((7, 5), np.float32)
    of[0]._value = given
    apply(optimizer, gradients(1), of)
    np.testing.assert_array_equal(given, 1)
    assert (as_array(of[0]) != 1).any()
