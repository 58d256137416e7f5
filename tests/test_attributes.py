"""A misspelt attribute is an error, and nothing changes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from fastvar.hyper import Declared, number


class Heavy(fv.Optimizer):
    """A user's optimizer."""

    friction: float = number(default=0.5, low=0, high=1)
    slots = ("velocity",)
    calls = 0
    seen: list[int]

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
        self.calls += 1
        self.seen = [*getattr(self, "seen", []), hyper.t]
        self._private = hyper.t
        variable -= hyper.learning_rate * gradient


class Stairs(fv.schedules.LearningRateSchedule):
    """A user's schedule."""

    height: float = number(low=0)

    def __call__(self, step: int) -> float:
        return self.height


class Clamp(fv.constraints.Constraint):
    """A user's constraint."""

    most: float = number(default=1.0)

    def __call__(self, w: Any) -> Any:
        return np.minimum(w, self.most)


def of_ours() -> list[type[Declared]]:
    return [kind for kind in Declared.registry.values() if kind.__module__.startswith("fastvar.")]


def make(kind: type[Declared]) -> Declared | None:
    """Make an object of a class whose arguments are only numbers, optimizers or schedules."""
    rate = fv.schedules.ExponentialDecay(0.1, 1, 0.5)
    for args in ((), (0.1,), (0.1, 2), (0.1, 2, 0.5), (fv.optimizers.SGD(),), (rate, 2), ([2], [0.1, 0.2])):
        try:
            return kind(*args)
        except (TypeError, ValueError):
            continue
    try:
        return kind([rate, rate], [3])
    except (TypeError, ValueError):
        return None


SLIPS = [
    (fv.optimizers.SGD, "learning_rat", "learning_rate"),
    (fv.optimizers.Adam, "beta1", "beta_1"),
    (fv.optimizers.Adam, "lr", "learning_rate"),
    (fv.optimizers.Adam, "weight_deacy", "weight_decay"),
    (fv.optimizers.Adam, "clip_norm", "clipnorm"),
    (fv.optimizers.LBFGS, "max_iters", "max_iter"),
    (fv.torch.Adam, "learning_rate", "lr"),
    (Heavy, "fricton", "friction"),
    (Heavy, "lr", "learning_rate"),
    (Stairs, "hight", "height"),
    (fv.schedules.CosineDecay, "decay_step", "decay_steps"),
    (fv.schedules.ReduceOnPlateau, "patiense", "patience"),
]


@pytest.mark.parametrize(("kind", "slip", "meant"), SLIPS)
def test_a_slip_is_an_error_that_says_what_was_perhaps_meant(kind: Any, slip: str, meant: str) -> None:
    thing = make(kind)
    before = vars(thing).copy()
    with pytest.raises(AttributeError, match=f"{kind.__name__}: no attribute '{slip}', did you mean '{meant}'?"):
        setattr(thing, slip, 0.5)
    assert vars(thing) == before


def test_arguments_that_only_pytorch_has_lead_to_fastvar_torch() -> None:
    ours = {*fv.optimizers.__all__} & {*fv.torch.__all__}
    native = {name for kind in fv.optimizers.__all__ for name in getattr(fv.optimizers, kind).parameters}
    for kind in (getattr(fv.optimizers, name) for name in sorted(ours)):
        for name in {*getattr(fv.torch, kind.__name__).parameters} - native - {"lr", "eps"} | {"params"}:
            with pytest.raises(TypeError, match=f"{kind.__name__}: unknown argument '{name}'; .*fastvar.torch"):
                kind(**{name: 1})
            with pytest.raises(AttributeError, match=f"no attribute '{name}'; .*fastvar.torch"):
                setattr(kind(), name, 1)


@pytest.mark.parametrize("name", ["Adam", "SGD", "Lion", "Muon", "LBFGS"])
def test_variables_as_the_first_argument_lead_to_fastvar_torch(name: str) -> None:
    w = fv.Variable([1.0])
    for given in (w, [w], {"a": w}, [{"params": [w]}]):
        with pytest.raises(TypeError, match=f"^{name}: takes no variables here; pass .*fastvar.torch"):
            getattr(fv.optimizers, name)(given, 0.1)


@pytest.mark.parametrize("kind", of_ours(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_no_object_with_declared_parameters_takes_others(kind: type[Declared]) -> None:
    thing = make(kind)
    if thing is None:
        pytest.skip("a base class")
    before = vars(thing).copy()
    dropped = {name for base in kind.__mro__ if issubclass(base, Declared) for name in base.parameters}
    for name in {"learning_rat", "no_such_thing", "lr", "l1", "clipnorm", *dropped} - {*kind.parameters}:
        if isinstance(getattr(kind, name, None), property):  # LossScaleOptimizer has those of the inner one
            continue
        with pytest.raises(AttributeError):
            setattr(thing, name, 1.0)
    assert vars(thing) == before


@pytest.mark.parametrize("thing", [fv.regularizers.L2(0.5), fv.constraints.MaxNorm(), Clamp()], ids=repr)
def test_what_is_fixed_takes_nothing(thing: Any) -> None:
    before = copy.deepcopy(vars(thing))
    for name in [*type(thing).parameters, "l1", "l3", "max_valu"]:
        with pytest.raises(AttributeError, match=f"{name} is fixed; assign a new {type(thing).__name__}"):
            setattr(thing, name, 0.25)
    assert vars(thing) == before


def test_attributes_that_a_class_body_declares_can_be_set() -> None:
    w = fv.Variable([1.0])
    optimizer = Heavy(0.5)
    for _ in range(2):
        optimizer.apply([[1.0]], [w])
    assert (optimizer.calls, optimizer.seen, optimizer._private) == (2, [1, 2], 2)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (twin.calls, twin.seen) == (2, [1, 2])
        with pytest.raises(AttributeError):
            twin.call = 3


def test_groups_refuse_slips() -> None:
    w = fv.Variable([1.0])
    optimizer = fv.optimizers.Adam()
    optimizer.build([w])
    group = optimizer.groups[0]
    for name in ("learning_rat", "lr", "clipnorm", "beta1"):
        with pytest.raises(AttributeError, match=f"a group has no '{name}'"):
            setattr(group, name, 0.5)
    with pytest.raises(AttributeError):
        group.variables += [w]
    with pytest.raises(AttributeError):
        optimizer.groups += [group]
    assert len(optimizer.groups) == 1
    assert [*map(id, group.variables)] == [id(w)]
    assert group._own == {}


def test_groups_of_torch_refuse_slips_and_keep_notes() -> None:
    (group,) = fv.torch.Adam([fv.Variable([1.0])]).param_groups
    for slip, meant in {
        "learning_rate": "lr",
        "weight_deacy": "weight_decay",
        "beta": "betas",
        "epss": "eps",
    }.items():
        with pytest.raises(ValueError, match=f"Adam: a group has no '{slip}', did you mean '{meant}'?"):
            group[slip] = 0.5
        assert slip not in group
    for note in ("initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum", "last_epoch", "tag"):
        group[note] = 0.5
        assert group[note] == 0.5
