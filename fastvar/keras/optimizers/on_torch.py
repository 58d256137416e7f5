"""The memory of Keras's variables on its torch backend, as NumPy arrays."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.keras.supported import Unfit
from fastvar.kernels.tensors import Reader

CLASSES = (torch.Tensor, torch.nn.Parameter)
READER = Reader(CLASSES, torch.strided)
Order = tuple[int, ...] | None  # of the axes, by decreasing strides; None: their own


class Memory:
    """The tensors of the variables of a plan, and where they were when it was made."""

    def __init__(self) -> None:
        self.variables: list[Any] = []
        self.tensors: list[Any] = []
        self.addresses: list[int] = []
        self.weights: list[Any] = []
        self.orders: list[Order] = []

    def take_weight(self, variable: Any) -> Array:
        """Return the array of a variable that the optimizer updates, its axes in the order of memory."""
        tensor = self._take(variable)
        order = None
        if not tensor.is_contiguous():
            order = tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
        self.weights.append(tensor)
        self.orders.append(order)
        return _reordered(tensor.detach().numpy(), order)

    def take_slot(self, variable: Any, i: int) -> Array:
        """Return the array of a slot of weight number `i`, which is made to lie in memory as the weight does."""
        tensor, weight, order = self._take(variable), self.weights[i], self.orders[i]
        if order is not None:
            if tensor.shape != weight.shape:
                raise Unfit(f"{variable.path} belongs to a matrix that is transposed in memory")
            if tensor.stride() != weight.stride():
                tensor.data = torch.empty_like(weight, requires_grad=False).copy_(tensor)
        if tensor.dtype != weight.dtype:  # Keras's zeros may be float32
            tensor.data = tensor.data.to(weight.dtype)
        self.addresses[-1] = tensor.data_ptr()
        return _reordered(tensor.detach().numpy(), order)

    def _take(self, variable: Any) -> Any:
        tensor = variable._value
        real = type(tensor) in CLASSES and tensor.dtype in (torch.float32, torch.float64)
        if not real or tensor.is_inference() or READER.memory(tensor) is None:
            raise Unfit(
                f"{variable.path} must be a dense float32 or float64 tensor on the CPU, got {_told(tensor)}"
            )
        self.variables.append(variable)
        self.tensors.append(tensor)
        self.addresses.append(tensor.data_ptr())
        return tensor

    def holds(self) -> bool:
        """Return whether all variables are where they were."""
        tensors = [v._value for v in self.variables]
        return all(map(is_, tensors, self.tensors)) and [t.data_ptr() for t in tensors] == self.addresses

    def gradient(self, gradient: Any, i: int) -> Any:
        """Return a gradient of weight number `i` as something that NumPy can read."""
        if not isinstance(gradient, torch.Tensor):
            return gradient
        if gradient is self.weights[i]:
            gradient = gradient.detach().clone()
        try:
            array = gradient.numpy()
        except (TypeError, RuntimeError):  # it requires gradients, or NumPy lacks its format
            array = _read(gradient.detach())
        return _reordered(array, self.orders[i])

    def changed(self) -> None:
        """Tell autograd that the weights have changed."""
        torch.autograd.graph.increment_version(self.weights)


def _reordered(array: Array, order: Order) -> Array:
    return array if order is None else array.transpose(order)


def _read(tensor: Any) -> Array:
    dense = tensor.contiguous() if tensor.layout is torch.strided else tensor
    memory = READER.memory(dense)
    if memory is None:
        raise Unfit(f"a gradient must be a dense tensor on the CPU, got {_told(tensor)}")
    return buffers.array_at(memory, "gradient", keep=dense).reshape(tensor.shape)


def _told(tensor: Any) -> str:
    what = type(tensor).__name__
    return f"{tensor.dtype}, {tensor.layout} on {tensor.device} ({what})" if hasattr(tensor, "layout") else what
