"""fastvar.torch means what PyTorch 2.13 means: 20 steps of every class with every option, and of its state.

The oracle is the installed torch.optim. Both sides round every operation by half a unit in the last place, in
another order: some 6 operations on the way to a weight, 20 times, are 60 units, of which momentum makes more and
chance less. Weights must agree to 100 units in the last place of the larger of their value and 1 (they begin
there), states to 100 units of the largest element that they have had.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import contents
from runs import SHAPES, assert_all_same_bits, gradients, state, variables

import fastvar as fv
import fastvar.torch
from fastvar.hyper import Declared, number

STEPS = 20
BOUND = 100  # units in the last place
OWN: dict[str, list[dict[str, Any]]] = {  # of every class, what shows each of its options
    "SGD": [
        {"lr": 0.1},
        {"lr": 0.1, "dampening": 0.5},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ],
    "Adam": [
        {"lr": 0.1},
        {"lr": 0.1, "amsgrad": True, "betas": (0.9, 0.75)},
        {"lr": 0.1, "betas": (0.5, 0.75), "eps": 0.1},
        {"lr": 0.1, "amsgrad": True, "eps": 0.1},
    ],
    "AdamW": [{"lr": 0.1}, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.75), "eps": 0.1}],
    "NAdam": [{"lr": 0.1}, {"lr": 0.1, "momentum_decay": 0.5, "betas": (0.5, 0.75), "eps": 0.1}],
    "RAdam": [{"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.875), "eps": 0.1}],
    "Adamax": [{"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.75), "eps": 0.1}],
    "RMSprop": [
        {"lr": 0.1},
        {"lr": 0.1, "alpha": 0.5, "eps": 0.1},
        {"lr": 0.1, "momentum": 0.5},
        {"lr": 0.1, "centered": True},
        {"lr": 0.1, "centered": True, "momentum": 0.5, "eps": 0.1},
    ],
    "Adagrad": [
        {"lr": 0.1},
        {"lr": 0.1, "lr_decay": 0.5},
        {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 0.1},
    ],
    "Adadelta": [{}, {"lr": 0.5, "rho": 0.5, "eps": 0.1}],
    "ASGD": [{"lr": 0.1}, {"lr": 0.1, "lambd": 0.5, "alpha": 0.5, "t0": 5.0}],
    "Rprop": [{"lr": 0.1}, {"lr": 0.1, "etas": (0.25, 1.5), "step_sizes": (0.05, 0.2)}],
}
ALIKE: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.25},
    {"maximize": True},
    {"maximize": True, "weight_decay": 0.25},
]
LEFT_OUT = {"foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay"}
TABLE = [
    (name, {**own, **alike})
    for name, every in OWN.items()
    for own in every
    for alike in ALIKE
    if name != "Rprop" or "weight_decay" not in alike  # which PyTorch's has not
]
IDS = [f"{name}-{','.join(f'{k}={v}' for k, v in options.items())}" for name, options in TABLE]

FEW = [
    (name, {**own, **ALIKE[i % 4 if name != "Rprop" else 2]}) for name, e in OWN.items() for i, own in enumerate(e)
]

few_cases = pytest.mark.parametrize(("name", "options"), FEW, ids=[IDS[TABLE.index(case)] for case in FEW])
every_case = pytest.mark.parametrize(("name", "options"), TABLE, ids=IDS)
one_of_each = pytest.mark.parametrize(("name", "options"), [(n, o[-1]) for n, o in OWN.items()], ids=[*OWN])
every_class = pytest.mark.parametrize("name", OWN)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def make(name: str, *args: Any, **options: Any) -> fv.torch.TorchOptimizer:
    return getattr(fv.torch, name)(*args, **options)  # type: ignore[no-any-return]


# The same steps as PyTorch's.


@contextmanager
def default_dtype(dtype: str) -> Iterator[None]:
    """Let PyTorch keep its scalar states (the product of NAdam, the step size of ASGD) in the same precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def follow(
    name: str,
    options: dict[str, Any],
    dtype: str,
    groups: Callable[[list[Any]], Any] = lambda params: params,
    each_step: Callable[[int, Any], object] = lambda t, optimizer: None,
) -> None:
    """Compare every one of 20 steps, calling `each_step(t, optimizer)` for both optimizers before it."""
    with default_dtype(dtype):
        ours = variables(dtype)
        theirs = [torch.nn.Parameter(torch.tensor(v.value)) for v in ours]
        start, most = [v.numpy() for v in ours], [{} for _ in ours]
        mine = make(name, groups(ours), **options)
        other = getattr(torch.optim, name)(groups(theirs), **options)
        for t in range(STEPS):
            grads = gradients(t, dtype)
            grads[0][0] = 0  # which only a fitting epsilon survives
            each_step(t, mine)
            each_step(t, other)
            for v, p, g in zip(ours, theirs, grads, strict=True):
                v.grad, p.grad = g, torch.tensor(g)
            mine.step()
            other.step()
            for v, p in zip(ours, theirs, strict=True):
                assert_close(v, p.detach(), 1, f"weights after step {t}")
            for v, p, of in zip(ours, theirs, most, strict=True):
                assert_same_state(mine, v, other.state[p], of, t)
    for v, before in zip(ours, start, strict=True):
        assert v.size == 0 or (v.value != before).any()


