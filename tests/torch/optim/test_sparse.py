"""SparseAdam beside PyTorch's: gradients with rows that repeat, with several sparse axes, with nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.testing._internal.common_optimizers import optim_db

import fastvar.torch.optim as ours
from tests.support.torch_sparse import assert_same, give_gradients, parameters
from tests.support.torch_tensors import exchange_states

(INFO,) = (info for info in optim_db if info.optim_cls is torch.optim.SparseAdam)
CASES = [dict(each.kwargs) for each in INFO.optim_inputs_func(device="cpu")]
STEPS = 20
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
every_case = pytest.mark.parametrize("kwargs", CASES, ids=[",".join(case) or "default" for case in CASES])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def step(pairs: Any, t: int) -> None:
    for optimizer, params in pairs:
        give_gradients(params, t)
        optimizer.step()


def made(kwargs: dict[str, Any], dtype: Any = torch.float32) -> Any:
    mine, theirs = parameters(dtype), parameters(dtype)
    return (ours.SparseAdam(mine, **kwargs), mine), (torch.optim.SparseAdam(theirs, **kwargs), theirs)


@every_dtype
@every_case
def test_steps_beside_pytorch(kwargs: dict[str, Any], dtype: Any) -> None:
    pairs = made(kwargs, dtype)
    for t in range(STEPS):
        step(pairs, t)
        assert_same(*pairs[0], *pairs[1], f"step {t}")
    assert pairs[0][0].kernel_steps == STEPS


@every_dtype
@every_case
def test_states_are_exchanged(kwargs: dict[str, Any], dtype: Any) -> None:
    pairs = made(kwargs, dtype)
    for t in range(STEPS):
        if t == 10:
            again = made(kwargs, dtype)
            exchange_states(pairs, again)
            pairs = again
        step(pairs, t)
        assert_same(*pairs[0], *pairs[1], f"step {t}")


def test_errors_are_those_of_pytorch() -> None:
    for bad in INFO.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = bad.optimizer_error_input
        with pytest.raises(bad.error_type, match=bad.error_regex):
            ours.SparseAdam(parameters() if given.params is None else given.params, **given.kwargs)


@pytest.mark.parametrize("begun", [False, True])
def test_refused_steps_change_nothing(begun: bool) -> None:
    params = parameters()
    optimizer = ours.SparseAdam(params)
    if begun:
        step([(optimizer, params)], 0)
    give_gradients(params, 1)
    params[0].grad = None
    params[0].grad = torch.ones(params[0].shape)
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])
    wanted = "^SparseAdam: gradient of parameter 0 must be sparse; use Adam for dense gradients$"
    with pytest.raises(RuntimeError, match=wanted):
        optimizer.step()
    assert any("parameter 0" in refused for refused in ours.explain(optimizer).refused)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert str(optimizer.state_dict()["state"]) == str(state)


@pytest.mark.parametrize("index", [[[3]], [[-1]], [[2**62]], [[0], [4]], [[3], [0]], [[-1], [0]]])
def test_indices_outside_of_the_parameter_are_refused(index: list[list[int]]) -> None:
    p = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = ours.SparseAdam([p])
    values = torch.ones((1, 4)[: 3 - len(index)])
    with torch.sparse.check_sparse_tensor_invariants(False):
        p.grad = torch.ops.aten._sparse_coo_tensor_unsafe(torch.tensor(index), values, p.shape)
    wanted = r"^SparseAdam: gradient of parameter 0 must have the shape \(3, 4\), and indices within it$"
    with pytest.raises(ValueError, match=wanted):
        optimizer.step()
    assert not p.detach().any()
    assert not optimizer.state


def test_an_embedding_is_trained_and_only_its_rows_change() -> None:
    net = torch.nn.Embedding(1000, 8, sparse=True)
    optimizer, before = ours.SparseAdam(net.parameters(), lr=0.1), net.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.tensor([3, 500, 3])).square().sum().backward()
        optimizer.step()
    changed = (net.weight != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == [3, 500]
    assert ours.explain(optimizer).refused == []
    assert optimizer.kernel_steps == 3


def test_counts_and_moves_are_followed() -> None:
    pairs = made({"lr": 0.1})
    for t in range(8):
        for optimizer, params in pairs:
            if t == 3 and params[0] in optimizer.state:
                optimizer.state[params[0]]["step"] = 7
                params[0].data = params[0].data.clone()
            if t == 5:
                optimizer.param_groups[0]["lr"] = 0.3
                optimizer.load_state_dict(optimizer.state_dict())
        step(pairs, t)
        assert_same(*pairs[0], *pairs[1], f"step {t}")
