"""Adafactor and Muon of fastvar.torch beside those of PyTorch: 20 steps of every option."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import fastvar as fv
import fastvar.torch
from tests.support.torch_cases import LEFT_OUT, OF_MATRICES, make

STEPS = 20
BOUND = 100  # units in the last place, see torch_steps.py
IN_BFLOAT16 = 2**-5  # of a step; PyTorch iterates with 8 bits
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "Adafactor": [(7, 5), (5,), (), (2, 3, 4), (1, 6), (6, 1), (300, 70), (1,)],
    "Muon": [(7, 5), (4, 6), (5, 5), (1, 3), (3, 1)],
}
CASES = [(name, options) for name, every in OF_MATRICES.items() for options in every if hasattr(torch.optim, name)]
IDS = [f"{name}-{','.join(f'{k}={v}' for k, v in options.items())}" for name, options in CASES]
every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def follow(name: str, options: dict[str, Any], dtype: str, scale: float = 1, missing: bool = False) -> None:
    """Compare 20 steps with PyTorch's. A row of each matrix never has a gradient."""
    rng = np.random.default_rng(2)
    ours = [fv.Variable(rng.standard_normal(shape), dtype=dtype) for shape in SHAPES[name]]
    theirs = [torch.nn.Parameter(torch.tensor(v.value)) for v in ours]
    mine, other = make(name, ours, **options), getattr(torch.optim, name)(theirs, **options)
    units = BOUND * np.finfo(dtype).eps
    for t in range(STEPS):
        for i, (v, p) in enumerate(zip(ours, theirs, strict=True)):
            v.grad = (scale * rng.standard_normal(v.shape)).astype(dtype)
            if v.ndim > 1 and len(v) > 1:
                v.grad[0] = 0
            if missing and (t + i) % 3 == 0:
                v.grad = None
            p.grad = None if v.grad is None else torch.tensor(v.grad)
        mine.step()
        other.step()
        moved = IN_BFLOAT16 * (t + 1) * options.get("lr", 1e-3) if name == "Muon" else 0
        for v, p in zip(ours, theirs, strict=True):
            values = p.detach().numpy()
            moved_most = moved * (0.2 * max(v.shape) + 1) if v.ndim > 1 else 0
            assert (np.abs(v.value - values) <= units * np.maximum(1, np.abs(values)) + moved_most).all(), t
            for slot, x in other.state[p].items():
                if slot != "step":
                    most = x.abs().max().item()
                    assert np.abs(mine.slot(v, slot).value - x.numpy()).max() <= units * most, (t, slot)


@every_case
@every_dtype
def test_means_what_pytorch_means(name: str, options: dict[str, Any], dtype: str) -> None:
    follow(name, options, dtype)


@every_case
@every_dtype
def test_updates_are_counted_for_each_variable(name: str, options: dict[str, Any], dtype: str) -> None:
    follow(name, options, dtype, missing=True)


@pytest.mark.parametrize("scale", [1e-8, 1e-17, 1e6])
@every_dtype
def test_gradients_below_and_above_the_floor_of_adafactor(scale: float, dtype: str) -> None:
    follow("Adafactor", {"lr": 0.1}, dtype, scale)


def test_groups_and_a_schedule() -> None:
    rng = np.random.default_rng(3)
    together = [fv.Variable(rng.standard_normal((4, 3))) for _ in range(2)]
    apart = [fv.Variable(v.value) for v in together]
    rate = fv.schedules.CosineDecay(0.5, 10)
    one = fv.torch.Adafactor(
        [{"params": together[:1]}, {"params": together[1:], "lr": 0.1, "eps": (0.5, 0.1)}], rate
    )
    others = [fv.torch.Adafactor(apart[:1], rate), fv.torch.Adafactor(apart[1:], 0.1, eps=(0.5, 0.1))]
    for _ in range(5):
        grads = [rng.standard_normal((4, 3)) for _ in range(2)]
        one.apply(grads)
        for optimizer, gradient in zip(others, grads, strict=True):
            optimizer.apply([gradient])
    for v, w in zip(together, apart, strict=True):
        assert v.value.tobytes() == w.value.tobytes()


def test_muon_takes_only_matrices() -> None:
    w = fv.Variable(np.ones((2, 2)))
    with pytest.raises(ValueError, match="Muon: 'bias' must have two axes, got 1"):
        fv.torch.Muon([w, fv.Variable([1.0], name="bias")])
    with pytest.raises(ValueError, match="Muon: ns_coefficients must be three numbers"):
        fv.torch.Muon([w], ns_coefficients=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"Muon: adjust_lr_fn must be 'original' or .*, got 'other'"):
        fv.torch.Muon([w], adjust_lr_fn="other")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_arguments_of_muon_are_pytorchs() -> None:
    theirs = inspect.signature(torch.optim.Muon).parameters
    ours = inspect.signature(fv.torch.Muon).parameters
    assert [*ours][: len(theirs)] == [*theirs]
    assert all(ours[k].default == p.default for k, p in theirs.items() if k not in LEFT_OUT and k != "params")
