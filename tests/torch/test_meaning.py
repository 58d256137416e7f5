"""fastvar.torch means what PyTorch 2.13 means: compare 20 steps of every class with every option, and its state.

The oracle is the installed torch.optim. Both round every operation by half a unit in the last place, in a
different order. With some 6 operations for a weight, 20 steps make 60 units; momentum makes it more, cancellation
less. Weights must agree to 100 units in the last place of their value or of 1, near which they begin; states to
100 units of the largest element that they have had.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import fastvar as fv
import fastvar.torch
from tests.support.runs import assert_all_same_bits, gradients, variables
from tests.support.torch_cases import LEFT_OUT, OF_MATRICES, OWN, every_case, every_class, make, one_of_each
from tests.support.torch_steps import STEPS, follow

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


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
        ("SGD", {"momentum": 0.0}),
        ("SGD", {"momentum": 0.5, "dampening": 0.25}),
        ("SGD", {"momentum": 0.0, "dampening": 0.25}),
        ("RMSprop", {"momentum": 0.0}),
        ("RMSprop", {"alpha": 0.5, "eps": 0.1}),
        ("Adam", {"betas": (0.5, 0.75), "eps": 0.1}),
        ("NAdam", {"betas": (0.5, 0.75), "momentum_decay": 0.5}),
        ("ASGD", {"lambd": 0.5, "alpha": 0.5, "t0": 2}),
        ("Adagrad", {"lr_decay": 0.5, "initial_accumulator_value": 0.0}),
        ("Adadelta", {"rho": 0.5}),
    ],
)
def test_a_group_has_options_of_its_own(name: str, own: dict[str, Any]) -> None:
    options = {"lr": 0.1, "momentum": 0.9} if name in ("SGD", "RMSprop") else {"lr": 0.1}
    follow(name, options, "float64", lambda p: [{"params": p[:2]}, {"params": p[2:], **own}])


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW", "NAdam", "RAdam", "Adamax"])
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "ReduceLROnPlateau", "CosineAnnealingWarmRestarts"])
def test_follows_what_pytorchs_schedulers_set(name: str, scheduler: str) -> None:
    """A scheduler of PyTorch sets `param_groups` of its optimizer; copy that to ours, also momentum and betas."""
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


def test_every_class_is_in_the_table() -> None:
    assert {*OWN, *OF_MATRICES, "ParamGroup", "TorchOptimizer"} == set(fv.torch.__all__)
