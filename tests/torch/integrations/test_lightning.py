"""Lightning's Trainer steps ours: with clipping, precisions, accumulation, two optimizers and a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from tests.support.framework_runs import BATCHES, assert_same_bits, assert_trained_alike, batches, network

MISSING = "Lightning is not installed: `make integrations` installs it"
lightning = pytest.importorskip("lightning", reason=MISSING)
pytestmark = pytest.mark.filterwarnings("default")  # those of Lightning
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
EPOCHS = 2


class Module(lightning.LightningModule):
    """A network trained by an optimizer of the given library."""

    def __init__(self, library: Any, **options: Any) -> None:
        super().__init__()
        self.net, self.losses = network(), []
        self.library, self.options = library, options

    def configure_optimizers(self) -> Any:
        optimizer = self.library.AdamW(self.net.parameters(), lr=0.01, **self.options)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def training_step(self, batch: Any, number: int) -> Any:
        loss = self.net(batch[0]).square().mean()
        self.losses.append(loss.item())
        return loss


class Alternating(Module):
    """Two optimizers, stepped by hand."""

    automatic_optimization = False  # type: ignore[assignment]

    def configure_optimizers(self) -> Any:
        return [self.library.SGD(layer.parameters(), lr=0.1, momentum=0.9) for layer in (self.net[0], self.net[2])]

    def training_step(self, batch: Any, number: int) -> None:
        optimizer = self.optimizers()[number % 2]
        optimizer.zero_grad()
        loss = self.net(batch[0]).square().mean()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 0.05, "norm")
        optimizer.step()
        self.losses.append(loss.item())


def trained(module: Any, epochs: int = EPOCHS, resume: Any = None, **options: Any) -> Any:
    """Return the trainer, after training."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, batches(), ckpt_path=resume)
    return trainer


SETTINGS: dict[str, Any] = {
    "plain": {},
    "norm": {"gradient_clip_val": 0.05},
    "value": {"gradient_clip_val": 0.005, "gradient_clip_algorithm": "value"},
    "float64": {"precision": "64-true", "gradient_clip_val": 0.05},
    "bfloat16": {"precision": "bf16-mixed", "gradient_clip_val": 0.05},
    "accumulation": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_trainer_with(setting: str) -> None:
    options = SETTINGS[setting]
    mine, theirs = Module(ours), Module(torch.optim)
    trainer = trained(mine, **options)
    trained(theirs, **options)
    assert_trained_alike(mine, theirs, mine.losses, theirs.losses, setting == "bfloat16")
    assert trainer.optimizers[0].kernel_steps == EPOCHS * BATCHES / options.get("accumulate_grad_batches", 1)


def test_fused_optimizers_with_a_scale_are_not_clipped_as_with_pytorch() -> None:
    for library in (ours, torch.optim):
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            trained(Module(library, fused=True), precision="bf16-mixed", gradient_clip_val=0.05)


def test_optimizers_stepped_by_hand() -> None:
    mine, theirs = Alternating(ours), Alternating(torch.optim)
    trainer = trained(mine)
    trained(theirs)
    assert_trained_alike(mine, theirs, mine.losses, theirs.losses)
    assert [each.kernel_steps for each in trainer.optimizers] == [EPOCHS * BATCHES / 2] * 2


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, half, resumed = Module(ours), Module(ours), Module(ours)
    trained(whole)
    trained(half, epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    trainer = trained(resumed, resume=tmp_path / "half.ckpt")
    assert_same_bits(resumed, whole)
    assert trainer.optimizers[0].kernel_steps == BATCHES


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_parameters_in_16_bits(precision: Any) -> None:
    module = Module(ours)
    trainer = trained(module, precision=precision, gradient_clip_val=0.05)
    assert trainer.optimizers[0].kernel_steps == EPOCHS * BATCHES
    assert module.losses[-1] < module.losses[0]
    assert all("master" in state for state in trainer.optimizers[0].state.values())
