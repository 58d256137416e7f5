"""All ways to step give the same step, also for a user's own rule. A step that fails changes nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.hyper import number
from fastvar.kernels import reference
from tests.support.cases import CASES, Case, contents
from tests.support.runs import COMBINATIONS, assert_all_same_bits, every_case, gradients, state, train, variables

# Ways to step.


@every_case
def test_every_way_to_step_is_the_same_step(case: Case) -> None:
    expected = train(case.make(), variables())
    for way in (by_pairs, by_grad, by_grad_and_zero, by_minimize, by_build, in_other_order):
        given = variables()
        optimizer = case.make()
        for t in range(5):
            way(optimizer, given, gradients(t))
        assert optimizer.iterations == 5
        assert_all_same_bits(given, expected)


def by_pairs(optimizer: fv.Optimizer, given: list[fv.Variable], grads: list[Any]) -> None:
    before = optimizer.iterations
    assert optimizer.apply_gradients(zip(grads, given, strict=True)) == before + 1


def by_grad(optimizer: fv.Optimizer, given: list[fv.Variable], grads: list[Any]) -> None:
    optimizer.build(given)
    for v, g in zip(given, grads, strict=True):
        v.grad = g
    before = [g.copy() for g in grads]
    optimizer.step()
    assert_all_same_bits(grads, before)
    optimizer.zero_grad()
    assert all(v.grad is None for v in given)


def by_grad_and_zero(optimizer: fv.Optimizer, given: list[fv.Variable], grads: list[Any]) -> None:
    optimizer.build(given)
    for v, g in zip(given, grads, strict=True):
        v.grad = g
    optimizer.step(zero_grad=True)
    assert all(v.grad is g and not g.any() for v, g in zip(given, grads, strict=True))


def by_minimize(optimizer: fv.Optimizer, given: list[fv.Variable], grads: list[Any]) -> None:
    assert optimizer.minimize(lambda: (3.0, grads), given) == 3.0


def by_build(optimizer: fv.Optimizer, given: list[fv.Variable], grads: list[Any]) -> None:
    optimizer.build(given)
    optimizer.apply(tuple(grads))


def in_other_order(optimizer: fv.Optimizer, given: list[fv.Variable], grads: list[Any]) -> None:
    optimizer.build(given)
    optimizer.apply(grads[::-1], given[::-1])


@every_case
def test_subset_of_the_variables_is_the_rest_without_gradients(case: Case) -> None:
    expected, given = variables(), variables()
    without, subset = case.make(), case.make()
    for optimizer, of in ((without, expected), (subset, given)):
        train(optimizer, of, 2)
    g = gradients(2)
    without.apply([None, g[1], None, g[3], None])
    subset.apply([g[3], g[1]], [given[3], given[1]])
    assert_all_same_bits(given, expected)
    assert_all_same_bits(state(subset), state(without))


def test_zero_grad_can_fill_with_zeros() -> None:
    given = variables()
    optimizer = fv.optimizers.SGD()
    optimizer.build(given)
    for v, g in zip(given, gradients(), strict=True):
        v.grad = g
    kept = [v.grad for v in given]
    optimizer.zero_grad(set_to_none=False)
    assert all(v.grad is g and not g.any() for v, g in zip(given, kept, strict=True))


def test_step_without_gradients_or_variables_says_so() -> None:
    optimizer = fv.optimizers.SGD()
    with pytest.raises(ValueError, match=r"build\(variables\)"):
        optimizer.step()
    optimizer.build(variables())
    with pytest.raises(ValueError, match="no variable has a gradient"):
        optimizer.step()
    assert optimizer.iterations == 0


def test_slot_of_unknown_name_or_variable() -> None:
    given = variables()
    optimizer = fv.optimizers.SGD(momentum=0.5)
    optimizer.build(given)
    assert optimizer.slot(given[0], "momentum").shape == given[0].shape
    for variable, name in ((given[0], "velocity"), (fv.Variable([1.0]), "momentum")):
        with pytest.raises(KeyError, match=r"slots are.*momentum"):
            optimizer.slot(variable, name)


# A user's own rules.


def handwritten(case: Case) -> type[fv.Optimizer]:
    """A subclass in plain NumPy with the formula of a compiled rule."""
    compiled = type(case.make())

    class Handwritten(compiled):  # type: ignore[misc, valid-type]
        rule = fv.Optimizer.rule

        def scalars(self, hyper: Any, t: int) -> Any:
            return fv.Optimizer.scalars(self, hyper, t)

        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            assert variable.shape == gradient.shape
            rule = reference.RULES[str(case.rule)]
            places = [getattr(slots, name) for name in self.slots[: len(rule.slots)]]  # later ones are only summed
            rule.apply(variable, gradient, places, compiled.scalars(self, hyper, hyper.t))

    return Handwritten


@pytest.mark.parametrize("case", [case for case in CASES if case.rule], ids=lambda case: case.id)
@pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_handwritten_rule_equals_the_compiled_one(case: Case, options: dict[str, Any], dtype: str) -> None:
    results = []
    for make in (type(case.make()), handwritten(case)):
        given = variables(dtype, regularizer=fv.regularizers.L1L2(0.125, 0.25), constraint=fv.constraints.NonNeg())
        optimizer = make(**{**case.options, **options})
        optimizer.exclude_from_weight_decay(var_names=["v1"])
        optimizer.build([*given[:2], {"variables": given[2:], "learning_rate": lambda step: 0.5 / (1 + step)}])
        for t in range(7):
            for v, g in zip(given, gradients(t, dtype), strict=True):
                v.grad = None if t == 4 and v.ndim == 1 else g
            optimizer.step(zero_grad=True)
        results.append([*given, *optimizer.variables])
    assert_all_same_bits(*results)


class Fails(fv.Optimizer):
    learning_rate: float = number(default=0.1, low=0)
    slots = ("seen",)
    failing = True

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
        slots.seen += gradient
        variable -= hyper.learning_rate * gradient
        if self.failing and variable.ndim == 0:
            raise ArithmeticError("too bad")


@pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))
@pytest.mark.parametrize("calls_before", [0, 2])
def test_failing_update_rolls_everything_back(options: dict[str, Any], calls_before: int) -> None:
    given, optimizer = variables(), Fails(**options)
    optimizer.build(given)
    optimizer.failing = False
    train(optimizer, given, calls_before)
    optimizer.failing = True
    for v, g in zip(given, gradients(9), strict=True):
        v.grad = g
    for _ in range(3):  # with accumulation, the third call updates
        before, kept = contents(optimizer, given), [v.grad.copy() for v in given]
        try:
            optimizer.step(zero_grad=True)
        except ArithmeticError:
            break
        for v, g in zip(given, gradients(9), strict=True):
            v.grad = g
    else:
        pytest.fail("never raised")
    assert contents(optimizer, given) == before
    assert_all_same_bits([v.grad for v in given], kept)


@every_case
@pytest.mark.parametrize("outcome", [ArithmeticError, "wrong shape", "complex"])
def test_failing_constraint_rolls_everything_back(case: Case, outcome: Any) -> None:
    def constraint(w: Any) -> Any:
        if outcome is ArithmeticError:
            raise ArithmeticError("too bad")
        return w * 1j if outcome == "complex" else np.zeros(3)

    given, optimizer = variables(), case.make(use_ema=True)
    train(optimizer, given, 2)
    given[3].constraint = constraint
    before = contents(optimizer, given)
    with pytest.raises((ArithmeticError, ValueError, TypeError)):
        train(optimizer, given, 1)
    assert contents(optimizer, given) == before


def test_rule_without_update_says_what_to_write() -> None:
    class Empty(fv.Optimizer):
        pass

    with pytest.raises(NotImplementedError, match="Empty: write update"):
        Empty().build(variables())


class Rebound(fv.Optimizer):
    slots = ("velocity",)

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
        slots.velocity += gradient
        variable = variable - hyper.learning_rate * slots.velocity


class Returned(fv.Optimizer):
    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> Any:  # type: ignore[override]
        return variable - hyper.learning_rate * gradient


class Misspelled(fv.Optimizer):
    slots = ("velocity",)

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
        slots.velocty = slots.velocity + gradient
        variable -= hyper.learning_rate * slots.velocity


class Late(fv.Optimizer):
    """A right rule, whose first update leaves the weights."""

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> Any:  # type: ignore[override]
        step = hyper.learning_rate * gradient
        if hyper.t > 1:
            variable -= step
        return variable


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (Rebound, UserWarning, "Rebound: `variable = ...` has not changed the weights: write `variable -= step`"),
        (Returned, TypeError, "Returned: update must return None, got ndarray: write `variable -= step`"),
        (Misspelled, AttributeError, "Misspelled: slots has no 'velocty', did you mean 'velocity'?"),
    ],
)
def test_an_update_that_would_do_nothing_changes_nothing(
    rule: type[fv.Optimizer], error: type[Exception], message: str
) -> None:
    given = variables()
    optimizer = rule()
    optimizer.build(given)
    before = contents(optimizer, given)
    for _ in range(2):
        with pytest.raises(error, match=f"^{re.escape(message)}"):  # warnings are errors in tests
            optimizer.apply([np.ones(v.shape) for v in given], given)
        assert contents(optimizer, given) == before


def test_an_update_that_does_nothing_is_told_once() -> None:
    given = variables()
    optimizer = Rebound()
    optimizer.apply([np.zeros(v.shape) for v in given], given)  # nothing to change yet
    ones = [np.ones(v.shape) for v in given]
    with pytest.warns(UserWarning, match="has not changed the weights"):
        optimizer.apply(ones, given)
    optimizer.apply(ones, given)


def test_an_update_may_leave_the_weights() -> None:
    given = variables()
    optimizer = Late()
    before = [v.numpy() for v in given]
    for t in range(2):
        optimizer.apply([np.ones(v.shape) for v in given], given)
        assert any((v.value != b).any() for v, b in zip(given, before, strict=True)) == (t == 1)


def test_update_with_other_arguments_says_what_to_write() -> None:
    class Short(fv.Optimizer):
        def update(self, variable: Any, gradient: Any) -> None:  # type: ignore[override]
            variable -= gradient

    class Any4(fv.Optimizer):
        def update(self, *given: Any) -> None:
            given[0][...] -= given[1]

    given = variables()
    message = r"^Short: update must be update\(self, variable, gradient, slots, hyper\): too many positional"
    with pytest.raises(TypeError, match=message):
        Short().apply([np.ones(v.shape) for v in given], given)
    before = [v.numpy() for v in given]
    Any4().apply([np.ones(v.shape) for v in given], given)
    assert all((v.value == b - 1).all() for v, b in zip(given, before, strict=True))


def test_plan_stays_small_enough_to_be_read_quickly() -> None:
    optimizer = fv.optimizers.Adam()
    optimizer.build(variables())
    assert len(vars(optimizer._plan)) <= 29  # CPython 3.11 stores at most this many attributes inline


GRADIENTS: dict[str, Any] = {
    "array": lambda: np.ones((2, 3), np.float32),
    "strided": lambda: np.ones((2, 6))[:, ::2],
    "integers": lambda: np.ones((2, 3), int),
    "variable": lambda: fv.Variable(np.ones((2, 3))),
    "tensor": lambda: pytest.importorskip("torch").ones(2, 3),
    "list": lambda: [[1.0] * 3] * 2,
    "tuple": lambda: ((1.0,) * 3,) * 2,
    "read-only": lambda: np.broadcast_to(np.float32(1), (2, 3)),
    "JAX": lambda: pytest.importorskip("jax").numpy.ones((2, 3)),
    "tensor in a graph": lambda: pytest.importorskip("torch").ones(2, 3, requires_grad=True),
    "DataFrame": lambda: pytest.importorskip("pandas").DataFrame([[1.0] * 3] * 2),
}
IN_PLACE = ["array", "strided", "integers"]
if np.from_dlpack(np.zeros(1)).flags.writeable:  # not in NumPy 2.0, in which memory of others is read-only
    IN_PLACE += ["variable", "tensor"]


@pytest.mark.parametrize("kind", GRADIENTS)
def test_every_gradient_becomes_zeros_in_place_where_it_can_be_written(kind: str) -> None:
    given = [fv.Variable(np.zeros((2, 3), np.float32), name=name) for name in "abc"]
    optimizer = fv.optimizers.SGD()
    optimizer.build(given)
    given[0].grad, given[1].grad = np.ones((2, 3), np.float32), GRADIENTS[kind]()
    kept = [v.grad for v in given]
    optimizer.zero_grad(set_to_none=False)
    assert (given[1].grad is kept[1]) == (kind in IN_PLACE)
    assert given[0].grad is kept[0]
    assert given[2].grad is None
    assert given[1].grad.shape == (2, 3)
    assert not any(np.any(np.asarray(v.grad)) for v in given[:2])
    if kind not in IN_PLACE:  # the arguments are unchanged
        assert given[1].grad.dtype == np.float32
        assert np.all(np.asarray(kept[1].detach() if "tensor" in kind else kept[1]) == 1)
    optimizer.step()


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_step_zeroes_gradients_of_frozen_variables_too(kind: str) -> None:
    given = [fv.Variable(np.zeros((2, 3), np.float32), name=name) for name in "abc"]
    given[1].trainable = False
    for optimizer in (fv.optimizers.SGD(), fv.optimizers.LossScaleOptimizer(fv.optimizers.SGD())):
        optimizer.build(given)
        for v in given:
            v.grad = np.ones((2, 3), np.float32)
        given[1].grad = GRADIENTS[kind]()
        optimizer.step(zero_grad=True)
        assert not any(np.any(np.asarray(v.grad)) for v in given)


def test_a_refused_step_zeroes_nothing() -> None:
    given = [fv.Variable(np.zeros(2), name=name) for name in "ab"]
    given[0].trainable = False
    optimizer = fv.optimizers.SGD()
    optimizer.build(given)
    given[0].grad, given[1].grad = np.ones(2), [1.0, 1.0]
    with pytest.raises(ValueError, match=r"gradient of 'b'.*zeroed"):
        optimizer.step(zero_grad=True)
    assert given[0].grad.tolist() == given[1].grad == [1.0, 1.0]
