"""Torch parameters of 16 bits for tests, and copies of them in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from tests.support.torch_tensors import CLASSES, MEASURING

DTYPES = [torch.bfloat16, torch.float16]
SHAPES = [(40, 131), (70,), (2, 3, 4, 5), (30, 20)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY = [*CLASSES, *MEASURING]
KEPT = {torch.bfloat16: torch.int16, torch.float16: torch.float32}


def parameters(dtype: Any, name: str = "Adam") -> list[Any]:
    """Return parameters that a class can update: contiguous, channels last and transposed."""
    made = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=made).to(dtype) for shape in SHAPES]
    drawn[2] = drawn[2].to(memory_format=torch.channels_last)
    drawn[3] = drawn[3].t().contiguous().t()
    return [torch.nn.Parameter(x) for x in drawn if name != "Muon" or x.ndim == 2]


def copies(params: list[Any]) -> list[Any]:
    """Return parameters of float32 with the same numbers."""
    return [torch.nn.Parameter(p.detach().float()) for p in params]


def step(optimizer: Any, params: list[Any], start: int = 0, count: int = 3, dtype: Any = None) -> None:
    """Step with gradients that are the same numbers for parameters of every dtype."""
    for t in range(start, start + count):
        made = torch.Generator().manual_seed(1000 + t)
        for p in params:
            drawn = torch.randn(p.shape, generator=made).to(dtype or p.dtype)
            p.grad = torch.empty_like(p, requires_grad=False).copy_(drawn)
        optimizer.step()


def make(name: str, params: list[Any], **keywords: Any) -> Any:
    return getattr(ours, name)(params, lr=0.01, **keywords)


def numbers(optimizer: Any, p: Any) -> Any:
    """Return the numbers of float32 with which rules compute."""
    rest = optimizer.state[p]["master"]
    assert (rest.dtype, rest.stride()) == (KEPT[p.dtype], p.stride())
    if p.dtype is torch.float16:
        return rest
    return ((p.detach().view(torch.int16).int() << 16) + rest.int()).view(torch.float32)


def rounded(x: Any, dtype: Any) -> Any:
    """Round to nearest; in bfloat16, ties away from 0."""
    if dtype is torch.float16:
        return x.to(dtype)
    return ((x.view(torch.int32) + 0x8000) >> 16).to(torch.int16).view(dtype)


def assert_masters_are(optimizer: Any, params: list[Any], expected: list[Any]) -> None:
    for p, q in zip(params, expected, strict=True):
        assert torch.equal(numbers(optimizer, p), q.detach())
        assert torch.equal(p.detach(), rounded(q.detach(), p.dtype))


def assert_same(pairs: list[tuple[Any, list[Any]]]) -> None:
    """Compare the bits of the parameters of several optimizers, and of their states."""
    (first, params), *others = pairs
    for other, twins in others:
        for p, q in zip(params, twins, strict=True):
            assert torch.equal(p, q)
            assert first.state[p].keys() == other.state[q].keys()
            for name, x in first.state[p].items():
                assert x.dtype == other.state[q][name].dtype
                assert torch.equal(x, other.state[q][name]), name
