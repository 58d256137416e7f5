"""Accelerate prepares, clips, accumulates, saves and loads ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from tests.support.framework_runs import BATCHES, assert_same_bits, assert_trained_alike, batches, network

accelerate = pytest.importorskip(
    "accelerate", reason="Accelerate is not installed: `make integrations` installs it"
)
pytestmark = pytest.mark.filterwarnings("default")  # those of Accelerate
HALF = BATCHES // 2


@pytest.fixture(autouse=True)
def _state_as_before() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def trained(library: Any, precision: str | None, save: Any = None, resume: Any = None) -> Any:
    """Return network, losses and optimizer after a step for every 2 batches; save or resume half-way."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
    net = network()
    optimizer = library.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    net, optimizer, data, schedule = accelerator.prepare(net, optimizer, batches(), schedule)
    losses = []
    if resume:
        accelerator.load_state(resume)
        data = accelerator.skip_first_batches(data, HALF)
    for t, (x,) in enumerate(data, HALF if resume else 0):
        if t == HALF and save:
            accelerator.save_state(save)
        with accelerator.accumulate(net):
            loss = net(x).square().mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), 0.05)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return net, losses, optimizer.optimizer


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_training_is_that_of_pytorch_and_resumes_bit_for_bit(precision: str | None, tmp_path: Path) -> None:
    mine, losses, optimizer = trained(ours, precision, save=tmp_path)
    theirs, wanted, _ = trained(torch.optim, precision)
    assert_trained_alike(mine, theirs, losses, wanted, precision == "bf16")
    assert optimizer.kernel_steps == BATCHES / 2
    again, _, optimizer = trained(ours, precision, resume=tmp_path)
    assert_same_bits(again, mine)
    assert optimizer.kernel_steps == HALF / 2
