"""SGD and Adagrad with sparse gradients beside PyTorch's, among dense ones too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from tests.support import torch_tensors
from tests.support.torch_sparse import give_gradients, parameters
from tests.support.torch_tensors import assert_same, exchange_states, with_grad_dtype

STEPS = 12
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("SGD", {"lr": torch.tensor(0.1), "dampening": 0.5}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.5, "maximize": True}),
    ("Adagrad", {"initial_accumulator_value": 0.1, "eps": 1e-4}),
]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
every_case = pytest.mark.parametrize(("name", "kwargs"), CASES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
both = pytest.mark.parametrize("name", ["SGD", "Adagrad"])


def give(params: list[Any], t: int) -> None:
    """Give sparse gradients, and a dense one to the last parameter, which has a sparse one at every third step."""
    give_gradients(params[:-1], t)
    if t % 3:
        torch_tensors.give_gradients(params[-1:], t)
    else:
        give_gradients(params[-1:], t)


def several(dtype: Any) -> list[Any]:
    return [*parameters(dtype), torch.nn.Parameter(torch.ones(4, 3, dtype=dtype))]


def made(name: str, kwargs: dict[str, Any], dtype: Any) -> Any:
    mine, theirs = several(dtype), several(dtype)
    return (getattr(ours, name)(mine, **kwargs), mine), (
        getattr(torch.optim, name)(theirs, foreach=False, **kwargs),
        theirs,
    )


def step(pairs: Any, t: int) -> None:
    for optimizer, params in pairs:
        give(params, t)
        optimizer.step()
    assert_same(*pairs[0], *pairs[1], f"step {t}")


@every_dtype
@every_case
def test_steps_beside_pytorch(name: str, kwargs: dict[str, Any], dtype: Any) -> None:
    pairs = made(name, kwargs, dtype)
    for t in range(STEPS):
        step(pairs, t)
    assert pairs[0][0].kernel_steps == STEPS


@every_dtype
@every_case
def test_states_are_exchanged(name: str, kwargs: dict[str, Any], dtype: Any) -> None:
    pairs = made(name, kwargs, dtype)
    for t in range(STEPS):
        if t == STEPS // 2:
            again = made(name, kwargs, dtype)
            exchange_states(pairs, again)
            pairs = again
        step(pairs, t)


@both
@pytest.mark.parametrize("begun", [False, True])
def test_embeddings_are_trained_with_dense_layers(name: str, begun: bool) -> None:
    def net() -> Any:
        torch.manual_seed(0)
        return torch.nn.ModuleDict(
            {"rows": torch.nn.Embedding(50, 4, sparse=True), "out": torch.nn.Linear(4, 2).to(torch.float32)}
        )

    mine, theirs = net(), net()
    optimizer, other = (
        getattr(ours, name)(mine.parameters(), lr=0.1),
        getattr(torch.optim, name)(theirs.parameters(), lr=0.1),
    )
    before = mine["rows"].weight.detach().clone()
    for t in range(4):
        for each, of in ((optimizer, mine), (other, theirs)):
            of.zero_grad()
            rows = of["rows"](torch.tensor([3, 40, 3]))
            of["out"](rows.detach() if begun and t < 2 else rows).square().sum().backward()  # first dense alone
            each.step()
        assert_same(optimizer, [*mine.parameters()], other, [*theirs.parameters()], f"step {t}")
    assert (mine["rows"].weight != before).any(dim=1).nonzero().flatten().tolist() == [3, 40]
    assert ours.explain(optimizer).refused == []
    assert optimizer.kernel_steps == 4


@with_grad_dtype
@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_16_bits_are_read(name: str, dtype: Any) -> None:
    results = []
    for given in (dtype, torch.float32):
        rows, dense = (torch.nn.Parameter(torch.ones(5, 2)) for _ in range(2))
        rows.grad_dtype = dense.grad_dtype = given
        rows.grad = torch.sparse_coo_tensor(torch.tensor([[1, 3]]), torch.full((2, 2), 0.5), (5, 2)).to(given)
        dense.grad = torch.full((5, 2), 0.25, dtype=given)
        getattr(ours, name)([rows, dense]).step()
        results += [rows, dense]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


@both
def test_dense_parameters_may_lie_transposed(name: str) -> None:
    results = []
    for optimizers in (ours, torch.optim):
        rows, dense = torch.nn.Parameter(torch.ones(5, 2)), torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
        optimizer = getattr(optimizers, name)([rows, dense], lr=0.1)
        for t in range(3):
            give_gradients([rows], t + 1)
            dense.grad = torch.arange(6.0).reshape(3, 2)
            optimizer.step()
        results.append((optimizer, [rows, dense]))
    assert results[0][1][1].stride() == (1, 3)
    assert_same(*results[0], *results[1], name)


def sparse(shape: Any, **kwargs: Any) -> Any:
    return torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones((1, *shape[1:])), shape, **kwargs)


REFUSED: dict[str, Any] = {
    "weight_decay": (
        "SGD",
        {"weight_decay": 0.1},
        RuntimeError,
        "weight_decay option is not compatible with sparse",
    ),
    "weight_decay of Adagrad": (
        "Adagrad",
        {"weight_decay": 0.1},
        RuntimeError,
        "weight_decay option is not compatible",
    ),
    "momentum": (
        "SGD",
        {"momentum": 0.9},
        RuntimeError,
        "momentum must be 0, as the gradient of parameter 1 is sparse",
    ),
    "complex": ("SGD", {}, TypeError, "gradient of parameter 1 must be sparse .*, real numbers"),
    "indices": ("SGD", {}, ValueError, "gradient of parameter 1 must have the shape .* and indices within it"),
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[with_grad_dtype] * (k == "complex")) for k in REFUSED])
def test_refused_steps_change_nothing(kind: str, begun: bool) -> None:
    name, kwargs, error, message = REFUSED[kind]
    first, p = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = getattr(ours, name)([first, p], **kwargs)
    first.grad = torch.ones(3)
    if begun:
        p.grad = torch.ones_like(p)
        optimizer.step()
    p.grad = None
    if kind == "complex":
        p.grad_dtype = None
    p.grad = sparse((3, 2), dtype=torch.complex64) if kind == "complex" else sparse((3, 2))
    if kind == "indices":
        with torch.sparse.check_sparse_tensor_invariants(False):
            p.grad = torch.ops.aten._sparse_coo_tensor_unsafe(torch.tensor([[3]]), torch.ones(1, 2), p.shape)
    weights = [x.detach().clone() for x in (first, p)]
    state, versions = copy.deepcopy(optimizer.state_dict()["state"]), [first._version, p._version]
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        optimizer.step()
    assert ours.explain(optimizer).refused
    assert all(torch.equal(a, b) for a, b in zip((first, p), weights, strict=True))
    assert str(optimizer.state_dict()["state"]) == str(state)
    assert [first._version, p._version] == versions


@both
def test_weight_decay_is_refused_as_by_pytorch(name: str) -> None:
    p = torch.nn.Parameter(torch.zeros(3, 2))
    p.grad = sparse((3, 2))
    for optimizers in (ours, torch.optim):
        with pytest.raises(RuntimeError):
            getattr(optimizers, name)([p], weight_decay=0.1).step()


def test_options_that_change_later_are_checked() -> None:
    p = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = ours.SGD([p], lr=0.1)
    p.grad = sparse((3, 2))
    optimizer.step()
    before = p.detach().clone()
    optimizer.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(RuntimeError, match="weight_decay option"):
        optimizer.step()
    assert torch.equal(p, before)
