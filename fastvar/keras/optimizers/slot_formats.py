"""Slots of Keras's optimizers in bfloat16 and in 8 bits.

In 8 bits, a slot is two variables: `..._codes`, uint8, is in Keras's list of slots, and has an attribute `scales`,
the variable `..._scales`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from fastvar.buffers import arithmetic
from fastvar.formats import OF_MASTERS
from fastvar.optimizer.quantized import Quantized
from fastvar.optimizer.slots import slot_format
from fastvar.variable import Variable

BFLOAT16, CODES = "bfloat16", "uint8"  # the dtypes of variables
FORMATTED = (BFLOAT16, CODES, OF_MASTERS[BFLOAT16].name)


def format_for(rule: Any, slot: str, place: Variable, options: Any) -> str | None:
    """Return the format that a slot should have, None for the dtype in which its variable is computed."""
    if slot not in rule.slots or not rule.has_slot(slot, place):
        return None
    wanted = slot_format(rule, slot, place, options)
    return None if wanted == arithmetic(place.dtype).name else wanted


def like(variable: Any) -> Variable:
    """Return a variable of fastvar with the name and the shape of one of Keras, without values."""
    return Variable(np.empty(variable.shape, np.float32), name=variable.path, copy=False)


def made(add: Callable[..., Any], variable: Any, slot: str, initializer: Any, wanted: str) -> Any:
    """Return the variable of a new slot; `add` is the method of Keras that makes variables."""
    shape = variable.shape
    if wanted == BFLOAT16:
        return named(add, variable, slot, shape, initializer, BFLOAT16)
    first = Quantized.zeros(shape, np.float32, slot)
    if initializer != "zeros":
        first.assign(as_array(keras.initializers.get(initializer)(shape, "float32")))
    codes = named(add, variable, f"{slot}_codes", shape, _holding(first.codes.value), CODES)
    codes.scales = beside(add, variable, f"{slot}_scales", first.scales.value)
    return codes


def named(add: Callable[..., Any], variable: Any, what: str, *arguments: Any) -> Any:
    """Return a new variable with the name that Keras gives to what belongs to a variable."""
    return add(*arguments, name=f"{variable.path.replace('/', '_')}_{what}")


def beside(add: Callable[..., Any], variable: Any, what: str, array: Any) -> Any:
    """Return a new variable with the values of an array that Keras's own optimizer does not have."""
    made = named(add, variable, what, array.shape, _holding(array), array.dtype.name)
    made.is_beside = True
    return made


def format_of(variable: Any) -> str | None:
    """Return the format of a slot, None if that is float32 or float64."""
    return "8bit" if hasattr(variable, "scales") else BFLOAT16 if variable.dtype == BFLOAT16 else None


def check_stored(owner: str, variables: list[Any], values: Any) -> None:
    """Raise ValueError if a saved state has other formats than an optimizer."""
    kinds = [[keras.backend.standardize_dtype(v.dtype) for v in of] for of in (variables, values)]
    here, there = ([kind if kind in FORMATTED else "" for kind in of] for of in kinds)
    if here != there:
        raise ValueError(
            f"{owner}: the saved state has other formats than slot_dtype and master say; make the optimizer with "
            "the slot_dtype, slot_dtype_min_size and master of that state"
        )


def shared(variables: list[Any]) -> list[Any]:
    """Return the variables of an optimizer that Keras's own has, too, in its order."""
    return [v for v in variables if not hasattr(v, "is_beside")]


def decoded(variable: Any) -> Any:
    """Return the values of a variable, in float32 if it is a slot in a format."""
    if hasattr(variable, "scales"):
        return Quantized(as_array(variable), as_array(variable.scales), np.float32).value
    return keras.ops.cast(variable.value, "float32") if format_of(variable) else variable.value


def assign(variable: Any, value: Any) -> None:
    """Write values into a variable, rounded to nearest if it is a slot in a format."""
    if hasattr(variable, "scales"):
        slot = Quantized.zeros(variable.shape, np.float32, variable.path)
        slot.assign(as_array(value))
        variable.scales.assign(slot.scales.value)
        value = slot.codes.value
    variable.assign(value)


def as_array(value: Any) -> Any:
    """Return a value of Keras as an array."""
    return np.asarray(keras.ops.convert_to_numpy(value))


def _holding(array: Any) -> Callable[..., Any]:
    return lambda shape, dtype=None: keras.ops.convert_to_tensor(array, dtype)
