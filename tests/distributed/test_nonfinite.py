"""What is not finite on one rank is refused or skipped on all, whatever finds it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd
from tests.support import ranks
from tests.support.cases import CASES, Case


def spoiling(values: np.ndarray) -> Any:
    """Make one element infinite, as a faulty projection may."""
    values = values.copy()
    values.reshape(-1)[0] = np.inf
    return values


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("i", [0, 3])
def test_constraint_that_makes_infinity_is_skipped_on_all(size: int, i: int) -> None:
    """Only the rank that has the variable sees it."""

    def program(world: fd.World) -> tuple[bool, int, int]:
        net = ranks.network({})
        net[i].constraint = spoiling
        optimizer = fd.Distributed(fv.optimizers.Adam(0.1, nonfinite="skip"), world, 4)
        optimizer.build(net)
        before = ranks.digest(net)
        for step in range(2):
            ranks.steps(optimizer, {}, range(step, step + 1))
        return ranks.digest(net) == before, optimizer.iterations, optimizer.optimizer.skipped

    assert fd.simulate(size, program, timeout=20) == [(True, 0, 2)] * size


@pytest.mark.parametrize("size", [1, 3])
def test_constraint_that_makes_infinity_is_an_error_on_all(size: int) -> None:
    def program(world: fd.World) -> tuple[str, bool]:
        net = ranks.network({})
        net[3].constraint = spoiling
        optimizer = fd.Distributed(fv.optimizers.SGD(0.1, nonfinite="raise"), world, 4)
        optimizer.build(net)
        before = ranks.digest(net)
        with pytest.raises(ValueError, match="what the step makes of 'wide' must be finite") as error:
            ranks.steps(optimizer, {}, range(1))
        return str(error.value), ranks.digest(net) == before

    ((_, same),) = {*fd.simulate(size, program, timeout=20)}
    assert same


def bad_gradient(value: float) -> Callable[[int], list[Any]]:
    def gradients(number: int) -> list[Any]:
        grads = [g.copy() for g in ranks.gradients(0, number)]
        if number == 1:
            grads[0][2, 3] = value
        return grads

    return gradients


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_every_rule_skips_on_all(case: Case, value: float) -> None:
    """Also where what a rule measures of the whole variable is not finite before anything is written."""
    gradients = bad_gradient(value)

    def program(world: fd.World) -> tuple[str, int]:
        net = ranks.network({})
        optimizer = fd.Distributed(case.make(**ranks.taken(case, {"nonfinite": "skip"})), world, 4)
        optimizer.build(net)
        for spoilt in (False, True, False):
            for number in optimizer.micro_batches():
                optimizer.add(gradients(number) if spoilt else ranks.gradients(0, number))
            optimizer.step()
        return ranks.digest(net), optimizer.iterations

    (one,) = {*fd.simulate(3, program, timeout=20)}
    assert one == ranks.alone(program)
    assert one[1] == 2
