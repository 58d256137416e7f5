"""What every contender is: a name, the cases that it supports, and a step on arrays of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import repeat
from math import prod
from typing import NamedTuple

import numpy as np

from fastvar.benchmark.as_written import Arrays, Step
from fastvar.benchmark.cases import Case
from fastvar.benchmark.measure import Run


class Prepared(NamedTuple):
    """A step of a contender, and what returns its weights."""

    step: Step
    weights: Callable[[], Arrays]


class Contender(NamedTuple):
    """One way to compute the steps of a case."""

    name: str
    needs: str  # the module that it needs, or ""
    supports: Callable[[Case], bool]
    prepare: Callable[[Case], Prepared]  # imports what it needs

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return not self.needs or find_spec(self.needs) is not None


def repeated(step: Step) -> Run:
    """Return a function that runs a number of steps."""

    def run(number: int) -> None:
        for _ in repeat(None, number):
            step()

    return run


def arrays(case: Case) -> tuple[Arrays, Arrays]:
    """Return weights and gradients of ordinary magnitude, so that no denormals occur."""
    weights = [np.linspace(0.5, 1, prod(s), dtype=case.dtype).reshape(s) for s in case.tensors]
    return weights, [np.linspace(0.05, 0.15, prod(s), dtype=case.dtype).reshape(s) for s in case.tensors]
