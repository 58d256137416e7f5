"""The memory of Keras's variables on its NumPy backend.

There, an assignment gives a variable a new array, and arrays that others have taken from it do not change. Kernels
write into arrays, but only into those that nobody else has.
"""

from __future__ import annotations

from sys import getrefcount
from typing import Any

import keras
import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.keras.supported import refused


def set_in_c_order(variable: Any) -> None:
    """Do nothing: arrays that a plan takes are in C order."""


class Memory:
    """The arrays of the variables of a plan, which nobody else has."""

    def __init__(self) -> None:
        self.variables: list[Any] = []
        self.arrays: list[Array] = []
        self.counts: list[int] = []  # references to the arrays after a step: the variables' and the plan's

    def take_weight(self, variable: Any) -> Array:
        """Return a new array of a variable that the optimizer updates."""
        value = variable._value
        if type(value) is not np.ndarray or not buffers.trained(value.dtype):
            raise refused(variable, "a float32 or float64 array", getattr(value, "dtype", type(value).__name__))
        return self._take(variable, value.dtype)

    def take_slot(self, variable: Any, i: int, dtype: np.dtype[Any]) -> Array:
        """Return a new array of a slot, or of what a master keeps."""
        value = variable._value
        known = buffers.REAL if dtype in buffers.REAL else (dtype,)
        if type(value) is not np.ndarray or value.dtype not in known:
            raise refused(variable, f"a {dtype} array", getattr(value, "dtype", type(value).__name__))
        return self._take(variable, dtype)  # Keras's zeros may be float32

    def take_codes(self, variable: Any, i: int) -> tuple[Array, Array]:
        """Return new arrays of the codes and the scales of a slot."""
        return self._take(variable, np.dtype(np.uint8)), self._take(variable.scales, buffers.REAL[0])

    def _take(self, variable: Any, dtype: np.dtype[Any]) -> Array:
        array: Array = np.array(variable._value, dtype, order="C")
        variable._value = array
        self.variables.append(variable)
        self.arrays.append(array)
        return array

    def holds(self) -> bool:
        """Return whether the arrays are still the variables', and only theirs. Take over what was assigned."""
        now = self._references()
        for variable, array, count, before in zip(self.variables, self.arrays, now, self.counts, strict=False):
            value = variable._value
            if count + (value is not array) > before:
                return False
            if value is not array:
                if type(value) is not np.ndarray or (value.shape, value.dtype) != (array.shape, array.dtype):
                    return False
                array[...] = value
                variable._value = array
        return bool(self.counts)  # otherwise no step has run

    def taken(self) -> None:
        """Do nothing: references are counted after a step."""

    def gradients(self, grads: list[Any], raw: bool) -> list[Any]:
        """Return the gradients, or None, as what NumPy can read."""
        return [gradient.numpy() if isinstance(gradient, keras.Variable) else gradient for gradient in grads]

    def changed(self) -> None:
        """Count the references to the arrays after a step."""
        self.counts = self._references()

    def _references(self) -> list[int]:
        return [getrefcount(array) for array in self.arrays]
