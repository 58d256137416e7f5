"""Parameters, gradients and comparisons for tests of `fastvar.torch.optim`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing._internal.common_optimizers import optim_db

import fastvar.torch.optim as ours

SHAPES = [(7, 3), (5,), (), (2, 3, 4), (0, 3)]
SHAPES_OF = {
    "Adafactor": SHAPES[:-1],
    "Muon": [(7, 3), (4, 6), (5, 5)],
}  # PyTorch's divide by a size of 0, or want matrices
BOUND = 100  # units in the last place, see test_meaning.py
IN_BFLOAT16 = 20 * 2**-5  # of 20 steps of Muon; PyTorch iterates with 8 bits
DENSE = [info for info in optim_db if not info.only_supports_sparse_grads]  # see test_sparse.py for the other
HERE = [info for info in DENSE if info.optim_cls.__name__ in ours.classes.__all__]
CASES = [(info.optim_cls.__name__, dict(i.kwargs)) for info in HERE for i in info.optim_inputs_func(device="cpu")]
IDS = [f"{name}-{','.join(f'{k}={v}' for k, v in kwargs.items()) or 'default'}" for name, kwargs in CASES]
EVERY = [info.optim_cls.__name__ for info in HERE]
NAMES = [name for name in EVERY if name not in SHAPES_OF]
MEASURING = [name for name in SHAPES_OF if hasattr(ours, name)]
CLASSES = [*NAMES, *ours.native.__all__]
with_grad_dtype = pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="gradients have the dtype of parameters in this PyTorch"
)


def parameters_of(name: str, dtype: Any = torch.float32) -> list[Any]:
    """Return parameters that PyTorch's class can update."""
    return parameters(dtype, SHAPES_OF.get(name, SHAPES))


def plain(name: str) -> dict[str, Any]:
    """Return the options with which PyTorch runs its plain loop."""
    info = next(info for info in HERE if info.optim_cls.__name__ == name)
    return {"foreach": False} if "foreach" in info.supported_impls else {}


def parameters(dtype: Any = torch.float32, shapes: Any = SHAPES, seed: int = 0) -> list[Any]:
    made = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=made, dtype=torch.float64) for shape in shapes]
    return [torch.nn.Parameter(of.to(dtype)) for of in values]


def give_gradients(params: list[Any], t: int, missing: Any = ()) -> None:
    """Give parameters the gradients of a step, the same for all who are given those of step t."""
    made = torch.Generator().manual_seed(1000 + t)
    for i, p in enumerate(params):
        gradient = torch.randn(p.shape, generator=made, dtype=torch.float64).to(p.dtype)
        p.grad = None if i in missing else torch.empty_like(p, requires_grad=False).copy_(gradient)


def assert_close(mine: Any, other: Any, what: str, more: float = 0) -> None:
    a, b = mine.detach().double().numpy(), other.detach().double().numpy()
    assert a.shape == b.shape, what
    eps = torch.finfo(other.dtype).eps
    bound = BOUND * eps * np.maximum(1, np.abs(b).max(initial=0)) + more
    np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=what)


def assert_same(mine: Any, ours_params: list[Any], other: Any, theirs: list[Any], what: str) -> None:
    """Compare parameters and states of two optimizers."""
    rate = max(float(group["lr"]) for group in mine.param_groups)
    in_bfloat16 = IN_BFLOAT16 * rate if isinstance(mine, getattr(ours, "Muon", ())) else 0
    for k, (p, q) in enumerate(zip(ours_params, theirs, strict=True)):
        assert_close(p, q, f"{what}: parameter {k}", in_bfloat16)
        state, wanted = mine.state.get(p, {}), other.state.get(q, {})
        assert state.keys() == {name for name, x in wanted.items() if x is not None}, what
        for name, x in state.items():
            assert x.dtype == wanted[name].dtype, name
            assert_close(x, wanted[name], f"{what}: {name} of parameter {k}")


def exchange_states(pairs: Any, again: Any) -> None:
    """Let each new optimizer go on, from a file, where the other old one stood."""
    for (new, fresh), (old, before) in zip(again, reversed(pairs), strict=True):
        file = io.BytesIO()
        torch.save(old.state_dict(), file)
        file.seek(0)
        new.load_state_dict(torch.load(file, weights_only=True))
        for p, q in zip(fresh, before, strict=True):
            p.data.copy_(q.data)


def bytes_of(optimizer: Any, params: list[Any]) -> Any:
    """Return all that a refused step must not change."""
    state = [(id(p), name, x.tolist()) for p, of in optimizer.state.items() for name, x in of.items()]
    return [p.tolist() for p in params], state
