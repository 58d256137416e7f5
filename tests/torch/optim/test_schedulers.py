"""Every scheduler of PyTorch sets the rates of our steps as it does those of PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lr
from torch.optim.swa_utils import SWALR

import fastvar.torch.optim as ours
from tests.support.torch_tensors import assert_same, give_gradients, parameters

STEPS = 8
SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: lr.LambdaLR(o, lambda t: 0.5**t),
    "MultiplicativeLR": lambda o: lr.MultiplicativeLR(o, lambda t: 0.5 if t % 2 else 1.5),
    "StepLR": lambda o: lr.StepLR(o, 2),
    "MultiStepLR": lambda o: lr.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: lr.ExponentialLR(o, 0.75),
    "SequentialLR": lambda o: lr.SequentialLR(o, [lr.LinearLR(o, 0.25), lr.ExponentialLR(o, 0.5)], [3]),
    "CosineAnnealingLR": lambda o: lr.CosineAnnealingLR(o, 5),
    "ChainedScheduler": lambda o: lr.ChainedScheduler([lr.ConstantLR(o, 0.5, 3), lr.ExponentialLR(o, 0.75)]),
    "ReduceLROnPlateau": lambda o: lr.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr.CyclicLR(o, 0.01, 0.1, 2),  # also sets the momentum, or a beta
    "CosineAnnealingWarmRestarts": lambda o: lr.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr.OneCycleLR(o, 0.1, 10),  # this, too
    "PolynomialLR": lambda o: lr.PolynomialLR(o, 5),
    "SWALR": lambda o: SWALR(o, 0.01, 3),
}


def test_every_scheduler_is_here() -> None:
    assert SCHEDULERS.keys() == {*lr.__all__, "SWALR"} - {"LRScheduler"}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR of PyTorch 2.6
@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_schedulers(kind: str, name: str) -> None:
    mine, theirs = parameters(), parameters()
    options = {"momentum": 0.9} if name == "SGD" else {}
    pairs = [
        (getattr(ours, name)(mine, lr=0.1, **options), mine),
        (getattr(torch.optim, name)(theirs, lr=0.1, **options, foreach=False), theirs),
    ]
    schedulers = [SCHEDULERS[kind](optimizer) for optimizer, _ in pairs]
    rates = set()
    for t in range(STEPS):
        for (optimizer, params), scheduler in zip(pairs, schedulers, strict=True):
            give_gradients(params, t)
            optimizer.step()
            rates.add(optimizer.param_groups[0]["lr"])
            scheduler.step(*[1.0] * (kind == "ReduceLROnPlateau"))
    assert len(rates) > 1
    assert_same(pairs[0][0], mine, pairs[1][0], theirs, kind)
    assert pairs[0][0].kernel_steps == STEPS
