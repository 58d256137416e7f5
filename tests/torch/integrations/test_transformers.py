"""The Trainer of transformers makes ours from a class and arguments, and resumes from its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from tests.support.framework_runs import assert_same_bits, assert_trained_alike

MISSING = "{} is not installed: `make integrations` installs it"
transformers = pytest.importorskip("transformers", reason=MISSING.format("transformers"))
pytest.importorskip("accelerate", reason=MISSING.format("Accelerate, which transformers uses,"))
pytestmark = pytest.mark.filterwarnings("default")  # those of transformers
STEPS = 8
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("AdamW", {"lr": 1e-3, "eps": 1e-3}),  # a large eps: biases of keys have no gradient but rounding
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
}


def model() -> Any:
    torch.manual_seed(0)
    of = transformers.GPT2Config(
        vocab_size=32,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(of)


def data() -> list[Any]:
    rows = torch.randint(0, 32, (64, 16), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in rows]


def trained(library: Any, kind: str, folder: Path, resume: Any = None, **options: Any) -> Any:
    """Return the model, its losses and the optimizer."""
    name, arguments = KINDS[kind]
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=STEPS,
        save_steps=STEPS // 2,
        logging_steps=1,
        warmup_steps=2,
        weight_decay=0.1,  # but none of biases: there are two groups
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **options,
    )
    trainer = transformers.Trainer(
        model(), settings, train_dataset=data(), optimizer_cls_and_kwargs=(getattr(library, name), arguments)
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model, [float(loss) for loss in losses], trainer.optimizer.optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_trainer_trains_and_resumes(kind: str, options: Any, tmp_path: Path) -> None:
    mine, losses, optimizer = trained(ours, kind, tmp_path / "ours", **options)
    theirs, wanted, _ = trained(torch.optim, kind, tmp_path / "theirs", **options)
    assert type(optimizer) is getattr(ours, KINDS[kind][0])
    assert len(losses) == optimizer.kernel_steps == STEPS
    assert_trained_alike(mine, theirs, losses, wanted, "bf16" in options)
    checkpoint = str(tmp_path / "ours" / f"checkpoint-{STEPS // 2}")
    again, _, optimizer = trained(ours, kind, tmp_path / "again", checkpoint, **options)
    assert_same_bits(again, mine)
    assert optimizer.kernel_steps == STEPS // 2
