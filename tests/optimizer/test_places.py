"""The core works on places: whatever has what `Place` declares, and not only Variables."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import fastvar as fv
from fastvar import place
from fastvar.optimizer.groups import Group
from fastvar.optimizer.planning import StepPlan
from fastvar.optimizer.slots import first_numbers, keep
from fastvar.optimizer.step import step
from tests.support.runs import COMBINATIONS, assert_all_same_bits, elementwise, gradients, state, variables

CORE = ("groups", "options", "planning", "rule", "state", "step")
DECLARED = [name for name, thing in vars(place.Place).items() if isinstance(thing, property)]


class Bare:
    """A place that has what `Place` declares and nothing else."""

    __slots__ = ("held",)

    def __init__(self, held: fv.Variable) -> None:
        self.held = held

    def __getattr__(self, name: str) -> Any:
        if name not in DECLARED:
            raise AttributeError(f"no part of a place: {name}")
        return getattr(self.held, name)

    def _keep_master(self) -> None:
        self.held._keep_master()

    def _zeroing(self, gradient: Any) -> tuple[Any, Any]:
        return self.held._zeroing(gradient)


def plan_of(optimizer: fv.Optimizer, places: list[Any]) -> StepPlan:
    """Return a plan of the core, made without the API."""
    state = optimizer._state
    state.take([Group(optimizer, places, {})])
    state.numbers |= first_numbers(optimizer, len(places))
    keep(optimizer, state)
    return StepPlan(optimizer, state)


def halves(array: Any) -> Any:
    return array / 2


@pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))
@elementwise
def test_a_step_asks_no_more_of_a_place_than_is_declared(case: Any, options: dict[str, Any]) -> None:
    ours, theirs = variables(), variables()
    for given in (ours, theirs):
        given[0].regularizer, given[1].constraint = fv.regularizers.L1L2(0.125, 0.25), halves
        given[4].trainable = False
    first, second = case.make(**options), case.make(**options)
    first.build(ours)
    plan = plan_of(second, [*map(Bare, theirs)])
    for t in range(4):
        for v, g in zip(ours, gradients(t), strict=True):
            v.grad = g
        grads = gradients(t)
        first.step(zero_grad=True)
        if plan.stale:
            plan.read_hyperparameters()
        step(plan, grads, True)
        assert_all_same_bits(grads, [v.grad for v in ours])
    assert first.iterations == second.iterations > 0
    assert_all_same_bits([*ours, *state(first)], [*theirs, *state(second)])


@pytest.mark.parametrize("name", CORE)
def test_the_core_does_not_know_variables(name: str) -> None:
    path = Path(fv.__file__).parent / "optimizer" / f"{name}.py"
    imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not {node.module for node in imported} & {"fastvar.variable", "fastvar.module"}


def test_a_loss_scale_keeps_what_its_optimizer_keeps() -> None:
    inner = fv.optimizers.Adam()
    outer = fv.optimizers.LossScaleOptimizer(inner)
    outer.apply(gradients(), variables())
    assert outer._state is inner._state
    assert outer.groups == inner.groups
    assert outer.variables == inner.variables
    assert (outer.iterations, outer.slots) == (1, inner.slots)
    outer.exclude_from_weight_decay(var_names=["v1"])
    assert [outer.decays(v) for v in inner._state.variables] == [True, False, True, True, True]
