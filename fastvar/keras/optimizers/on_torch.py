"""The memory of Keras's variables on its torch backend, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, is_
from typing import Any

import keras
import numpy as np
import torch

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.checkpoint.pytorch import as_array
from fastvar.keras.supported import Unfit, refused
from fastvar.kernels.tensors import Places, Reader

CLASSES = (torch.Tensor, torch.nn.Parameter)
READER = Reader(CLASSES, torch.strided)
tensor_of: Callable[[Any], torch.Tensor] = attrgetter("_value")
REAL = (torch.float32, torch.float64)
TRAINED = (*REAL, torch.bfloat16, torch.float16)
Order = tuple[int, ...] | None  # of the axes, by decreasing strides; None: their own


class Memory:
    """The tensors of the variables of a plan, and where they were when it was made."""

    def __init__(self) -> None:
        self.variables: list[Any] = []
        self.tensors: list[Any] = []
        self.places: Places | None = None  # of all tensors, once all are taken
        self.weights: list[Any] = []
        self.orders: list[Order] = []
        self.turned: list[int] = []  # the weights with another order

    def take_weight(self, variable: Any) -> Array:
        """Return the array of a variable that the optimizer updates, its axes in the order of memory."""
        tensor = self._take(variable, TRAINED)
        order = None
        if not tensor.is_contiguous():
            order = tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
        self.weights.append(tensor)
        self.orders.append(order)
        if order is not None:
            self.turned.append(len(self.orders) - 1)
        return _reordered(as_array(tensor), order)

    def take_slot(self, variable: Any, i: int, dtype: np.dtype[Any]) -> Array:
        """Return the array of a slot of weight number `i`, or of what its master keeps.

        It is made to lie in memory as the weight does.
        """
        wanted = getattr(torch, dtype.name)
        tensor = self._take(variable, REAL if wanted in REAL else (wanted,))
        weight, order = self.weights[i], self.orders[i]
        if order is not None:
            if tensor.shape != weight.shape:
                raise Unfit(f"{variable.path} belongs to a matrix that is transposed in memory")
            if tensor.stride() != weight.stride():
                tensor.data = torch.empty_like(weight, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        if tensor.dtype != wanted:  # Keras's zeros may be float32
            tensor.data = tensor.data.to(wanted)
        return _reordered(as_array(tensor), order)

    def take_codes(self, variable: Any, i: int) -> tuple[Array, Array]:
        """Return the arrays of the codes and the scales of a slot of weight number `i`."""
        if self.orders[i] is not None:
            raise Unfit(f"{variable.path} belongs to a variable that is transposed in memory")
        codes, scales = self._take(variable, (torch.uint8,)), self._take(variable.scales, (torch.float32,))
        return as_array(codes), as_array(scales)

    def _take(self, variable: Any, dtypes: tuple[Any, ...]) -> Any:
        tensor = variable._value
        known = type(tensor) in CLASSES and tensor.dtype in dtypes
        if not known or tensor.is_inference() or not _is_readable(tensor):
            kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise refused(variable, f"a dense {kinds} tensor on the CPU", _told(tensor))
        self.variables.append(variable)
        self.tensors.append(tensor)
        return tensor

    def holds(self) -> bool:
        """Return whether all variables are where they were."""
        return self.places is not None and self.places.hold([*map(tensor_of, self.variables)])

    def taken(self) -> None:
        """Remember where all variables are."""
        self.places = Places(READER, self.tensors)

    def gradients(self, grads: list[Any], raw: bool) -> Any:
        """Return gradients, or None, as NumPy can read them; if `raw`, records of their memory where possible."""
        grads = [*grads]
        if raw and (records := READER.records(grads, self.weights)) is not None:
            return records
        arrays: list[Any] = READER.arrays(grads)
        for i in [i for i, array in enumerate(arrays) if array is None]:
            arrays[i] = _read(grads[i])
        if any(map(is_, grads, self.weights)):
            arrays = [_read(g) if g is w else a for g, w, a in zip(grads, self.weights, arrays, strict=True)]
        for i in self.turned:
            if isinstance(arrays[i], np.ndarray):
                arrays[i] = _reordered(arrays[i], self.orders[i])
        return arrays

    def changed(self) -> None:
        """Tell autograd that the weights have changed."""
        torch.autograd.graph.increment_version(self.weights)


def set_in_c_order(variable: Any) -> None:
    """Let a variable lie in C order, as codes of 8 bits do, if it is transposed in memory."""
    tensor = tensor_of(variable)
    tensor.data = tensor.data.contiguous()


def _is_readable(tensor: Any) -> bool:
    """Return whether the memory of a tensor is one that kernels may use."""
    if tensor.is_floating_point():
        return READER.memory(tensor) is not None
    return bool(tensor.device.type == "cpu" and tensor.layout is torch.strided)  # codes, or lower bits


def _reordered(array: Array, order: Order) -> Array:
    return array if order is None else array.transpose(order)


def _read(gradient: Any) -> Any:
    """Return a gradient of another kind, or a copy of a tensor that is updated."""
    if isinstance(gradient, keras.Variable):
        return gradient.numpy()
    if not isinstance(gradient, torch.Tensor):
        return gradient
    strided = gradient.layout is torch.strided
    copy = gradient.detach().clone(memory_format=torch.contiguous_format) if strided else gradient
    memory = READER.memory(copy)
    if memory is None:
        raise Unfit(f"a gradient must be a dense tensor on the CPU, got {_told(gradient)}")
    return buffers.array_at(memory, "gradient", keep=copy).reshape(gradient.shape)


def _told(tensor: Any) -> str:
    what = type(tensor).__name__
    return f"{tensor.dtype}, {tensor.layout} on {tensor.device} ({what})" if hasattr(tensor, "layout") else what
