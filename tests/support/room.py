"""Memory for arrays at any alignment, whose gaps show what is written outside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvar import buffers

GUARD = 0xA5  # fills the gaps between arrays, and must not change


class Room:
    """One block of memory for arrays, each at its own offset from a 64-byte boundary."""

    def __init__(self, nbytes: int) -> None:
        self.bytes = buffers.empty((nbytes,), "u1")
        self.bytes[...] = GUARD
        self.end = 0
        self.gaps: list[Any] = []

    def placed(self, values: Any, dtype: Any, offset: int) -> Any:
        """Place a copy of `values` at `offset` elements after a 64-byte boundary."""
        itemsize = np.dtype(dtype).itemsize
        start = -(-self.end // 64) * 64 + offset % 16 * itemsize
        self.gaps.append(self.bytes[self.end : start])
        self.end = start + values.size * itemsize
        array = self.bytes[start : self.end].view(dtype).reshape(values.shape)
        with np.errstate(over="ignore"):
            array[...] = values
        return array

    def assert_guarded(self) -> None:
        between = np.concatenate([*self.gaps, self.bytes[self.end :]])
        assert (between == GUARD).all(), "wrote outside the arrays"
