"""Any number of ranks computes the bits of one process, and in sequence those of accumulation."""

import os
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd
from tests.support import ranks
from tests.support.cases import CASES, Case

SHAPES = [
    (size, total, order)
    for size in (2, 3, 4, 7)
    for total in (1, size, 3 * size + 1)
    for order in ("tree", "sequence")
]
FEW = 1  # of these for each optimizer and option, and others for the next
# `FASTVAR_RANKS=rules`: each class with all of these, in a minute; `all` (`make ranks`): each row.
ALL = os.environ.get("FASTVAR_RANKS")
RULES = {type(case.make()): case for case in reversed(CASES)}.values()


@pytest.fixture(autouse=True, scope="module")
def one_processor() -> Iterator[None]:
    """Keep each process of pytest on one processor, where ranks take turns in half the time."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(before)[worker % len(before)]})
    yield
    os.sched_setaffinity(0, before)


def _programs(case: Case) -> Iterator[tuple[str, int, int, str]]:
    """Yield names of options, numbers of ranks and of micro-batches, and orders."""
    begin = CASES.index(case)
    every = ALL == "all" or (ALL == "rules" and case in RULES)
    for k, name in enumerate(ranks.OPTIONS):
        step = 5 * (begin + 3 * k)
        for shape in SHAPES if every else [SHAPES[(step + 7 * i) % len(SHAPES)] for i in range(FEW)]:
            yield name, *shape


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bits_of_one_process(case: Case) -> None:
    def train(world: fd.World, programs: Iterable[tuple[str, int, str]]) -> list[str]:
        return [ranks.train(world, case, ranks.OPTIONS[name], *rest) for name, *rest in programs]

    of_size: dict[int, list[tuple[str, int, str]]] = {}
    for name, size, total, order in _programs(case):
        of_size.setdefault(size, []).append((name, total, order))
    every = [*dict.fromkeys(program for programs in of_size.values() for program in programs)]
    one = dict(zip(every, ranks.alone(lambda world: train(world, every)), strict=True))
    wrong: list[tuple[Any, ...]] = []
    for size, programs in of_size.items():
        results = fd.simulate(size, lambda world, programs=programs: train(world, programs))
        for program, *of_ranks in zip(programs, *results, strict=True):
            if {*of_ranks} != {one[program]}:
                wrong.append((size, *program))
    for name, total, order in every:
        plain = order == "sequence" and name not in ranks.NOT_PLAIN and total > 1
        if plain and one[name, total, order] != ranks.accumulate(case, ranks.OPTIONS[name], total):
            wrong.append(("accumulation", name, total))
    assert wrong == []


@pytest.mark.parametrize(("order", "total"), [*product(["tree", "sequence"], [5, 12])])
def test_counts_weigh_micro_batches(order: str, total: int) -> None:
    counts = [int(n) for n in np.random.default_rng(0).integers(0, 9, total)]

    def program(world: fd.World) -> str:
        net = ranks.network({})
        optimizer = fd.Distributed(fv.optimizers.SGD(0.5), world, total, order)
        optimizer.build(net)
        for number in optimizer.micro_batches():
            optimizer.add(ranks.gradients(0, number), count=counts[number])
        optimizer.step()
        return ranks.digest(net)

    one = ranks.alone(program)
    assert {*fd.simulate(3, program)} == {*fd.simulate(4, program)} == {one}
    net = ranks.network({})
    grads = [ranks.gradients(0, number) for number in range(total)]
    mean = [sum(n * g[0].astype(np.float64) for n, g in zip(counts, grads, strict=True)) / sum(counts)]
    stepped = net[0].numpy() - 0.5 * mean[0]
    trained = ranks.alone(lambda world: _weights(world, counts, order))
    np.testing.assert_allclose(trained, stepped, rtol=1e-5)


def _weights(world: fd.World, counts: list[int], order: str) -> np.ndarray:
    net = ranks.network({})
    optimizer = fd.Distributed(fv.optimizers.SGD(0.5), world, len(counts), order)
    optimizer.build(net)
    for number in optimizer.micro_batches():
        optimizer.add(ranks.gradients(0, number), count=counts[number])
    optimizer.step()
    return net[0].numpy()


@pytest.mark.parametrize("order", ["tree", "sequence"])
def test_rank_without_data_adds_nothing(order: str) -> None:
    """A micro-batch that is left out is one whose gradients are None, also where it would be the first."""

    def program(world: fd.World, left_out: set[int], none: bool) -> str:
        net = ranks.network({})
        optimizer = fd.Distributed(fv.optimizers.SGD(0.5), world, 6, order)
        optimizer.build(net)
        for number in optimizer.micro_batches():
            if number not in left_out:
                optimizer.add(ranks.gradients(0, number))
            elif none:
                optimizer.add([None] * len(net))
        optimizer.step()
        return ranks.digest(net)

    for left_out in ({0}, {0, 1, 2}, {2, 5}):
        results = {
            *fd.simulate(2, lambda world, out=left_out: program(world, out, False)),
            *fd.simulate(3, lambda world, out=left_out: program(world, out, True)),
            ranks.alone(lambda world, out=left_out: program(world, out, False)),
        }
        assert len(results) == 1


def test_negative_zero_is_kept() -> None:
    """Adding nothing to -0.0 in a tree leaves -0.0, whichever rank has it."""

    def program(world: fd.World) -> bytes:
        w = fv.Variable(np.zeros(3, np.float32))
        optimizer = fd.Distributed(fv.optimizers.SGD(1.0), world, 4)
        optimizer.build([w])
        for number in optimizer.micro_batches():
            optimizer.add([np.full(3, -0.0, np.float32)] if number == 2 else [None])
        optimizer.step()
        return w.numpy().tobytes()

    assert {*fd.simulate(4, program)} == {*fd.simulate(2, program)} == {ranks.alone(program)}


@pytest.mark.skipif(ALL != "all", reason="takes a minute: `make ranks`")
def test_thousand_ranks() -> None:
    case = next(case for case in CASES if case.id == "adam")

    def program(world: fd.World) -> str:
        return ranks.train(world, case, {}, 1000, "tree")

    assert {*fd.simulate(1000, program, timeout=300)} == {ranks.alone(program)}
