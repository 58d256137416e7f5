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
from fastvar.formats import dtype_of
from fastvar.keras.supported import Unfit
from fastvar.kernels.tensors import Places, Reader

CLASSES = (torch.Tensor, torch.nn.Parameter)
READER = Reader(CLASSES, torch.strided)
tensor_of: Callable[[Any], torch.Tensor] = attrgetter("_value")
REAL = (torch.float32, torch.float64)
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
        tensor = self._take(variable)
        order = None
        if not tensor.is_contiguous():
            order = tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
        self.weights.append(tensor)
        self.orders.append(order)
        if order is not None:
            self.turned.append(len(self.orders) - 1)
        return _reordered(tensor.detach().numpy(), order)

    def take_slot(self, variable: Any, i: int, in_bfloat16: bool = False) -> Array:
        """Return the array of a slot of weight number `i`, which is made to lie in memory as the weight does."""
        dtypes = (torch.bfloat16,) if in_bfloat16 else REAL
        tensor, weight, order = self._take(variable, dtypes), self.weights[i], self.orders[i]
        if order is not None:
            if tensor.shape != weight.shape:
                raise Unfit(f"{variable.path} belongs to a matrix that is transposed in memory")
            if tensor.stride() != weight.stride():
                tensor.data = torch.empty_like(weight, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        if in_bfloat16:
            bits: Array = tensor.detach().view(torch.int16).numpy()
            return _reordered(bits.view(dtype_of("bfloat16")), order)
        if tensor.dtype != weight.dtype:  # Keras's zeros may be float32
            tensor.data = tensor.data.to(weight.dtype)
        return _reordered(tensor.detach().numpy(), order)

    def take_codes(self, variable: Any, i: int) -> tuple[Array, Array]:
        """Return the arrays of the codes and the scales of a slot of weight number `i`."""
        if self.orders[i] is not None:
            raise Unfit(f"{variable.path} belongs to a variable that is transposed in memory")
        return self._take_bytes(variable), self._take_bytes(variable.scales)

    def _take_bytes(self, variable: Any) -> Array:
        tensor = variable._value
        if type(tensor) not in CLASSES or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Unfit(f"{variable.path} must be a contiguous tensor on the CPU, got {_told(tensor)}")
        self.variables.append(variable)
        self.tensors.append(tensor)
        array: Array = tensor.detach().numpy()
        return array

    def _take(self, variable: Any, dtypes: Any = REAL) -> Any:
        tensor = variable._value
        real = type(tensor) in CLASSES and tensor.dtype in dtypes
        if not real or tensor.is_inference() or READER.memory(tensor) is None:
            kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise Unfit(f"{variable.path} must be a dense {kinds} tensor on the CPU, got {_told(tensor)}")
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
