"""After Ctrl-C at any instant, a step has happened wholly or not at all."""

import copy

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from fastvar import constraints, optimizers
from fastvar.optimizers import matrix
from tests.support.cases import contents, digest
from tests.support.interrupts import check_at_instants


class Numpy(fv.Optimizer):
    """Momentum in NumPy: Python code runs in the middle of the step."""

    slots = ("velocity",)

    def update(self, variable, gradient, slots, hyper):
        slots.velocity *= 0.5
        slots.velocity += gradient
        variable -= slots.velocity


def falling(step):
    return 1 / (step + 1)


def halves(array):
    return array / 2


class Flaky(optimizers.Lamb):
    """Lamb that fails after measuring, a given number of times."""

    fails = 0

    def adjust(self, step):
        super().adjust(step)
        if self.fails:
            self.fails -= 1
            raise MemoryError("measured")


MAKERS = {
    "plain": lambda **o: optimizers.Adam(0.125, **o),
    "clipped": lambda **o: optimizers.Adam(0.125, global_clipnorm=0.5, **o),
    "averaged": lambda **o: optimizers.SGD(0.125, use_ema=True, ema_overwrite_frequency=3, **o),
    "scheduled": lambda **o: optimizers.SGD(falling, momentum=0.5, weight_decay=0.1, **o),
    "lamb": lambda **o: optimizers.Lamb(0.125, **o),
    "lars": lambda **o: optimizers.Lars(0.125, **o),
    "prodigy": lambda **o: optimizers.Prodigy(initial_distance=0.125, **o),
    "adafactor": lambda **o: optimizers.Adafactor(0.125, **o),
    "muon": lambda **o: optimizers.Muon(0.125, **o),
    "unit clipping": lambda **o: optimizers.SGD(0.125, momentum=0.5, adaptive_clipnorm=0.01, use_ema=True, **o),
    "in NumPy": Numpy,
    "scaled": lambda **o: optimizers.LossScaleOptimizer(optimizers.Adam(0.125, **o), dynamic_growth_steps=1),
}
OPTIONS = {
    "": {},
    "accumulating": {"gradient_accumulation_steps": 2},
    "skipping": {"nonfinite": "skip"},
}


def gradients_of(variables, number):
    return [np.cos(v.value + number) for v in variables]


def stepping(make, options, steps, *, constraint=None, frozen=False, bad=False):
    """Return a scene: a step with `zero_grad` after a number of others."""

    def scene():
        shapes = {"kernel": (3, 4), "bias": (4,), "fixed": (2,)}
        variables = [fv.Variable(np.linspace(-1, 1, np.prod(s)).reshape(s), name=n) for n, s in shapes.items()]
        variables[0].constraint = variables[1].constraint = constraint
        variables[2].trainable = not frozen
        optimizer = make(**options)
        optimizer.build(variables)
        for number in range(steps + 1):
            for v, gradient in zip(variables, gradients_of(variables, number), strict=True):
                v.grad = gradient
            if number < steps:
                optimizer.step(zero_grad=True)
        if bad:
            variables[1].grad[2] = np.inf

        def state():
            scale = getattr(optimizer, "dynamic_scale", None)  # first: it keeps its numbers by being asked
            gradients = [digest(v.grad) for v in variables]
            return contents(optimizer, variables), gradients, optimizer.skipped, scale

        return lambda: optimizer.step(zero_grad=True), state

    return scene


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_step_is_whole_or_nothing(make, options, steps) -> None:
    check_at_instants(stepping(make, options, steps))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "constraint",
    [constraints.NonNeg(), constraints.Box(np.array([-0.5])), halves],
    ids=["in the pass", "after", "in NumPy"],
)
def test_a_step_with_constraints_and_a_frozen_variable_is_whole_or_nothing(constraint, options) -> None:
    for steps in (0, 1):
        check_at_instants(stepping(MAKERS["plain"], options, steps, constraint=constraint, frozen=True))


@pytest.mark.parametrize(
    "make", [MAKERS["plain"], MAKERS["lamb"], MAKERS["scaled"]], ids=["adam", "lamb", "scaled"]
)
def test_a_skipped_step_is_whole_or_nothing(make) -> None:
    check_at_instants(stepping(make, OPTIONS["skipping"], 1, bad=True))
    check_at_instants(stepping(make, OPTIONS["skipping"] | OPTIONS["accumulating"], 1, bad=True))