def assert_close(actual: fv.Variable, expected: Any, least: float, what: str) -> None:
    expected = expected.numpy()
    assert actual.dtype == expected.dtype
    units = np.finfo(expected.dtype).eps * np.maximum(np.abs(expected), least)
    assert (np.abs(actual.value - expected) <= BOUND * units).all(), what


def assert_same_state(mine: Any, v: fv.Variable, theirs: dict[str, Any], most: dict[str, float], t: int) -> None:
    arrays = {k for k, x in theirs.items() if isinstance(x, torch.Tensor) and k not in ("step", "eta", "mu")}
    arrays -= {"mu_product"}
    assert arrays <= set(mine._state)
    for slot in arrays:
        if v.size:
            most[slot] = max(float(theirs[slot].abs().max()), most.get(slot, 0))
            assert_close(mine.slot(v, slot), theirs[slot], most[slot], f"{slot} after step {t}")


@every_case
@every_dtype
def test_means_what_pytorch_means(name: str, options: dict[str, Any], dtype: str) -> None:
    follow(name, options, dtype)


@every_case
def test_a_learning_rate_changed_in_mid_run(name: str, options: dict[str, Any]) -> None:
    def change(t: int, optimizer: Any) -> None:
        if t in (7, 8, 15):
            optimizer.param_groups[0]["lr"] *= 0.25 if t == 7 else 2

    follow(name, options, "float64", each_step=change)


