"""Checkpoints of PyTorch's optimizers, schedulers and generators resume training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastvar as fv
import fastvar.torch.optim as ours
from fastvar.checkpoint import pytorch
from tests.support.torch_training import contents, everything, module, started, train

IN_KERNELS = [name for name in ours.__all__ if hasattr(getattr(ours, name), "rule_class")]
OF_PYTORCH = ["SGD", "Adam", "NAdam", "ASGD", "Adadelta", "Adafactor", "LBFGS", "Rprop"]
CLASSES = [*(getattr(ours, name) for name in IN_KERNELS), *(getattr(torch.optim, name) for name in OF_PYTORCH)]


class Rows(nn.Module):
    """Rows of a table, which have sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 3, sparse=True)

    def forward(self, x: Any) -> Any:
        return self.table((9 * x).long() % 20)


def module_for(make: Any) -> Any:
    """Return a module that optimizers of a class can train."""
    torch.manual_seed(0)
    if make.__name__ == "SparseAdam":
        return Rows()
    if make.__name__ == "Muon":  # matrices alone
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 4, bias=False), nn.Linear(4, 2, bias=False))
    return module(layout=torch.contiguous_format if make.__name__ == "LBFGS" else torch.channels_last)


@pytest.mark.parametrize("names", [True, False], ids=["names", "numbers"])
@pytest.mark.parametrize("make", CLASSES, ids=lambda c: f"{c.__module__.partition('.')[0]}-{c.__name__}")
def test_training_resumes_bit_for_bit(make: Any, names: bool, tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        net = module_for(make)
        optimizer = make(net.named_parameters() if names else net.parameters(), lr=0.01)
        schedule = ours.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        runs.append((net, optimizer, schedule))
    (net, optimizer, schedule), (net2, optimizer2, schedule2) = runs
    train(net, optimizer, 5, schedule)
    path = fv.Checkpoint(net, optimizer=optimizer, schedule=schedule).save(tmp_path / "a.h5")
    saved = everything(net, optimizer, schedule)
    train(net, optimizer, 5, schedule)
    fv.Checkpoint(net2, optimizer=optimizer2, schedule=schedule2).restore(path)
    assert everything(net2, optimizer2, schedule2) == saved
    train(net2, optimizer2, 5, schedule2)
    assert everything(net2, optimizer2, schedule2) == everything(net, optimizer, schedule)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: ours.lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "StepLR": lambda o: ours.lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: ours.lr_scheduler.MultiStepLR(o, [2, 4, 7]),
    "OneCycleLR": lambda o: ours.lr_scheduler.OneCycleLR(o, 0.1, total_steps=30),
    "CyclicLR": lambda o: ours.lr_scheduler.CyclicLR(o, 0.001, 0.1),
    "SequentialLR": lambda o: ours.lr_scheduler.SequentialLR(
        o, [ours.lr_scheduler.ConstantLR(o), ours.lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_resume(kind: str, tmp_path: Path) -> None:
    net, other = module(), module()
    mine, theirs = ours.SGD(net.parameters(), lr=0.01), ours.SGD(other.parameters(), lr=0.01)
    one, two = SCHEDULES[kind](mine), SCHEDULES[kind](theirs)
    train(net, mine, 3, one)
    path = fv.Checkpoint(net, optimizer=mine, schedule=one).save(tmp_path / "a.h5")
    fv.Checkpoint(other, optimizer=theirs, schedule=two).restore(path)
    for run in ((net, mine, 6, one), (other, theirs, 6, two)):
        train(*run)
    assert everything(net, mine, one) == everything(other, theirs, two)


@pytest.mark.parametrize("blocking", [True, False])
def test_managers_save_and_restore(blocking: bool, tmp_path: Path) -> None:
    net, fresh = module(), module()
    optimizer = ours.AdamW(net.named_parameters(), lr=0.01)
    state = fv.Checkpoint(net=net, optimizer=optimizer)
    with fv.CheckpointManager(state, tmp_path, max_to_keep=2) as manager:
        for step in range(4):
            train(net, optimizer, 1)
            manager.save(step, blocking=blocking)
            if step == 3:
                saved = everything(net, optimizer)
                train(net, optimizer, 1)  # a save in the background holds a copy
        manager.wait()
        assert len(manager.checkpoints) == 2
    again = ours.AdamW(fresh.named_parameters(), lr=0.01)
    with fv.CheckpointManager(fv.Checkpoint(net=fresh, optimizer=again), tmp_path) as manager:
        assert manager.restore_or_initialize() is not None
    assert everything(fresh, again) == saved


def test_hyperparameters_are_those_of_the_file_or_of_the_program(tmp_path: Path) -> None:
    net, optimizer = started(steps=1)
    path = fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.h5")
    for choice, rate in (("program", 0.25), ("saved", 0.5)):
        optimizer.param_groups[0]["lr"] = 0.25
        optimizer.param_groups[0]["betas"] = (0.5, 0.5)
        report = fv.Checkpoint(net, optimizer=optimizer).restore(path, hyperparameters=choice)
        assert report.hyperparameters == [
            "optimizer.param_groups[0]['lr']: 0.25 here, 0.5 in the file",
            "optimizer.param_groups[0]['betas']: (0.5, 0.5) here, (0.9, 0.999) in the file",
        ]
        assert optimizer.param_groups[0]["lr"] == rate


class Noting(torch.optim.SGD):
    """An optimizer whose `state_dict` has entries of its own."""

    notes: Any = ()

    def state_dict(self) -> Any:
        return super().state_dict() | {"notes": {"calls": self.notes, "mean": torch.ones(2)}}

    def load_state_dict(self, state_dict: Any) -> None:
        self.notes = state_dict["notes"]["calls"]
        assert torch.equal(state_dict["notes"]["mean"], torch.ones(2))
        super().load_state_dict(state_dict)


def test_other_entries_of_a_state_are_stored(tmp_path: Path) -> None:
    net = module()
    optimizer = Noting(net.parameters(), lr=0.1)
    optimizer.notes = (1, 2)
    fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.ckpt")
    for hyperparameters, notes in (("saved", (1, 2)), ("program", (3,))):
        optimizer.notes = (3,)
        fv.Checkpoint(net, optimizer=optimizer).restore(tmp_path / "a.ckpt", hyperparameters=hyperparameters)
        assert optimizer.notes == notes


def test_keywords_of_ours_resume_with_averages(tmp_path: Path) -> None:
    keywords: Any = {"max_grad_norm": 0.5, "ema": 0.75, "nonfinite": "skip"}
    net = module()
    optimizer = ours.Adam(net.parameters(), **keywords)
    train(net, optimizer, 2)
    optimizer.skipped = 3
    fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.ckpt")
    train(net, optimizer, 2)
    for hyperparameters in ("saved", "program"):
        other = module()
        own = {"max_grad_norm": 0.25} if hyperparameters == "saved" else keywords
        again = ours.Adam(other.parameters(), **own)
        report = fv.Checkpoint(other, optimizer=again).restore(
            tmp_path / "a.ckpt",
            hyperparameters=hyperparameters,  # type: ignore[arg-type]
        )
        assert report.hyperparameters[0].startswith("optimizer.state_dict()['fastvar']: {'max_grad_norm': 0.")
        assert {name: getattr(again, name) for name in keywords} == keywords
        assert again.skipped == (3 if hyperparameters == "saved" else 0)
        train(other, again, 2)
        assert contents(other.state_dict()) == contents(net.state_dict())
        assert contents(again.state_dict()["state"]) == contents(optimizer.state_dict()["state"])


def test_parameters_are_matched_by_name_not_by_order(tmp_path: Path) -> None:
    net, optimizer = started(steps=2)
    path = fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.h5")
    other = module()
    turned = ours.Adam([*other.named_parameters()][::-1], lr=0.5)
    fv.Checkpoint(other, optimizer=turned).restore(path)
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert contents(optimizer.state[p]) == contents(turned.state[q]), name


def test_names_can_be_mapped(tmp_path: Path) -> None:
    net, optimizer = started(steps=2)
    path = fv.Checkpoint(old=net, optimizer=optimizer).save(tmp_path / "a.h5")
    other = module()
    with pytest.raises(ValueError, match=r'name_map={"new": "old"}|name_map=.*new.*old'):
        fv.Checkpoint(new=other).restore(path)
    fv.Checkpoint(new=other).restore(path, name_map={"new": "old"}, partial=True)
    assert everything(other) == everything(net)


def test_generators_and_scalers_resume(tmp_path: Path) -> None:
    generator, scaler = torch.Generator().manual_seed(3), torch.amp.GradScaler("cpu", init_scale=64.0)
    objects = {"rng": generator, "scaler": scaler}
    path = fv.Checkpoint(**objects).save(tmp_path / "a.h5")
    wanted = torch.rand(5, generator=generator)
    scaler.load_state_dict(scaler.state_dict() | {"scale": 8.0})
    fv.Checkpoint(**objects).restore(path)
    assert torch.equal(torch.rand(5, generator=generator), wanted)
    assert scaler.state_dict()["scale"] == 64.0
    state = generator.get_state()
    for bad in (np.zeros(3, np.uint8), np.zeros(len(state), np.uint8), np.zeros(len(state)), "x", None, [1]):
        with pytest.raises(ValueError, match=r"the saved state is not that of a torch\.Generator"):
            pytorch.prepare_generator(generator, bad)
    assert torch.equal(generator.get_state(), state)


def test_other_schedules_refuse_the_state(tmp_path: Path) -> None:
    _, optimizer = started()
    path = fv.Checkpoint(schedule=ours.lr_scheduler.StepLR(optimizer, 3)).save(tmp_path / "a.h5")
    other = ours.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    before = everything(other)
    with pytest.raises(ValueError, match="schedule: the saved state is not that of a CosineAnnealingLR"):
        fv.Checkpoint(schedule=other).restore(path)
    assert everything(other) == before


def test_checkpoints_do_not_load_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys, fastvar as fv\n"
        "c = fv.Checkpoint(w=fv.Variable([1.0]), data={'x': 1})\n"
        f"c.restore(c.save({str(tmp_path / 'a.h5')!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
