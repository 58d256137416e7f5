"""fastvar.torch in use: with fastvar's options, saved and copied, and used like PyTorch's optimizers."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from fastvar.hyper import Declared, number
from tests.support.cases import contents
from tests.support.runs import assert_all_same_bits, gradients, state, variables
from tests.support.torch_cases import few_cases, make, one_of_each

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


# Saved and copied.


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
    other = {**options, "lr": 0.75}
    resumed = grouped(name, again, other) if built else make(name, **other)
    with pytest.warns(RuntimeWarning, match=r"optimizer\.lr: 0\.75 here"):
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


# Used like PyTorch's optimizers.


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
    lines = [" ".join(line.split()) for line in repr(second).splitlines()]
    assert lines[0].startswith("ParamGroup of ")
    assert {"lr 0.03125", "betas (0.9, 0.999)", "initial_lr 0.03125"} <= {*lines}


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