@one_of_each
@every_dtype
def test_two_groups(name: str, options: dict[str, Any], dtype: str) -> None:
    decay = {} if name == "Rprop" else {"weight_decay": 0.5}

    def groups(params: list[Any]) -> list[Any]:
        return [{"params": params[:2]}, {"params": iter(params[2:]), "lr": 0.05, **decay}]

    def change(t: int, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.75
        if t == 9 and decay:
            optimizer.param_groups[0]["weight_decay"] = 0.125

    follow(name, options, dtype, groups, change)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("SGD", {"momentum": 0.9}),
        ("SGD", {"momentum": 0.5, "dampening": 0.25}),
        ("RMSprop", {"momentum": 0.5}),
        ("RMSprop", {"alpha": 0.5, "eps": 0.1}),
        ("Adam", {"betas": (0.5, 0.75), "eps": 0.1}),
        ("NAdam", {"betas": (0.5, 0.75), "momentum_decay": 0.5}),
        ("ASGD", {"lambd": 0.5, "alpha": 0.5, "t0": 2}),
        ("Adagrad", {"lr_decay": 0.5, "initial_accumulator_value": 0.0}),
        ("Adadelta", {"rho": 0.5}),
    ],
)
def test_a_group_has_options_of_its_own(name: str, own: dict[str, Any]) -> None:
    follow(name, {"lr": 0.1}, "float64", lambda p: [{"params": p[:2]}, {"params": p[2:], **own}])


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW", "NAdam", "RAdam", "Adamax"])
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "ReduceLROnPlateau", "CosineAnnealingWarmRestarts"])
def test_follows_what_pytorchs_schedulers_set(name: str, scheduler: str) -> None:
    """Each sets `param_groups[...]` of its own optimizer; the same is set in ours, momentum and betas too."""
    options: dict[str, Any] = {
        "OneCycleLR": {"max_lr": 0.1, "total_steps": STEPS + 1},
        "ReduceLROnPlateau": {"patience": 1},
        "CosineAnnealingWarmRestarts": {"T_0": 6},
    }[scheduler]
    made: list[Any] = []

    def each_step(t: int, optimizer: Any) -> None:
        if isinstance(optimizer, torch.optim.Optimizer):
            return
        if not made:
            momentum = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
            driven = getattr(torch.optim, name)([torch.zeros(1, requires_grad=True)], lr=0.1, **momentum)
            made.extend([driven, getattr(torch.optim.lr_scheduler, scheduler)(driven, **options)])
        set_by.append({k: v for k, v in made[0].param_groups[0].items() if k in ("lr", "momentum", "betas")})
        made[0].step()
        made[1].step(*[1.0] * (scheduler == "ReduceLROnPlateau"))
        optimizer.param_groups[0].update(set_by[t])

    def both(t: int, optimizer: Any) -> None:
        each_step(t, optimizer)
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.param_groups[0].update(set_by[t])

    set_by: list[dict[str, Any]] = []
    follow(name, {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}, "float64", each_step=both)
    assert len({s["lr"] for s in set_by}) > 2


def test_a_schedule_is_what_setting_the_number_before_each_step_is() -> None:
    rate = fv.schedules.CosineDecay(0.5, 10)
    for name in OWN:
        scheduled, by_hand = variables(), variables()
        first, second = make(name, scheduled, lr=rate), make(name, by_hand, lr=0.5)
        for t in range(6):
            second.param_groups[0]["lr"] = rate(t)
            first.apply(gradients(t))
            second.apply(gradients(t))
        assert_all_same_bits(scheduled, by_hand)
        assert first.param_groups[0]["lr"] == rate(6)


