"""Tensors whose axes are in another order in memory, for rules that take rows: contiguous copies of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fastvar import buffers


class Copies:
    """Contiguous copies of tensors, which are read before an update and written back after it."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.pairs: list[tuple[Any, Any]] = []

    def of(self, tensor: Any, name: str) -> Any:
        """Return a contiguous tensor itself, or a new copy of another one."""
        if tensor.is_contiguous():
            return tensor
        if tensor.dtype is torch.uint8:  # codes, whose scales are those of elements in the order of memory
            there = "as the parameter is not contiguous; slot_dtype='bfloat16' can be used"
            raise ValueError(f"{self.owner}: {name} cannot be in 8 bits, {there}")
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.pairs.append((tensor.data, copy))  # the version of `data` is its own
        return copy

    def read(self) -> None:
        """Let the copies have the elements of their tensors."""
        for tensor, copy in self.pairs:
            copy.copy_(tensor)

    def write(self) -> None:
        """Let the tensors have the elements of their copies."""
        for tensor, copy in self.pairs:
            tensor.copy_(copy)

    def check(self, named: Iterable[tuple[str, Any]]) -> None:
        """Raise ValueError if two tensors share memory, which copies would hide."""
        if self.pairs:
            buffers.check_disjoint((f"{self.owner}: {name}", memory_of(x)) for name, x in named)


def memory_of(tensor: Any) -> buffers.Array:
    """Return the memory of a dense tensor as bytes."""
    array: buffers.Array = tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return array


def order_of(tensor: Any) -> tuple[int, ...] | None:
    """Return the axes of a dense tensor in the order of memory, None for their own."""
    if tensor.is_contiguous():
        return None
    return tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
