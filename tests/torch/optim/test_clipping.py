"""`max_grad_norm` beside `clip_grad_norm_`, on every class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

import fastvar.torch.optim as ours
from tests.support.torch_tensors import (
    HERE,
    MEASURING,
    NAMES,
    assert_close,
    assert_same,
    give_gradients,
    parameters,
    parameters_of,
    plain,
)


def options_of(name: str) -> list[dict[str, Any]]:
    """Return the options with which PyTorch tests weight decay and maximization."""
    info = next(info for info in HERE if info.optim_cls.__name__ == name)
    every = [dict(given.kwargs) for given in info.optim_inputs_func(device="cpu")]
    return [{}, *(kwargs for kwargs in every if {"weight_decay", "maximize"} & kwargs.keys())]


@pytest.mark.parametrize("most", [0.5, 100.0])
@pytest.mark.parametrize("name", [*NAMES, *MEASURING])
def test_clipping_is_that_of_pytorch(name: str, most: float) -> None:
    for kwargs in options_of(name):
        mine, theirs = parameters_of(name), parameters_of(name)
        groups = [{"params": mine[:2]}, {"params": mine[2:], "lr": 0.02}]
        optimizer = getattr(ours, name)(groups, **kwargs, max_grad_norm=most)
        groups = [{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.02}]
        other = getattr(torch.optim, name)(groups, **{**plain(name), **kwargs})
        for t in range(5):
            for params in (mine, theirs):
                give_gradients(params, t, missing=[t, 4])
            before = [None if p.grad is None else p.grad.clone() for p in mine]
            optimizer.step()
            norm = clip_grad_norm_(theirs, most)
            other.step()
            assert_same(optimizer, mine, other, theirs, f"{kwargs}, step {t}")
            assert abs(optimizer.grad_norm - norm.item()) <= 1e-6 * norm.item()
            for p, grad in zip(mine, before, strict=True):
                assert (p.grad is None and grad is None) or torch.equal(p.grad, grad)
        assert optimizer.kernel_steps == 5


@pytest.mark.parametrize("name", ours.native.__all__)
def test_clipping_of_other_classes_is_that_of_their_gradients(name: str) -> None:
    mine, theirs = parameters(), parameters()
    optimizer, other = getattr(ours, name)(mine, max_grad_norm=0.5), getattr(ours, name)(theirs)
    for t in range(5):
        for params in (mine, theirs):
            give_gradients(params, t)
        optimizer.step()
        clip_grad_norm_(theirs, 0.5)
        other.step()
        assert_same(optimizer, mine, other, theirs, f"step {t}")


def test_clipping_may_change_between_steps() -> None:
    mine, theirs = parameters(), parameters()
    optimizer, other = ours.SGD(mine, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    for t, most in enumerate([None, 0.5, 0.1, None]):
        optimizer.max_grad_norm = most
        for params in (mine, theirs):
            give_gradients(params, t)
        optimizer.step()
        if most is not None:
            clip_grad_norm_(theirs, most)
        other.step()
        assert_same(optimizer, mine, other, theirs, f"step {t}")


def test_norm_is_of_unscaled_gradients() -> None:
    mine, theirs = parameters(), parameters()
    optimizer = ours.Adam(mine, fused=True, max_grad_norm=0.5)
    other = torch.optim.Adam(theirs, fused=True)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    for t in range(3):
        for each, params, scaler in zip((optimizer, other), (mine, theirs), scalers, strict=True):
            scaler.scale(torch.ones(()))
            give_gradients(params, t)
            for p in params:
                p.grad *= scaler.get_scale()
            if each is other:
                scaler.unscale_(other)
                clip_grad_norm_(theirs, 0.5)
            scaler.step(each)
            scaler.update()
        assert_same(optimizer, mine, other, theirs, f"step {t}")


def test_norm_is_right_where_squares_overflow() -> None:
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = ours.SGD([p], lr=1.0, max_grad_norm=1.0)
    p.grad = torch.full((4,), 1e200, dtype=torch.float64)
    optimizer.step()
    assert_close(p, torch.full((4,), -0.5, dtype=torch.float64), "clipped")
    assert optimizer.grad_norm == 2e200


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_clipping_of_bad_gradients_is_that_of_pytorch(bad: float) -> None:
    mine, theirs = parameters(), parameters()
    optimizer, other = ours.SGD(mine, lr=0.1, max_grad_norm=0.5), torch.optim.SGD(theirs, lr=0.1)
    for params in (mine, theirs):
        give_gradients(params, 0)
        params[0].grad[0, 0] = bad
    optimizer.step()
    clip_grad_norm_(theirs, 0.5)
    other.step()
    for p, q in zip(mine, theirs, strict=True):
        assert torch.equal(p.isfinite(), q.isfinite())