@every_class
def test_arguments_are_pytorchs(name: str) -> None:
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    wanted = {k: p.default for k, p in theirs.items() if k not in LEFT_OUT and k != "params"}
    cls = getattr(fv.torch, name)
    ours = inspect.signature(cls).parameters
    assert next(iter(ours)) == "params"
    assert {k: ours[k].default for k in wanted} == wanted
    positional = [k for k, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    positional = [k for k in positional if k not in LEFT_OUT and k != "maximize"]
    assert [k for k, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    assert make(name).defaults == wanted
    assert set(wanted) | {"params"} == set(make(name, variables()).param_groups[0])


@pytest.mark.parametrize("argument", sorted(LEFT_OUT))
@every_class
def test_what_is_left_out_is_refused(name: str, argument: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: unknown argument '{argument}'"):
        make(name, variables(), **{argument: False})


# With fastvar's options.


@one_of_each
def test_a_skipped_step_leaves_no_trace(name: str, options: dict[str, Any]) -> None:
    whole, skipping = variables(), variables()
    first, second = make(name, whole, **options), make(name, skipping, **options, nonfinite="skip")
    for t in range(4):
        first.apply(gradients(t))
        second.apply([g * np.float32(np.inf) for g in gradients(t)])
        second.apply(gradients(t))
    assert second.skipped == 4
    assert_all_same_bits(whole, skipping)


@one_of_each
def test_accumulated_gradients_are_one_step(name: str, options: dict[str, Any]) -> None:
    whole, parts = variables(), variables()
    first, second = make(name, whole, **options), make(name, parts, **options, gradient_accumulation_steps=2)
    for t in range(6):
        first.apply(gradients(t))
        for factor in (0.5, 1.5):
            second.apply([g * np.float32(factor) for g in gradients(t)])
    for v, w in zip(whole, parts, strict=True):
        np.testing.assert_allclose(v.value, w.value, rtol=1e-5, atol=1e-5)


def test_scaled_losses() -> None:
    whole, scaled = variables(), variables()
    plain = fv.torch.NAdam(whole, lr=0.125)
    inner = fv.torch.NAdam(lr=0.125)
    optimizer = fv.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    for t in range(4):
        plain.apply(gradients(t))
        optimizer.apply([g * np.float32(8) for g in gradients(t)], scaled)
    assert_all_same_bits(whole, scaled)


@one_of_each
def test_excluded_variables_do_not_decay(name: str, options: dict[str, Any]) -> None:
    if name == "Rprop":
        return
    apart, grouped = variables(), variables()
    first = make(name, apart, **options, weight_decay=0.5)
    first.exclude_from_weight_decay(apart[:2])
    second = make(name, [{"params": grouped[:2], "weight_decay": 0}, {"params": grouped[2:]}], **options)
    second.param_groups[1]["weight_decay"] = 0.5
    for t in range(3):
        first.apply(gradients(t))
        second.apply(gradients(t))
    assert_all_same_bits(apart, grouped)


def test_maximize_may_change() -> None:
    (w,) = given = [fv.Variable([1.0])]
    optimizer = fv.torch.SGD(given, lr=0.25)
    for optimizer.maximize, value in ((False, 0.75), (True, 1.0), (True, 1.25), (False, 1.0)):
        optimizer.apply([[1.0]])
        assert w.value == value


# Kept.


def grouped(name: str, given: list[fv.Variable], options: dict[str, Any]) -> fv.torch.TorchOptimizer:
    return make(name, [{"params": given[:2]}, {"variables": given[2:], "lr": 0.0625}], **options)


def train(optimizer: fv.torch.TorchOptimizer, steps: range) -> None:
    for t in steps:
        optimizer.param_groups[0]["lr"] = 0.25 / (t + 1)
        if "betas" in optimizer.defaults:
            optimizer.param_groups[1]["betas"] = (0.5 + t / 32, 0.875)
        optimizer.apply(gradients(t))


@few_cases
@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
def test_a_resumed_run_equals_the_uninterrupted_one(
    name: str, options: dict[str, Any], built: bool, tmp_path: Path
) -> None:
    given, again = variables(), variables()
    optimizer = grouped(name, given, options)
    train(optimizer, range(5))
    path = fv.Checkpoint(variables=given, optimizer=optimizer).save(tmp_path / "a.h5")
    train(optimizer, range(5, 12))
    other = {**options, "lr": 0.5}
    resumed = grouped(name, again, other) if built else make(name, **other)
    fv.Checkpoint(variables=again, optimizer=resumed).restore(path)
    train(resumed, range(5, 12))
    assert contents(resumed, again) == contents(optimizer, given)
    assert resumed.get_config() == optimizer.get_config()
    assert all(type(resumed._parameters[k]) is type(v) for k, v in optimizer._parameters.items())


@few_cases
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_continues_bit_for_bit(name: str, options: dict[str, Any], how: str) -> None:
    given = variables()
    optimizer = grouped(name, given, options)
    optimizer.param_groups[0]["initial_lr"] = 0.5
    train(optimizer, range(3))
    both = (given, optimizer)
    ours, twin = pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)
    assert twin.param_groups[0]["initial_lr"] == 0.5
    train(twin, range(3, 6))
    train(optimizer, range(3, 6))
    assert contents(twin, ours) == contents(optimizer, given)


@few_cases
def test_the_config_makes_the_same_optimizer(name: str, options: dict[str, Any]) -> None:
    optimizer = make(name, variables(), **options, clipnorm=2.0)
    config = optimizer.get_config()
    twin = type(optimizer).from_config(config)
    assert twin.get_config() == config
    assert eval(repr(optimizer), vars(fv.torch)).get_config() == config
    ours, theirs = variables(), variables()
    optimizer = make(name, theirs, **options, clipnorm=2.0)
    for t in range(3):
        twin.apply(gradients(t), ours)
        optimizer.apply(gradients(t))
    assert_all_same_bits([*ours, *state(twin)], [*theirs, *state(optimizer)])


def test_the_names_of_the_native_classes_are_theirs(tmp_path: Path) -> None:
    for name in ("Adam", "SGD", "RMSprop"):
        assert Declared.registry[name] is getattr(fv.optimizers, name)
        assert Declared.registry[f"torch.{name}"] is getattr(fv.torch, name)
    nested = fv.optimizers.LossScaleOptimizer(fv.torch.Adam(lr=0.5))
    again = fv.optimizers.LossScaleOptimizer.from_config(nested.get_config())
    assert type(again.inner_optimizer) is fv.torch.Adam
    w = fv.Variable([1.0], name="w")
    path = fv.Checkpoint(w=w, optimizer=fv.torch.Adam([w])).save(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"Adam: the saved optimizer is of class torch\.Adam"):
        fv.Checkpoint(w=w, optimizer=fv.optimizers.Adam()).restore(path)
    path = fv.Checkpoint(w=w, optimizer=fv.optimizers.Adam()).save(tmp_path / "b.h5")
    with pytest.raises(ValueError, match="Adam: the saved optimizer is of class Adam"):
        fv.Checkpoint(w=w, optimizer=fv.torch.Adam([w])).restore(path)


# Used as PyTorch's are.


def test_a_closure_sets_the_gradients_and_returns_the_loss() -> None:
    w = fv.Variable([4.0])
    optimizer = fv.torch.SGD([w], lr=0.25)

    def closure() -> float:
        optimizer.zero_grad()
        assert w.grad is None
        w.grad = 2 * w.value
        return float(w.value[0] ** 2)

    assert [optimizer.step(closure) for _ in range(3)] == [16.0, 4.0, 1.0]
    assert optimizer.step() is None
    optimizer.zero_grad(set_to_none=False)
    assert w.grad == 0
    with pytest.raises(TypeError, match="SGD: closure must be callable, got True"):
        optimizer.step(True)  # type: ignore[arg-type]


def test_groups_read_and_set_like_dicts() -> None:
    given = variables()
    optimizer = grouped("Adam", given, {"lr": 0.5})
    first, second = optimizer.param_groups
    assert first["params"] == given[:2]
    assert (first["lr"], second["lr"]) == (0.5, 0.0625)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
        group.setdefault("initial_lr", group["lr"])
    assert (first["lr"], second["initial_lr"], first["betas"]) == (0.25, 0.03125, (0.9, 0.999))
    first["betas"] = [0.5, 0.75]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)
    assert {**second} == {**optimizer.defaults, "lr": 0.03125, "initial_lr": 0.03125, "params": given[2:]}
    del first["initial_lr"]
    assert "initial_lr" not in first
    assert repr(second).startswith("ParamGroup({'params': [")


class Net(fv.Module):
    def __init__(self) -> None:
        self.w = fv.Variable([1.0])


def test_params_may_be_a_module_a_generator_or_come_later() -> None:
    net = Net()
    for params in (net, (v for v in net.variables), [{"params": net.w}], [{"variables": [net.w]}]):
        assert fv.torch.SGD(params).param_groups[0]["params"] == [net.w]
    optimizer = fv.torch.SGD(lr=0.5)
    assert optimizer.param_groups == []
    optimizer.build([{"params": net.variables, "lr": 0.25}])
    optimizer.apply([[1.0]])
    assert net.w.value == 0.75


W = fv.Variable([1.0])
ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "number": (
        lambda: fv.torch.SGD(0.1),
        TypeError,
        "SGD: params must be a list of variables or of groups, got 0.1",
    ),
    "variable": (lambda: fv.torch.SGD(W), TypeError, "SGD: params must be a list"),
    "empty": (lambda: fv.torch.SGD([]), ValueError, "SGD: params must not be empty"),
    "twice": (lambda: fv.torch.SGD([{"params": [W], "variables": []}]), ValueError, "SGD: a group must have"),
    "option": (lambda: fv.torch.SGD([{"params": [W], "nesterov": True}]), AttributeError, "has no 'nesterov'"),
    "name": (lambda: fv.torch.SGD([W], learning_rate=1), TypeError, "'learning_rate', did you mean 'lr'"),
    "epsilon": (lambda: fv.torch.Adam([W], epsilon=1), TypeError, "'epsilon', did you mean 'eps'"),
    "attribute": (lambda: setattr(fv.torch.SGD([W]), "learning_rate", 1), AttributeError, "did you mean 'lr'"),
    "lr": (lambda: fv.torch.SGD([W], lr=-1), ValueError, "SGD: lr must be >= 0, got -1"),
    "nesterov": (lambda: fv.torch.SGD([W], nesterov=True), ValueError, "SGD: nesterov needs a momentum > 0"),
    "damped": (
        lambda: fv.torch.SGD([W], momentum=0.5, dampening=0.5, nesterov=True),
        ValueError,
        "dampening of 0",
    ),
    "betas": (lambda: fv.torch.Adam([W], betas=(0.9, 1)), ValueError, r"betas\[1\] must be >= 0 and < 1, got 1"),
    "three": (lambda: fv.torch.Adam([W], betas=(0, 0, 0)), ValueError, "betas must be two numbers"),
    "text": (lambda: fv.torch.Adam([W], betas="ab"), TypeError, "betas must be a list, got 'ab'"),
    "etas": (lambda: fv.torch.Rprop([W], etas=(1.2, 0.5)), ValueError, r"etas\[0\] must be > 0 and < 1, got 1.2"),
    "sizes": (lambda: fv.torch.Rprop([W], step_sizes=(2, 1)).apply([[1.0]]), ValueError, r"step_sizes\[0\] must"),
    "rprop": (lambda: fv.torch.Rprop([W], weight_decay=1), TypeError, "unknown argument 'weight_decay'"),
    "params": (lambda: fv.torch.SGD([W]).param_groups[0].update(params=[]), ValueError, "params are fixed"),
    "flag": (lambda: fv.torch.Adam([W]).param_groups[0].update(amsgrad=True), ValueError, "same for all groups"),
    "stay": (lambda: fv.torch.Adam([W]).param_groups[0].pop("lr"), ValueError, "Adam: lr must stay"),
    "unknown": (lambda: fv.torch.Adam([W]).param_groups[0]["momentum"], KeyError, "momentum"),
    "range": (lambda: fv.torch.Adam([W]).param_groups[0].update(lr=-1), ValueError, "Adam: lr must be >= 0"),
}


