"""Optimizers that PyTorch does not have, beside those of `fastvar.optimizers` on the same numbers."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch

import fastvar as fv
import fastvar.torch.optim as ours
from fastvar.optimizer.options import Options
from tests.support.torch_tensors import bytes_of, give_gradients, parameters

SHAPES = [(7, 3), (5,), (), (2, 3, 4)]
NAMES = ours.native.__all__
STEPS = 10
every_class = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def made(name: str, dtype: Any = torch.float32) -> tuple[Any, list[Any]]:
    """Return an optimizer of two groups, and its parameters."""
    params = parameters(dtype, SHAPES)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.03, "weight_decay": 0.2}]
    return getattr(ours, name)(groups, lr=0.01), params


def native(name: str, params: list[Any]) -> tuple[Any, list[Any]]:
    """Return the optimizer of `fastvar.optimizers` of the same two groups."""
    variables = [fv.Variable(p.detach().numpy().copy()) for p in params]
    optimizer = getattr(fv.optimizers, name)(0.01)
    second = {"variables": variables[2:], "learning_rate": 0.03, "weight_decay": 0.2}
    optimizer.build([{"variables": variables[:2]}, second])
    return optimizer, variables


def run(optimizer: Any, params: list[Any], steps: range) -> None:
    for t in steps:
        give_gradients(params, t)
        optimizer.step()


def assert_equal(params: list[Any], others: list[Any]) -> None:
    for p, q in zip(params, others, strict=True):
        assert p.dtype == q.dtype
        assert torch.equal(p, q)


@every_class
@every_dtype
def test_ten_steps_give_the_bits_of_the_native_class(name: str, dtype: Any) -> None:
    mine, params = made(name, dtype)
    other, variables = native(name, params)
    for t in range(STEPS):
        give_gradients(params, t)
        mine.step()
        other.apply([p.grad.numpy() for p in params], variables)
        mine.param_groups[0]["lr"] = other.groups[0].learning_rate = 0.01 / (t + 2)
    assert mine.kernel_steps == STEPS
    assert_equal(params, [torch.tensor(v.value) for v in variables])
    for p, v in zip(params, variables, strict=True):
        assert mine.state[p].keys() == {"step", *other.slots, *other.initial_numbers()}
        for number in other.initial_numbers():
            assert mine.state[p][number] == float(other._state.numbers[number]), number
        for slot in other.slots:
            assert torch.equal(mine.state[p][slot], torch.tensor(other.slot(v, slot).value)), slot


@every_class
def test_signature_is_that_of_the_native_class(name: str) -> None:
    here = dict(inspect.signature(getattr(ours, name)).parameters)
    there = dict(inspect.signature(getattr(fv.optimizers, name)).parameters)
    assert [*here][:2] == ["params", "lr"]
    assert here["lr"].default == there["learning_rate"].default
    assert here["weight_decay"].kind == inspect.Parameter.KEYWORD_ONLY
    own = there.keys() - Options.parameters.keys() - {"learning_rate_power"}
    keywords = ours.keywords.KEYWORDS.parameters.keys()
    assert here.keys() - {"params", "lr"} == own | {"weight_decay"} | keywords
    for parameter in own:
        assert here[parameter].default == there[parameter].default
        kind = {bool: "bool", float: "float"}.get(type(there[parameter].default), "float or None")
        assert f"\n{parameter} : {kind}\n" in getattr(ours, name).__doc__
    optimizer = getattr(ours, name)(parameters())
    assert optimizer.defaults == {p: here[p].default for p in here if p not in {"params", *keywords}}


@every_class
@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
def test_copies_and_checkpoints_go_on(name: str, how: str) -> None:
    whole, wanted = made(name)
    run(whole, wanted, range(STEPS))
    optimizer, params = made(name)
    run(optimizer, params, range(5))
    if how == "pickle":
        optimizer, params = pickle.loads(pickle.dumps((optimizer, params)))
    elif how == "deepcopy":
        optimizer, params = copy.deepcopy((optimizer, params))
    else:
        saved = copy.deepcopy(optimizer.state_dict())
        if how == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        optimizer, fresh = made(name)
        with torch.no_grad():
            for p, q in zip(fresh, params, strict=True):
                p.copy_(q)
        optimizer.load_state_dict(saved)
        params = fresh
    run(optimizer, params, range(5, STEPS))
    assert_equal(params, wanted)


@every_class
def test_schedulers_set_lr(name: str) -> None:
    mine, params = made(name)
    other, theirs = made(name)
    schedule = ours.lr_scheduler.StepLR(mine, 2, 0.5)
    for t in range(6):
        run(mine, params, range(t, t + 1))
        run(other, theirs, range(t, t + 1))
        schedule.step()
        for group, start in zip(other.param_groups, (0.01, 0.03), strict=True):
            group["lr"] = torch.tensor(start * 0.5 ** ((t + 1) // 2), dtype=torch.float64)  # or a tensor
    assert_equal(params, theirs)
    assert mine.param_groups[1]["lr"] == 0.03 / 8


@every_class
def test_a_group_can_be_added_between_steps(name: str) -> None:
    params = parameters(shapes=SHAPES)
    optimizer = getattr(ours, name)(params[:2], lr=0.01)
    run(optimizer, params, range(3))
    optimizer.add_param_group({"params": params[2:], "lr": 0.03, "weight_decay": 0.2})
    run(optimizer, params, range(3, 6))
    alone, theirs = getattr(ours, name)(parameters(shapes=SHAPES)[2:], lr=0.03, weight_decay=0.2), []
    theirs = alone.param_groups[0]["params"]
    for t in range(3, 6):
        give_gradients(params, t)
        for p, q in zip(theirs, params[2:], strict=True):
            p.grad = q.grad
        alone.step()
    assert_equal(params[2:], theirs)


def test_counts_are_of_each_parameter_and_copies_begin_at_its_first_gradient() -> None:
    params = parameters(shapes=SHAPES)
    optimizer = ours.ScheduleFreeAdamW(params, lr=0.1)
    give_gradients(params, 0, missing={1})
    optimizer.step()
    assert params[1] not in optimizer.state
    with torch.no_grad():
        params[1].add_(1)
    before = params[1].detach().clone()
    give_gradients(params, 1)
    optimizer.step()
    other = ours.ScheduleFreeAdamW([torch.nn.Parameter(before)], lr=0.1)
    (q,) = other.param_groups[0]["params"]
    q.grad = params[1].grad
    other.step()
    assert torch.equal(params[1], q)
    assert [int(optimizer.state[p]["step"]) for p in params] == [2, 1, 2, 2]


@every_class
@pytest.mark.parametrize("value", [-1.0, float("nan"), "0.1", lambda step: 0.1])
def test_a_wrong_hyperparameter_is_refused_everywhere(name: str, value: Any) -> None:
    wrong = pytest.raises((TypeError, ValueError), match=f"^{name}: lr must be .*")
    with wrong:
        getattr(ours, name)(parameters(), lr=value)
    with wrong:
        getattr(ours, name)([{"params": parameters(), "lr": value}])
    optimizer, params = made(name)
    with wrong:
        optimizer.add_param_group({"params": parameters(), "lr": value})
    run(optimizer, params, range(2))
    before = bytes_of(optimizer, params)
    optimizer.param_groups[1]["lr"] = value
    for _ in range(2):  # the second step must not take older values
        with wrong:
            optimizer.step()
    assert bytes_of(optimizer, params) == before


def test_messages_name_what_is_there() -> None:
    with pytest.raises(TypeError, match=r"^Lion: missing a required argument: 'params'"):
        ours.Lion()
    with pytest.raises(TypeError, match=r"^Lion: got an unexpected keyword argument 'clipnorm'"):
        ours.Lion(parameters(), clipnorm=1.0)
    with pytest.raises(TypeError, match=r"use fastvar.optimizers.Lion for fastvar.Variable"):
        ours.Lion([fv.Variable([1.0])])
    optimizer = ours.Lion([torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(3, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"got torch.complex64, torch.strided on cpu \(Parameter\)$"):
        optimizer.step()
