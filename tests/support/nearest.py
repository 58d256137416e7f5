"""Slots rounded to nearest: the control that shows what stochastic rounding is for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from fastvar import kernels
from fastvar.kernels import numpy_plan, reference
from fastvar.kernels.numpy_formats import NEAREST


@contextmanager
def nearest_rounding() -> Iterator[None]:
    """Make optimizers run in NumPy, and round their slots to nearest."""

    def constant(seeds: Any, slot: int, n: int) -> Any:
        return np.full(n, NEAREST)

    with patch.object(kernels, "RULES", reference.RULES), patch.object(numpy_plan, "random_bits", constant):
        yield