@pytest.mark.parametrize(("does", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_is_wrong(does: Callable[[], object], error: type[Exception], message: str) -> None:
    before = W.numpy()
    with pytest.raises(error, match=message):
        does()
    assert W.numpy() == before


def test_a_rule_of_ones_own_has_it_all() -> None:
    class Heavy(fv.torch.TorchOptimizer):
        friction: float = number(default=0.5, low=0, high=1)
        slots = ("velocity",)

        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            slots.velocity = hyper.friction * slots.velocity - hyper.lr * gradient
            variable += slots.velocity

    w = fv.Variable([1.0])
    optimizer = Heavy([{"params": [w], "lr": 0.5, "weight_decay": 1.0}], maximize=True)
    optimizer.apply([[3.0]])
    assert w.value == 2.0
    assert [*optimizer.param_groups[0]] == ["params", "lr", "friction", "weight_decay", "maximize"]


def test_it_is_imported_on_demand_and_needs_no_pytorch() -> None:
    program = (
        "import sys, fastvar; assert 'fastvar.torch' not in sys.modules; "
        "import fastvar.torch; assert 'torch' not in sys.modules; assert fastvar.torch.SGD"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_class_is_in_the_table() -> None:
    assert {*OWN, "ParamGroup", "TorchOptimizer"} == set(fv.torch.__all__)
    assert SHAPES
