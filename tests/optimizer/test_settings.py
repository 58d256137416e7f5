"""Setting a hyperparameter has the effect of a new optimizer that has it and takes over the state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from fastvar.hyper import Parameter, number
from tests.support.cases import assert_same_bits, contents

NAMES = [name for name in fv.optimizers.__all__ if name != "LBFGS"]  # it makes no steps
CLASSES = [getattr(fv.optimizers, name) for name in NAMES]
TORCH = [getattr(fv.torch, name) for name in fv.torch.__all__]
NOT_HERE = (fv.torch.TorchOptimizer, fv.torch.Muon)  # which takes nothing but matrices
CLASSES += [c for c in TORCH if issubclass(c, fv.torch.TorchOptimizer) and c not in NOT_HERE]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.namespace}{cls.__name__}")
scheduled = pytest.mark.parametrize("scheduled", [False, True], ids=["numbers", "schedules"])

SHAPES = [(3, 2), (4,), (), (2, 3, 2)]
OTHER: dict[str, Any] = {
    "slot_dtype": "bfloat16",
    "slot_dtype_min_size": 4,  # exceptions, where the declaration gives no other value
    "weight_decay": 0.5,
    "adam_weight_decay": 0.5,
    "learning_rate_power": -0.75,
    "betas": (0.5, 0.75),
    "etas": (0.25, 1.5),
    "step_sizes": (0.01, 0.02),
    "exclude_layers": ["v0"],
    "nonfinite": "skip",
    "name": "mine",
    "clip_power": None,
    "rms_rate": None,
    "ema_overwrite_frequency": 2,
    "gradient_accumulation_steps": 2,
    "beta_2_decay": -0.5,
    "beta2_decay": -0.5,
    "eps": (0.5, 0.1),
}


def another(parameter: Parameter, present: Any) -> Any:
    """Return another valid value of a parameter."""
    tries = [OTHER.get(parameter.name, present), 0.5, 0.75, 2, not present]
    for value in tries:
        try:
            if parameter.check(value) != present:
                return parameter.check(value)
        except (TypeError, ValueError):
            continue
    pytest.fail(f"no other value of {parameter.name}")


def made(cls: type[fv.Optimizer], scheduled: bool) -> fv.Optimizer:
    if cls is fv.optimizers.LossScaleOptimizer:
        return cls(made(fv.optimizers.AdamW, scheduled))
    rate = "lr" if "lr" in cls.parameters else "learning_rate"
    return cls(**{rate: (lambda step: 0.25 / (1 + step)) if scheduled else 0.25})


def built(cls: type[fv.Optimizer], scheduled: bool) -> tuple[fv.Optimizer, list[fv.Variable]]:
    rng = np.random.default_rng(3)
    variables = [fv.Variable(rng.standard_normal(s), name=f"v{i}") for i, s in enumerate(SHAPES)]
    optimizer = made(cls, scheduled)
    own = {"weight_decay": 0.125} if "weight_decay" in inner(optimizer).parameters else {}
    optimizer.build([*variables[:2], {"variables": variables[2:], **own}])
    return optimizer, variables


def inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def step(optimizer: fv.Optimizer, variables: list[fv.Variable], start: int, count: int = 2) -> None:
    for t in range(start, start + count):
        rng = np.random.default_rng(100 + t)
        optimizer.apply([rng.standard_normal(v.shape) for v in variables])


Setting = tuple[str, str, str]  # of which of the optimizers, of the optimizer or its group, the name


def settings(optimizer: fv.Optimizer) -> list[Setting]:
    found = []
    for which, one in {"itself": optimizer, "inner": inner(optimizer)}.items():
        if which == "itself" or one is not optimizer:
            wrapped = ("inner_optimizer",) if one is optimizer else ()
            wrapped += ("nonfinite", "loss_scale_factor") if one is not optimizer else ()  # set by the outer
            found += [(which, "optimizer", name) for name in one.parameters if name not in wrapped]
            found += [(which, "group", n) for n, p in one.parameters.items() if p.per_group and n not in wrapped]
    return [f for f in found if f[:2] != ("itself", "group") or optimizer is inner(optimizer)]


def place(optimizer: fv.Optimizer, setting: Setting) -> tuple[Any, Parameter, Any]:
    """Return the owner of a setting, its declaration, and its present value."""
    which, of, name = setting
    one: Any = inner(optimizer) if which == "inner" else optimizer
    return (one if of == "optimizer" else one.groups[1]), one.parameters[name], one._parameters[name]


def anew(optimizer: fv.Optimizer, variables: list[fv.Variable]) -> tuple[fv.Optimizer, list[fv.Variable]]:
    """Return a new optimizer with the same settings and the same state."""
    twins = copy.deepcopy(variables)
    new: Any = type(optimizer).from_config(optimizer.get_config())
    new.build([{"variables": twins[:2]}, {"variables": twins[2:], **optimizer.groups[1]._own}])
    new._state.count[0] = optimizer._state.count[0]
    for name, kept in optimizer._state.slots.items():
        for there, here in zip(new._state.slots.get(name, []), kept, strict=False):
            if there is not None and here is not None:
                there.assign(here)
    for name, number_ in optimizer._state.numbers.items():
        if name in new._state.numbers:
            new._state.numbers[name][...] = number_
    return new, twins


def assert_same(pair: Any, other: Any, message: str) -> None:
    assert contents(*pair) == contents(*other), message


@every_class
@scheduled
def test_setting_anything_after_steps_is_a_new_optimizer_with_the_state(cls: Any, scheduled: bool) -> None:
    for setting in settings(made(cls, scheduled)):
        optimizer, variables = built(cls, scheduled)
        step(optimizer, variables, 0)
        holder, parameter, present = place(optimizer, setting)
        if setting[2] == "gradient_accumulation_steps":
            with pytest.raises(ValueError, match="fixed once training has begun"):
                setattr(holder, setting[2], 2)
            continue
        before = contents(optimizer, variables)
        for k, value in enumerate([another(parameter, present), present]):
            if callable(value) and setting[1] == "group":
                value = 0.125  # noqa: PLW2901
            held, state = copy.deepcopy((variables, optimizer))[::-1], contents(optimizer, variables)
            try:
                setattr(holder, setting[2], value)
            except ValueError:  # conflicts with others, such as `nesterov` without a momentum
                assert contents(optimizer, variables) == before, setting
                break
            other, _, _ = place(held[0], setting)
            target = other._own if setting[1] == "group" else other._parameters
            target[setting[2]] = parameter.check(value) if not callable(value) else value  # no effect
            fresh = anew(*held)
            step(optimizer, variables, 2 + 2 * k)
            step(*fresh, 2 + 2 * k)
            assert_same((optimizer, variables), fresh, f"{setting} {value}")
            assert contents(optimizer, variables) != state


@every_class
@scheduled
def test_setting_anything_before_the_first_step_is_a_new_optimizer(cls: Any, scheduled: bool) -> None:
    for setting in settings(made(cls, scheduled)):
        optimizer, variables = built(cls, scheduled)
        holder, parameter, present = place(optimizer, setting)
        try:
            setattr(holder, setting[2], another(parameter, present))
        except ValueError:
            continue
        twins = copy.deepcopy(variables)
        fresh: Any = type(optimizer).from_config(optimizer.get_config())
        fresh.build([{"variables": twins[:2]}, {"variables": twins[2:], **optimizer.groups[1]._own}])
        assert_same((optimizer, variables), (fresh, twins), str(setting))
        step(optimizer, variables, 0, 3)
        step(fresh, twins, 0, 3)
        assert_same((optimizer, variables), (fresh, twins), str(setting))


@every_class
def test_decay_stops_when_it_is_set_to_nothing(cls: Any) -> None:
    """With gradients of 0, only decay moves the weights of a rule without state."""
    optimizer, variables = built(cls, True)
    if "weight_decay" not in inner(optimizer).parameters or cls is fv.optimizers.Ftrl:
        pytest.skip("has none, or forgets the weights at the first update")
    names = [name for name in inner(optimizer).parameters if name.endswith("weight_decay")]
    zeros = [np.zeros(v.shape) for v in variables]
    for holder in (inner(optimizer), optimizer.groups[1]):
        for name in names:
            setattr(holder, name, 0.5)
    optimizer.apply(zeros)
    for holder in (inner(optimizer), optimizer.groups[1]):
        for name in names:
            setattr(holder, name, 0.0)
    free = [v.numpy() for v in variables]
    twin, twins = copy.deepcopy((optimizer, variables))
    for pair in ((optimizer, variables), (twin, twins)):
        pair[0].apply(zeros)
    assert_same((optimizer, variables), (twin, twins), "")
    if cls in (fv.optimizers.SGD, fv.optimizers.AdamW, fv.optimizers.Muon, fv.optimizers.Lamb):
        for v, before in zip(variables, free, strict=True):
            assert_same_bits(v.numpy(), before)


@every_class
def test_every_schedule_acts_from_the_first_step_on(cls: Any) -> None:
    """A constant schedule equals its number, also with accumulation and a loss scale."""
    optimizer, variables = built(cls, False)
    accumulating = {"gradient_accumulation_steps": 2, "loss_scale_factor": 8.0, "nonfinite": "raise"}
    if cls is fv.optimizers.LossScaleOptimizer:
        pytest.skip("sets the loss scale itself")
    for name, parameter in cls.parameters.items():
        if not parameter.scheduled or optimizer._parameters[name] is None:
            continue
        runs = []
        for constant in (False, True):
            one = cls(**{**optimizer._parameters, **accumulating})
            value = one._parameters[name]
            if constant:
                setattr(one, name, lambda _, value=value: value)
            own = copy.deepcopy(variables)
            one.build(own)
            step(one, own, 0, 4)
            runs.append([v.numpy() for v in own])
        if name != "momentum":  # it may change, so there is a slot
            for a, b in zip(*runs, strict=True):
                assert_same_bits(a, b, name)


# Slots depend on hyperparameters and names.


@pytest.mark.parametrize(
    ("make", "name", "on", "off", "slot"),
    [
        (fv.optimizers.SGD, "momentum", 0.5, 0.0, "momentum"),
        (fv.torch.SGD, "momentum", 0.5, 0.0, "momentum_buffer"),
        (fv.optimizers.RMSprop, "centered", True, False, "average_gradient"),
        (fv.optimizers.Adam, "amsgrad", True, False, "velocity_hat"),
        (fv.optimizers.Adam, "use_ema", True, False, "average"),
    ],
)
def test_what_is_switched_off_and_on_begins_anew(
    make: Callable[..., fv.Optimizer], name: str, on: Any, off: Any, slot: str, tmp_path: Path
) -> None:
    w = fv.Variable([1.0, 2.0], name="w")
    optimizer = make(**{name: on})
    optimizer.build([w])
    for _ in range(3):
        optimizer.apply([[1.0, -1.0]])
    assert (optimizer.slot(w, slot).value != 0).all()
    setattr(optimizer, name, off)
    with pytest.raises(KeyError, match=slot):
        optimizer.slot(w, slot)
    setattr(optimizer, name, on)
    begins = w.numpy() if slot == "average" else np.zeros(2)
    np.testing.assert_array_equal(optimizer.slot(w, slot), begins)
    # A checkpoint always holds the slots that its hyperparameters need.
    fv.Checkpoint(w, optimizer=optimizer).save(tmp_path / "x.h5")
    v, twin = fv.Variable([0.0, 0.0], name="w"), make(**{name: on})
    twin.build([v])
    fv.Checkpoint(v, optimizer=twin).restore(tmp_path / "x.h5")
    for one in (optimizer, twin):
        one.apply([[0.5, 0.25]])
    assert contents(twin, [v]) == contents(optimizer, [w])


def test_averages_switched_on_again_follow_the_weights_of_then() -> None:
    w, optimizer = fv.Variable([8.0]), fv.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    optimizer.apply([[1.0]], [w])
    optimizer.use_ema = False
    for _ in range(4):
        optimizer.apply([[1.0]])
    optimizer.use_ema = True
    w.assign([100.0])
    optimizer.apply([[2.0]])
    assert (w[0], optimizer.slot(w, "average")[0]) == (98.0, 99.0)


def test_kinds_and_exclusions_go_by_the_names_at_build() -> None:
    net, outer = fv.Module(), fv.Module()
    net.kernel, net.embedding = fv.Variable(np.eye(3)), fv.Variable(np.eye(3))
    optimizer = fv.optimizers.Muon(0.125, weight_decay=0.5, adam_weight_decay=0.5, exclude_layers=["^kernel"])
    optimizer.exclude_from_weight_decay(var_names=["^embed"])
    optimizer.build(net)
    twin, its = copy.deepcopy((optimizer, net))
    for t in range(4):
        if t == 2:
            outer.inner_embedding = net
            assert [v.name for v in outer.variables] == ["inner_embedding/kernel", "inner_embedding/embedding"]
            net.kernel.trainable = True  # plans anew
        for one in (optimizer, twin):
            one.apply([np.full((3, 3), 0.5), np.eye(3)])
    for a, b in zip(net.variables, its.variables, strict=True):
        assert_same_bits(a.numpy(), b.numpy())


def test_muon_follows_exclusions_set_later() -> None:
    w = fv.Variable(np.eye(3), name="w")
    optimizer = fv.optimizers.Muon(0.125, weight_decay=0.0, adam_weight_decay=0.0)
    optimizer.apply([np.eye(3)], [w])
    optimizer.exclude_layers = ["w"]
    before = w.numpy()
    optimizer.apply([np.eye(3)])
    m, v, t = 0.9 * 1.0 + 0.1, 0.001, 2  # Adam, which continues Muon's momentum
    expected = 1 - 0.125 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
    np.testing.assert_allclose(np.diag(w), np.diag(before) - 1 + expected)


def test_a_name_set_later_begins_the_messages() -> None:
    w, optimizer = fv.Variable([1.0]), fv.optimizers.SGD()
    optimizer.apply([[1.0]], [w])
    optimizer.name = "mine"
    with pytest.raises(ValueError, match=r"^mine: gradient of"):
        optimizer.apply([[1.0, 2.0]])


def test_a_setting_that_fails_changes_nothing() -> None:
    class Picky(fv.Optimizer):
        learning_rate: float = number(default=0.1, low=0)
        start: float = number(default=0.0)
        slots = ("total",)

        def initial(self, slot: str, variable: fv.Variable, hyper: Any) -> float:
            if hyper.start > 1:
                raise ArithmeticError("too much")
            return hyper.start

    Picky.rule = lambda self: fv.kernels.RULES["momentum"]  # type: ignore[method-assign]
    Picky.scalars = lambda self, hyper, t: (1.0, 1.0, -hyper.learning_rate, 0.0)  # type: ignore[method-assign]
    w, optimizer = fv.Variable([1.0]), Picky()
    optimizer.build([{"variables": [w]}])
    for holder in (optimizer, optimizer.groups[0]):
        before = contents(optimizer, [w])
        with pytest.raises(ArithmeticError):
            holder.start = 2.0
        assert (holder.start, contents(optimizer, [w])) == (0.0, before)
    optimizer.groups[0].start = 0.5
    assert optimizer.slot(w, "total")[0] == 0.5


def test_a_change_while_hyperparameters_are_read_is_not_lost() -> None:
    """Another thread may set one at any time. Here this happens as late as can be: while they are read."""

    class Changing(fv.optimizers.SGD):
        def decay_rate(self, hyper: Any) -> float:
            if self.learning_rate == 1.0:
                self.learning_rate = 0.5
            return 0.0

    w, optimizer = fv.Variable([0.0]), Changing(0.25)
    optimizer.apply([[1.0]], [w])
    optimizer.learning_rate = 1.0
    w.assign([0.0])
    for _ in range(3):
        optimizer.apply([[1.0]], [w])
    assert w.value.tolist() == [-2.0]


def test_the_inner_optimizer_stays() -> None:
    optimizer = fv.optimizers.LossScaleOptimizer(fv.optimizers.SGD())
    with pytest.raises(ValueError, match="inner_optimizer is fixed"):
        optimizer.inner_optimizer = fv.optimizers.Adam()


# Nothing to update.


@pytest.mark.parametrize("variables", [[], [{"variables": []}], fv.Module(), iter(())])
def test_building_on_nothing_is_refused(variables: Any) -> None:
    optimizer = fv.optimizers.Adam()
    with pytest.raises(ValueError, match="Adam: build must be given variables, got none"):
        optimizer.build(variables)
    with pytest.raises(ValueError, match="Adam: group 1 must be given variables, got none"):
        optimizer.build([fv.Variable([1.0]), {"variables": []}])
    optimizer.apply([[1.0]], [fv.Variable([1.0])])
