"""Parameters with sparse gradients, and comparisons, for tests of `fastvar.torch.optim`."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.torch_tensors import assert_close

SHAPES = [(7, 3), (5,), (20, 4, 2)]


def parameters(dtype: Any = torch.float32) -> list[Any]:
    made = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=made, dtype=torch.float64).to(dtype)) for s in SHAPES]


def give_gradients(params: list[Any], t: int) -> None:
    """Give parameters the sparse gradients of a step: up to 5 entries, uncoalesced, or none."""
    made = torch.Generator().manual_seed(1000 + t)
    for k, p in enumerate(params):
        axes = 2 if k == 2 and t >= 10 else 1
        count = (t + k) % 6
        at = torch.stack([torch.randint(0, p.shape[j], (count,), generator=made) for j in range(axes)])
        values = torch.randn((count, *p.shape[axes:]), generator=made, dtype=torch.float64).to(p.dtype)
        p.grad = None if (t + k) % 5 == 4 else torch.sparse_coo_tensor(at, values, p.shape)


def assert_same(mine: Any, params: list[Any], other: Any, theirs: list[Any], what: str) -> None:
    rounded = 1e-8 if isinstance(mine.param_groups[0]["lr"], torch.Tensor) else 0  # PyTorch keeps its dtype
    for p, q in zip(params, theirs, strict=True):
        assert_close(p, q, what, rounded)
        state, wanted = mine.state.get(p, {}), other.state.get(q, {})
        assert state.keys() == wanted.keys()
        for name, x in state.items():
            if name == "step":
                assert (type(x), x) == (int, wanted[name])
            else:
                assert_close(x, wanted[name], f"{what}: {name}")
