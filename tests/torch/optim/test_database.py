"""PyTorch's own table of optimizers: every option that it tests, 20 steps beside PyTorch's plain loop."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

import fastvar.torch.optim as ours
from tests.support.oracles import default_dtype
from tests.support.torch_tensors import CASES, EVERY, HERE, IDS, assert_same, give_gradients, parameters_of, plain

STEPS = 20
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_case = pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)


def pair(name: str, kwargs: dict[str, Any], dtype: Any) -> tuple[Any, list[Any], Any, list[Any]]:
    mine, theirs = parameters_of(name, dtype), parameters_of(name, dtype)
    return (
        getattr(ours, name)(mine, **kwargs),
        mine,
        getattr(torch.optim, name)(theirs, **{**plain(name), **kwargs}),
        theirs,
    )


def step(optimizer: Any, params: list[Any], t: int, missing: Any = ()) -> None:
    give_gradients(params, t, missing)
    optimizer.step()


@pytest.fixture
def precise(name: str, dtype: Any) -> Iterator[None]:
    """Let PyTorch keep what these carry on from step to step in float64, with the parameters."""
    if name not in ("NAdam", "ASGD"):
        yield
        return
    with default_dtype(str(dtype).removeprefix("torch.")):
        yield


@pytest.mark.usefixtures("precise")
@every_dtype
@every_case
def test_steps_beside_pytorch(name: str, kwargs: dict[str, Any], dtype: Any) -> None:
    optimizer, params, other, theirs = pair(name, kwargs, dtype)
    for t in range(STEPS):
        step(optimizer, params, t)
        step(other, theirs, t)
        assert_same(optimizer, params, other, theirs, f"step {t}")
    assert optimizer.kernel_steps == STEPS


@every_case
def test_counts_leave_out_steps_without_a_gradient(name: str, kwargs: dict[str, Any]) -> None:
    optimizer, params, other, theirs = pair(name, kwargs, torch.float32)
    for t in range(STEPS):
        missing = [t % 3, 4][: t % 4]
        step(optimizer, params, t, missing)
        step(other, theirs, t, missing)
        assert_same(optimizer, params, other, theirs, f"step {t}")
    assert optimizer.kernel_steps == STEPS


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.usefixtures("precise")
@every_dtype
@pytest.mark.parametrize("carry", [lambda state: state, through_a_file], ids=["memory", "file"])
@every_case
def test_states_are_exchanged(name: str, kwargs: dict[str, Any], dtype: Any, carry: Any) -> None:
    optimizer, params, other, theirs = pair(name, kwargs, dtype)
    for t in range(STEPS):
        if t == 10:
            mine, its = carry(optimizer.state_dict()), carry(other.state_dict())
            assert mine["param_groups"][0].keys() == its["param_groups"][0].keys()
            made = pair(name, kwargs, dtype)
            made[0].load_state_dict(its)
            made[2].load_state_dict(mine)
            for p, q, new, fresh in zip(params, theirs, made[1], made[3], strict=True):
                new.data.copy_(q.data)
                fresh.data.copy_(p.data)
            optimizer, params, other, theirs = made
        step(optimizer, params, t)
        step(other, theirs, t)
        assert_same(optimizer, params, other, theirs, f"step {t}")
    assert optimizer.kernel_steps == STEPS - 10


@pytest.mark.parametrize("info", HERE, ids=EVERY)
def test_errors_are_those_of_pytorch(info: Any) -> None:
    bad_ones = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    for bad in (each for each in bad_ones if each.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR):
        given, make = bad.optimizer_error_input, getattr(ours, info.optim_cls.__name__)
        params = given.params if given.params is not None else parameters_of(info.optim_cls.__name__)
        with pytest.raises(bad.error_type, match=bad.error_regex):
            make(params, **given.kwargs)


@pytest.mark.parametrize("info", HERE, ids=EVERY)
def test_errors_of_steps_are_those_of_pytorch_and_name_the_parameter(info: Any) -> None:
    bad_ones = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    for bad in (each for each in bad_ones if each.error_on is OptimizerErrorEnum.STEP_ERROR):
        given = bad.optimizer_error_input
        for p in given.params:
            p.grad = torch.ones_like(p)
        optimizer = getattr(ours, info.optim_cls.__name__)(given.params, **given.kwargs)
        with pytest.raises(bad.error_type, match=f"{bad.error_regex}.*parameter 0"):
            optimizer.step()
        assert "parameter 0" in ours.explain(optimizer).refused[0]
        assert not optimizer.state


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_other_paths_of_pytorch_may_be_asked_for(name: str, flag: str) -> None:
    info = next(info for info in HERE if info.optim_cls.__name__ == name)
    if flag not in info.supported_impls:
        pytest.skip(f"PyTorch's {name} has no {flag}")
    optimizer, params, other, theirs = pair(name, {}, torch.float32)
    optimizer = getattr(ours, name)(params, **{flag: True})
    for t in range(3):
        step(optimizer, params, t)
        step(other, theirs, t)
        assert_same(optimizer, params, other, theirs, f"step {t}")
    assert optimizer.kernel_steps == 3
