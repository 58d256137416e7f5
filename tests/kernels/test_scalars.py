"""The names of scalars and slots agree in the twin of a rule, the compiled rule, and the classes.

At run time scalars are plain tuples, so that names cost nothing in a step. These tests read the names from the
sources: each element of a tuple must be a variable or an attribute with the name of the scalar.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar import kernels
from fastvar.kernels import reference
from tests.support import torch_cases
from tests.support.cases import CASES
from tests.support.runs import variables

Names = tuple[str, ...]
RULES_PXI = (Path(fv.__file__).parent / "kernels" / "rules.pxi").read_text()
# The names of each slot in optimizers: of Keras, of PyTorch, and our own.
CALLED = {
    "m": {"exp_avg", "momentum", "momentum_buffer"},
    "v": {"accumulated_grad", "accumulator", "exp_avg_sq", "square_avg", "sum", "velocity"},
    "peak": {"max_exp_avg_sq", "velocity_hat"},
    "u": {"exp_inf", "norm"},
    "average": {"average_gradient", "ax", "grad_avg"},
    "d": {"acc_delta", "accumulated_delta_var", "drift"},
    "accumulator": {"accumulator"},
    "linear": {"linear"},
    "z": {"momentum"},
    "previous": {"prev", "previous_gradient"},
    "step": {"step_size"},
    "m_slow": {"slow_momentum"},
    "total": {"gradient_sum"},
}


def read_in(source: str, name: str) -> tuple[Names, Names]:
    """Return the names of the slots and scalars of a compiled rule, in the order in which it reads them."""
    body = source.split(f"cdef void {name}(")[1].split("\n\n", maxsplit=1)[0]
    found = []
    for array in ("slots", "c"):
        pairs = re.findall(rf"(\w+) = {array}\[(\d+)\]", body)
        assert [int(k) for _, k in pairs] == [*range(len(pairs))], f"{name}: {array} are read out of order"
        found.append(tuple(read for read, _ in pairs))
    return found[0], found[1]


def names_of(value: ast.expr) -> Iterator[str]:
    """Yield the names in a tuple."""
    if isinstance(value, ast.Name):
        yield value.id
    elif isinstance(value, ast.Attribute):
        yield value.attr
    elif isinstance(value, ast.Starred):
        yield from names_of(value.value)
    else:
        assert isinstance(value, ast.Tuple), f"{ast.unparse(value)!r} has no name"
        for element in value.elts:
            yield from names_of(element)


def returned(function: Callable[..., Any]) -> set[Names]:
    """Return the tuples of names that a function can return, itself or through a function that it calls."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    found: set[Names] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if not isinstance(node, ast.Return) or node.value is None:
            continue
        if isinstance(node.value, ast.Call):
            found |= returned(eval(ast.unparse(node.value.func), function.__globals__))
        else:
            found.add(tuple(names_of(node.value)))
    return found


def optimizers() -> Iterator[tuple[fv.Optimizer, list[fv.Variable]]]:
    for case in CASES:
        optimizer, given = case.make(), variables()
        optimizer.build(given)
        yield optimizer, given
    for name, options in torch_cases.FEW:
        given = variables()
        yield torch_cases.make(name, given, **options), given


def passes() -> Iterator[tuple[fv.Optimizer, Any]]:
    """Yield the pass of every case, for every kind of variable."""
    for optimizer, given in optimizers():
        for kind in {optimizer.kind_of(v) for v in given}:
            yield optimizer, optimizer.pass_of(kind)


@pytest.mark.parametrize("name", sorted(kernels.RULES))
def test_compiled_rules_read_what_their_twins_declare(name: str) -> None:
    twin = reference.RULES[name]
    assert read_in(RULES_PXI, name) == (twin.slots, twin.scalars)
    for isa in kernels.supported():
        compiled = kernels.load(isa)[1].RULES[name]
        assert (compiled.slots, compiled.scalars) == (twin.slots, twin.scalars)


def test_classes_return_scalars_under_the_names_of_the_rule() -> None:
    taken: dict[Any, set[Names]] = defaultdict(set)
    for _, one in passes():
        taken[getattr(one.scalars, "__func__", one.scalars)].add(one.rule.scalars)
    assert len(taken) > len(kernels.RULES)
    for function, names in taken.items():
        assert returned(function) == names, function.__qualname__


def test_classes_keep_slots_under_names_of_the_rule() -> None:
    for optimizer, one in passes():
        assert len(one.slots) == len(one.rule.slots) or one.sums  # more are only summed
        for called, slot in zip(one.slots, one.rule.slots, strict=False):
            assert called in CALLED[slot], f"{optimizer}: {called} is the slot {slot} of the rule"


def test_other_names_are_found() -> None:
    class Swapped(fv.optimizers.Lion):
        def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
            keep_ahead, take_ahead = hyper.beta_1, 1 - hyper.beta_1
            keep, take, rate = hyper.beta_2, 1 - hyper.beta_2, hyper.learning_rate
            return take_ahead, keep_ahead, keep, take, rate

    class Nameless(fv.optimizers.Rprop):
        def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
            return hyper.eta_minus, 2 * hyper.eta_plus

    (lion,) = returned(fv.optimizers.Lion.scalars)
    (swapped,) = returned(Swapped.scalars)
    assert swapped != lion == kernels.RULES["sign_momentum"].scalars
    with pytest.raises(AssertionError, match="has no name"):
        returned(Nameless.scalars)
    with pytest.raises(AssertionError, match="out of order"):
        read_in(RULES_PXI.replace("up = c[1], low = c[2]", "up = c[2], low = c[1]"), "rprop")
    renamed = RULES_PXI.replace("down = c[0], up = c[1]", "up = c[0], down = c[1]")
    assert read_in(renamed, "rprop") != read_in(RULES_PXI, "rprop")


def test_the_twin_must_have_every_scalar() -> None:
    rule = reference.RULES["asgd"]
    for scalars in ((1.0, 1.0, 1.0), (1.0,) * 5):
        with pytest.raises(ValueError, match="zip"):
            rule.apply(np.ones(2), np.ones(2), [np.ones(2)], scalars)


@pytest.mark.parametrize("isa", [*kernels.supported(), "reference"])
def test_errors_list_the_names(isa: str) -> None:
    module, weights, slot = kernels.load(isa)[1], np.ones(2), np.ones(2)
    rule = module.RULES["asgd"]
    with pytest.raises(ValueError, match=r"^Mine: w must have the slots \(average\), got 0$"):
        module.Plan("Mine", rule, ["w"], [weights], [[]], [0])
    plan = module.Plan("Mine", rule, ["w"], [weights], [[slot]], [0])
    for given in (3, 5):
        plan.bind([np.ones(2)])
        with pytest.raises(ValueError, match=rf"^Mine: scalars must be \(rate, .* take\), got {given} numbers$"):
            plan.run([(0.5,) * given])
    assert weights.tolist() == slot.tolist() == [1.0, 1.0]
