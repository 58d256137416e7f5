"""`max_grad_norm`, `ema` and `nonfinite` with sparse gradients, beside PyTorch's steps."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from tests.support import torch_tensors
from tests.support.torch_sparse import assert_same, give_gradients, parameters
from tests.support.torch_tensors import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
KEYWORDS = {"max_grad_norm": 0.5, "ema": 0.75, "nonfinite": "skip"}
every_class = pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])


def same(name: str) -> Any:
    return assert_same if name == "SparseAdam" else torch_tensors.assert_same


def clip(params: list[Any], most: float) -> float:
    """Clip sparse gradients as `clip_grad_norm_`, which takes dense ones only; return their norm."""
    dense = [torch.nn.Parameter(torch.zeros(p.shape)) for p in params]
    for p, q in zip(params, dense, strict=True):
        q.grad = None if p.grad is None else p.grad.to_dense()
    norm = torch.nn.utils.clip_grad_norm_(dense, most)
    for p in params:
        if p.grad is not None:
            p.grad = p.grad * torch.clamp(most / (norm + 1e-6), max=1.0)
    return norm.item()


def spoil(p: Any, bad: float) -> None:
    """Put a bad number into one row of a gradient that has at least one."""
    row = torch.full((1, *p.shape[1:]), bad)
    p.grad = torch.sparse_coo_tensor(torch.tensor([[p.shape[0] - 1]]), row, p.shape)


@every_class
@pytest.mark.parametrize("most", [0.5, 100.0])
def test_clipping_is_that_of_dense_gradients(name: str, most: float) -> None:
    mine, theirs = parameters(), parameters()
    optimizer = getattr(ours, name)(mine, lr=0.1, max_grad_norm=most)
    other = getattr(torch.optim, name)(theirs, lr=0.1)
    for t in range(8):
        for params in (mine, theirs):
            give_gradients(params, t)
        before = [None if p.grad is None else p.grad.to_dense() for p in mine]
        optimizer.step()
        norm = clip(theirs, most)
        other.step()
        same(name)(optimizer, mine, other, theirs, f"step {t}")
        assert abs(optimizer.grad_norm - norm) <= 1e-6 * norm
        for p, gradient in zip(mine, before, strict=True):
            assert (p.grad is None and gradient is None) or torch.equal(p.grad.to_dense(), gradient)


@every_class
def test_averages_of_other_rows_stay_unless_there_is_no_gradient(name: str) -> None:
    params = parameters()[:2]
    optimizer = getattr(ours, name)(params, lr=0.1, ema=0.75)
    averages: list[Any] = [None] * len(params)
    for t in range(8):
        give_gradients(params, t)
        optimizer.step()
        for k, p in enumerate(params):
            if averages[k] is None:
                averages[k] = p.detach().clone()
            rows = slice(None) if p.grad is None else p.grad.coalesce().indices()[0]
            averages[k][rows] = 0.75 * averages[k][rows] + 0.25 * p.detach()[rows]
            assert_close(optimizer.state[p]["ema"], averages[k], f"step {t}")
    with optimizer.average_parameters():
        for p, average in zip(params, averages, strict=True):
            assert_close(p, average, "parameters")


@every_class
@pytest.mark.parametrize("most", [None, 0.5])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_skipped_steps_change_nothing(name: str, bad: float, most: float | None) -> None:
    params, others = parameters(), parameters()
    optimizer = getattr(ours, name)(params, lr=0.1, nonfinite="skip", ema=0.5, max_grad_norm=most)
    other = getattr(ours, name)(others, lr=0.1, ema=0.5, max_grad_norm=most)
    for t in range(4):
        give_gradients(params, 10 + t)
        spoil(params[1], bad)
        before = copied(optimizer, params)
        optimizer.step()
        assert copied(optimizer, params) == before
        for each, of in ((optimizer, params), (other, others)):
            give_gradients(of, t)
            each.step()
    assert optimizer.skipped == optimizer.kernel_steps == 4
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@every_class
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_errors_of_bad_gradients_name_the_parameter(name: str, bad: float) -> None:
    net = torch.nn.Embedding(6, 3, sparse=True)
    params = [*net.parameters()]
    optimizer = getattr(ours, name)(net.named_parameters(), lr=0.1, nonfinite="raise")
    for t in range(1, 3):
        spoil(net.weight, bad)
        before = copied(optimizer, params)
        with pytest.raises(ValueError, match=rf"^{name}: gradient of '?weight'? must be finite$"):
            optimizer.step()
        assert copied(optimizer, params) == before
        give_gradients(params, t)
        optimizer.step()
    assert (optimizer.kernel_steps, optimizer.skipped) == (2, 0)


def copied(optimizer: Any, params: list[Any]) -> Any:
    """Return all that a step without an update must leave as it was, versions included."""
    state = [(k, n, copy.deepcopy(x)) for k, p in enumerate(params) for n, x in optimizer.state.get(p, {}).items()]
    return str((state, [p.detach().tolist() for p in params], [p._version for p in params]))


@every_class
@pytest.mark.parametrize("how", ["state_dict", "through PyTorch", "pickle", "deepcopy"])
def test_keywords_are_kept(name: str, how: str) -> None:
    params = parameters()
    optimizer = getattr(ours, name)(params, lr=0.1, **KEYWORDS)
    for t in range(2):
        give_gradients(params, t)
        optimizer.step()
    spoil(params[0], torch.nan)
    optimizer.step()
    for p in params:
        p.grad = None
    if how == "pickle":
        other, others = pickle.loads(pickle.dumps((optimizer, params)))
    elif how == "deepcopy":
        other, others = copy.deepcopy((optimizer, params))
    else:
        others, state = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict())
        if how == "through PyTorch":
            theirs = getattr(torch.optim, name)(copy.deepcopy(params))
            theirs.load_state_dict(state)
            state = theirs.state_dict() | {"fastvar": state["fastvar"]}
        other = getattr(ours, name)(others)
        other.load_state_dict(state)
    for t in range(3, 5):
        for each, of in ((optimizer, params), (other, others)):
            give_gradients(of, t)
            each.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["ema"], other.state[q]["ema"])
    assert {name: getattr(other, name) for name in KEYWORDS} == KEYWORDS
    assert other.skipped == optimizer.skipped == 1