def failing_once_measured(monkeypatch, optimizer) -> None:
    """Make the second product of Muon run out of memory, or make Flaky fail."""
    if isinstance(optimizer, Flaky):
        optimizer.fails = 1
        return
    made, calls = matrix.orthogonalize, []

    def orthogonal(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError("measured")
        return made(*arguments)

    monkeypatch.setattr(matrix, "orthogonalize", orthogonal)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", [optimizers.Muon, Flaky], ids=["muon", "user's"])
def test_what_fails_before_the_update_changes_nothing_and_can_be_done_again(make, options, monkeypatch) -> None:
    def scene():
        variables = [fv.Variable(np.linspace(-1, 1, 12).reshape(3, 4), name=name) for name in "abc"]
        optimizer = make(0.125, **options)
        optimizer.build(variables)
        for number in range(2):
            for v, gradient in zip(variables, gradients_of(variables, number), strict=True):
                v.grad = gradient
            if number == 0:
                optimizer.step(zero_grad=True)
        return optimizer, variables, lambda: contents(optimizer, variables) + [digest(v.grad) for v in variables]

    (optimizer, _, state), (twin, _, expected) = scene(), scene()
    failing_once_measured(monkeypatch, optimizer)
    before = state()
    with pytest.raises(MemoryError, match="measured"):
        optimizer.step(zero_grad=True)
    assert state() == before
    optimizer.step(zero_grad=True)
    twin.step(zero_grad=True)
    assert state() == expected()


def built(make, *, steps=1, **options):
    """Return an optimizer with two variables after some steps, and a function that returns their state."""
    variables = [fv.Variable(np.linspace(-1, 1, 12).reshape(3, 4), name=name) for name in "ab"]
    optimizer = make(**options)
    if steps:
        optimizer.build([{"variables": variables[:1]}, {"variables": variables[1:], "learning_rate": 0.5}])
    for number in range(steps):
        optimizer.apply(gradients_of(variables, number))
    for v in variables:
        v.grad = np.ones((3, 4))

    def state():
        return (
            [digest(v.value) for v in variables],
            [None if v.grad is None else digest(np.asarray(v.grad)) for v in variables],
            contents(optimizer, variables) if optimizer._state.variables else "not built",
            [*optimizer._state.numbers],
            optimizer.get_config(),
            [group._own for group in optimizer.groups],
            [v._label for v in optimizer.variables],
        )

    return optimizer, variables, state


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_building_and_a_first_step_are_whole_or_nothing(make) -> None:
    def building():
        optimizer, variables, state = built(make, steps=0)
        return lambda: optimizer.build(variables), state

    def stepping():
        optimizer, variables, state = built(make, steps=0)
        return lambda: optimizer.apply(gradients_of(variables, 0), variables), state

    check_at_instants(building)
    check_at_instants(stepping)


@pytest.mark.parametrize("steps", [-1, 0, 2])
@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (optimizers.Adam, "learning_rate", 0.25),
        (optimizers.Adam, "amsgrad", True),
        (optimizers.SGD, "use_ema", True),
        (optimizers.SGD, "clipnorm", 0.5),
        (fv.torch.Rprop, "lr", 0.25),
        (optimizers.Prodigy, "initial_distance", 0.25),
    ],
)
def test_a_hyperparameter_is_set_with_all_that_follows_or_not(make, name, value, steps) -> None:
    """Before it is built, before its first step, and after steps; and the next step knows of it."""

    def scene():
        optimizer, variables, state = built(make, steps=0)
        if steps >= 0:
            optimizer.build(variables)
        for number in range(steps):
            optimizer.apply(gradients_of(variables, number))

        def seen():
            twin, twins = copy.deepcopy((optimizer, variables))
            twin.apply(gradients_of(twins, 7), twins)
            here, copied = copy.deepcopy(optimizer._parameters), state()
            return copied, here, contents(twin, twins)

        return lambda: setattr(optimizer, name, value), seen

    check_at_instants(scene)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_zeroed_all_or_none(set_to_none) -> None:
    def scene():
        optimizer, variables, state = built(MAKERS["plain"])
        variables[1].grad = [[1.0] * 4] * 3
        return lambda: optimizer.zero_grad(set_to_none), state

    check_at_instants(scene)


def test_averages_are_taken_by_all_variables_or_none() -> None:
    def scene():
        optimizer, _, state = built(MAKERS["averaged"], steps=3)
        return optimizer.finalize_variable_values, state

    check_at_instants(scene)


@pytest.mark.parametrize("build", [True, False], ids=["built", "not built"])
def test_a_minimization_is_whole_or_nothing(build) -> None:
    def scene():
        variables = [fv.Variable(np.linspace(-1, 1, 4), name=name) for name in "ab"]
        optimizer = optimizers.LBFGS(max_iter=2)
        if build:
            optimizer.build(variables)

        def loss():
            return sum(float((v.value**2).sum()) for v in variables), [2 * v.value for v in variables]

        def state():
            return [digest(v.value) for v in variables], optimizer.iterations, len(optimizer._state.variables)

        return lambda: optimizer.minimize(loss, variables), state

    check_at_instants(scene)
