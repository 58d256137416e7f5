"""All contenders: fastvar first, then its rivals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fastvar import threads as own
from fastvar.benchmark import beside_torch, in_jax, in_keras, in_numba, in_tensorflow, in_torch
from fastvar.benchmark.cases import Case
from fastvar.benchmark.contest import Contender, Prepared, arrays
from fastvar.variable import Variable

FASTVAR, WRITTEN, OUT = "fastvar", "NumPy", "NumPy out="


def _fastvar(case: Case) -> Prepared:
    weights, gradients = arrays(case)
    variables = [Variable(w) for w in weights]
    optimizer = case.algorithm.optimizer()
    optimizer.build(variables)
    return Prepared(lambda: optimizer.apply(gradients), lambda: [v.value for v in variables])


def _numpy(which: int) -> Callable[[Case], Prepared]:
    def prepare(case: Case) -> Prepared:
        assert case.algorithm.numpy is not None
        weights, gradients = arrays(case)
        return Prepared(case.algorithm.numpy[which](weights, gradients), lambda: weights)

    return prepare


EVERY: tuple[Contender, ...] = (
    Contender(FASTVAR, "", lambda case: True, _fastvar),
    Contender(WRITTEN, "", lambda case: case.algorithm.numpy is not None, _numpy(0)),
    Contender(OUT, "", lambda case: case.algorithm.numpy is not None, _numpy(1)),
    in_numba.CONTENDER,
    *in_torch.CONTENDERS,
    *beside_torch.CONTENDERS,
    in_keras.CONTENDER,
    in_tensorflow.CONTENDER,
    in_jax.CONTENDER,
)
NAMES = tuple(each.name for each in EVERY)


def contenders(case: Case, names: Sequence[str] = NAMES) -> dict[str, Prepared]:
    """Return those that are installed and support the case, ready to step."""
    return {each.name: each.prepare(case) for each in supporting(case, names)}


def supporting(case: Case, names: Sequence[str]) -> list[Contender]:
    """Return those that are installed and support the case."""
    return [each for each in EVERY if each.name in names and each.installed and each.supports(case)]


def attempt(each: Contender, case: Case) -> Prepared | str:
    """Return a contender that has made a step, or why it cannot. An error of fastvar's own is raised."""
    try:
        prepared = each.prepare(case)
        prepared.step()
    except Exception as error:  # of any library, such as one whose backend is missing
        if each.name == FASTVAR:
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    return prepared


def absent(names: Sequence[str] = NAMES) -> dict[str, str]:
    """Return the contenders that cannot be measured here, with the module that each needs."""
    return {each.name: each.needs for each in EVERY if each.name in names and not each.installed}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let fastvar, and what else has been imported and can be told, use `count` threads."""
    before = own.get_num_threads()
    with ExitStack() as stack:
        own.set_num_threads(count)
        stack.callback(own.set_num_threads, before)
        for module in (in_torch, in_numba):
            if module.NAME in sys.modules:
                stack.callback(module.set_threads, module.set_threads(count))
        yield


@contextmanager
def processors(count: int) -> Iterator[None]:
    """Keep to `count` processors, so that libraries that cannot be told start no more threads."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
