"""Tensors whose axes are in another order in memory, for rules that take rows: contiguous copies of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fastvar import buffers
from fastvar.torch.optim.reading import READER


class Copies:
    """Contiguous copies of tensors, which are read before an update and written back after it."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def of(self, tensor: Any) -> Any:
        """Return a contiguous tensor itself, or a new copy of another one."""
        if tensor.is_contiguous():
            return tensor
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

    def check(self, owner: str, named: Iterable[tuple[str, Any]]) -> None:
        """Raise ValueError if two tensors share memory, which copies would hide."""
        if self.pairs:
            buffers.check_disjoint(
                (f"{owner}: {name}", buffers.array_at(READER.memory(x), owner)) for name, x in named
            )


def order_of(tensor: Any) -> tuple[int, ...] | None:
    """Return the axes of a dense tensor in the order of memory, None for their own."""
    if tensor.is_contiguous():
        return None
    return tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
