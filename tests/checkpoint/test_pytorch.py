"""Checkpoints of PyTorch's modules, optimizers, schedulers and generators."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import fastvar as fv
import fastvar.torch.optim as ours
from fastvar.checkpoint import pytorch
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.writer import write

IN_KERNELS = [name for name in ours.__all__ if hasattr(getattr(ours, name), "rule_class")]
OF_PYTORCH = ["SGD", "Adam", "NAdam", "ASGD", "Adadelta", "Adafactor", "LBFGS", "Rprop"]
CLASSES = [*(getattr(ours, name) for name in IN_KERNELS), *(getattr(torch.optim, name) for name in OF_PYTORCH)]
X = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def module(channels: int = 4, layout: Any = torch.channels_last) -> Any:
    torch.manual_seed(0)
    first = nn.Conv2d(3, channels, 3).to(memory_format=layout)
    return nn.Sequential(first, nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(4 * channels, 2))


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
    contiguous = make.__name__ in ("Adafactor", "LBFGS")
    return module(layout=torch.contiguous_format if contiguous else torch.channels_last)


def train(net: Any, optimizer: Any, steps: int, schedule: Any = None) -> None:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        if schedule is not None:
            schedule.step()


def contents(thing: Any) -> Any:
    """Return all of a state as comparable values: types, dtypes, shapes and bytes."""
    if isinstance(thing, torch.Tensor):
        whole = thing.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return str(thing.dtype), (*thing.shape,), whole.view(torch.uint8).numpy().tobytes()
    if isinstance(thing, dict):
        return type(thing).__name__, [(key, contents(value)) for key, value in sorted(thing.items(), key=repr)]
    if isinstance(thing, (list, tuple)):
        return type(thing).__name__, [contents(item) for item in thing]
    return repr(thing)


def everything(*things: Any) -> Any:
    return [contents(thing.state_dict()) for thing in things]


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


DTYPES = ["bool", "uint8", "int16", "int64", "uint16", "float16", "bfloat16", "float64", "complex64"]
DTYPES += ["float8_e4m3fn", "float8_e5m2"]


class Buffers(nn.Module):
    """A buffer for each dtype, and of odd layouts."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        for name in DTYPES:
            of = torch.full((2, 3), fill).to(getattr(torch, name))
            self.register_buffer(f"of {name}", of)
        self.register_buffer("scalar", torch.tensor(fill, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("large", torch.full((300, 300), fill))
        self.register_buffer("transposed", (fill + torch.arange(120_000.0)).reshape(300, 400).t())
        self.register_buffer("strided", (fill + torch.arange(12.0))[::2])
        self.register_buffer("conjugate", torch.complex(torch.tensor([fill]), torch.tensor([1.0])).conj())
        self.register_buffer("negative", torch._neg_view(torch.tensor([fill])))
        self.register_buffer("not kept", torch.full((2,), fill), persistent=False)


def test_tensors_of_any_dtype_and_layout_come_back(tmp_path: Path) -> None:
    one, two = Buffers(3.0), Buffers(1.0)
    assert everything(one) != everything(two)
    path = fv.Checkpoint(one).save(tmp_path / "a.h5")
    pointers = [x.data_ptr() for x in two.buffers()]
    fv.Checkpoint(two).restore(path)
    assert everything(one) == everything(two)
    assert [x.data_ptr() for x in two.buffers()] == pointers
    assert two.transposed.stride() == (1, 400)
    assert getattr(two, "not kept")[0] == 1
    with File(path) as file:
        assert [file.entries[f"variables/of {name}"].dtype.name for name in DTYPES] == DTYPES


def test_tied_parameters_are_stored_once(tmp_path: Path) -> None:
    def tied() -> Any:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        net[2].weight.data = net[0].weight.data
        return net

    one, two = tied(), tied()
    path = fv.Checkpoint(one).save(tmp_path / "a.h5")
    with File(path) as file:
        assert [*file.entries] == [f"variables/{name}" for name in ("0.weight", "0.bias", "1.bias", "2.bias")]
    fv.Checkpoint(two).restore(path)
    assert everything(one) == everything(two)
    assert two[1].weight is two[0].weight
    with pytest.raises(ValueError, match=r"missing in the file: variables/1\.weight"):
        fv.Checkpoint(nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))).restore(path)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"more": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def quantized() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)


def holding(buffer: Any) -> Any:
    net = nn.Module()
    net.register_buffer("odd", buffer)
    return net


REFUSED: dict[str, Callable[[], Any]] = {
    "meta": lambda: nn.Linear(2, 2, device="meta"),
    "lazy": lambda: nn.LazyLinear(2),
    "sparse": lambda: holding(torch.eye(3).to_sparse()),
    "quantized": lambda: holding(quantized()),
    "subclass": lambda: holding(torch.ones(2).as_subclass(type("Subclass", (torch.Tensor,), {}))),
    "complex32": lambda: holding(torch.ones(2, dtype=torch.complex32)),
    "extra state": lambda: Extra(2, 2),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_that_cannot_be_stored_are_named(kind: str) -> None:
    with pytest.raises(TypeError, match=r"^Checkpoint: (net/weight|net/odd|net/_extra_state) must be .*"):
        fv.Checkpoint(net=REFUSED[kind]())


def started(channels: int = 4, make: Any = ours.Adam, names: bool = True, steps: int = 0) -> tuple[Any, Any]:
    net = module(channels)
    optimizer = make(net.named_parameters() if names else net.parameters(), lr=0.5)
    train(net, optimizer, steps)
    return net, optimizer


def grouped() -> tuple[Any, Any]:
    net = module()
    named = [*net.named_parameters()]
    return net, ours.Adam([{"params": named[:2]}, {"params": named[2:]}], lr=0.5)


CHANGES: dict[str, tuple[Callable[[], Any], str]] = {
    "shape": (
        lambda: started(channels=5),
        r"variables/3\.weight: float32\[2, 20\] here, float32\[2, 16\] in",
    ),
    "shape of a slot": (
        lambda: (module(), started(channels=5)[1]),
        r"Adam: 0\.weight has shape \[5, 3, 3, 3\]",
    ),
    "dtype": (lambda: (module().double(), started()[1]), r"variables/0\.weight: float64\[4, 3, 3, 3\] here"),
    "class": (lambda: started(make=ours.SGD), "SGD: the saved optimizer is of class Adam"),
    "numbers": (lambda: started(names=False), r"parameters of group 0 are not those saved: 0, 0\.bias"),
    "groups": (grouped, "the saved optimizer has 1 groups, not 2"),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_refused_restore_changes_nothing(kind: str, steps: int, tmp_path: Path) -> None:
    net, optimizer = started(steps=3)
    path = fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.h5")
    make, message = CHANGES[kind]
    net, optimizer = make()
    if kind not in ("shape of a slot", "dtype"):  # there, the optimizer has other parameters
        train(net, optimizer, steps)
    before = everything(net, optimizer)
    with pytest.raises(ValueError, match=message):
        fv.Checkpoint(net, optimizer=optimizer).restore(path)
    assert everything(net, optimizer) == before


class Refusing:
    def state_dict(self) -> Any:
        return {}

    def load_state_dict(self, state: Any) -> None:
        raise RuntimeError("no")


def test_an_object_that_refuses_its_state_undoes_the_optimizer(tmp_path: Path) -> None:
    net, optimizer = started(steps=3)
    path = fv.Checkpoint(net, optimizer=optimizer, last=Refusing()).save(tmp_path / "a.h5")
    for steps in (0, 2):
        net, optimizer = started(steps=steps)
        before = everything(net, optimizer)
        with pytest.raises(RuntimeError, match="no"):
            fv.Checkpoint(net, last=Refusing(), optimizer=optimizer).restore(path)
        assert everything(net, optimizer) == before


def test_flipped_bits_are_named_and_nothing_changes(tmp_path: Path) -> None:
    net, optimizer = started(steps=3)
    path = Path(fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.h5"))
    whole = path.read_bytes()
    with File(path) as file:
        entries = {name: entry.offset for name, entry in file.entries.items()}
    net, optimizer = started(steps=1)
    before = everything(net, optimizer)
    for name, offset in entries.items():
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(fv.CheckpointError, match=f"damaged tensors: '{name}'"):
            fv.Checkpoint(net, optimizer=optimizer).restore(path)
        assert everything(net, optimizer) == before


def edits(state: dict[str, Any]) -> Any:
    """Yield states that no optimizer has saved."""
    for key in state:
        yield {k: v for k, v in state.items() if k != key}
        for value in (None, 1, "x", [1], [[1, 2]], {"a": 1}, [["0.weight", {"tensor": "nothing"}]]):
            yield state | {key: value}
    yield from (None, 1, [], {})
    inner = state["slots"][0]
    for value in ({"dict": 3}, {"dict": [[1, {"tensor": 5}]]}, {"tuple": 1}, {"no": []}, {"dict": [[[], 1]]}):
        yield state | {"slots": [[inner[0], value]]}
    yield state | {"slots": [["none", inner[1]]]}
    for own in (None, {"betas": {"x": 1}}):
        yield state | {"groups": [state["groups"][0] | {"own": own}]}
    for more in (None, 1, "x", [1], {"fastvar": {"no": []}}, {"fastvar": {"tensor": "nothing"}}):
        yield state | {"more": more}


def test_malformed_state_is_refused(tmp_path: Path) -> None:
    net, optimizer = started(steps=1)
    tensors, arrays, state, _ = fv.Checkpoint(net, optimizer=optimizer).collect()
    before = everything(net, optimizer)
    count = 0
    for count, odd in enumerate(edits(json.loads(json.dumps(state["optimizer"])))):
        path = tmp_path / f"{count}.h5"
        write(path, {**tensors, **arrays}, {"optimizer": odd}, step=0)
        with pytest.raises((ValueError, fv.CheckpointError)):
            fv.Checkpoint(net, optimizer=optimizer).restore(path)
        assert everything(net, optimizer) == before
    assert count > 30


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


def test_partial_restores_leave_a_refused_optimizer(tmp_path: Path) -> None:
    net, optimizer = started(steps=2)
    path = fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.h5")
    other, sgd = started(make=ours.SGD)
    report = fv.Checkpoint(other, optimizer=sgd).restore(path, partial=True)
    assert report.refused == ["optimizer: SGD: the saved optimizer is of class Adam"]
    assert everything(other) == everything(net)
    assert not sgd.state


def test_names_can_be_mapped(tmp_path: Path) -> None:
    net, optimizer = started(steps=2)
    path = fv.Checkpoint(old=net, optimizer=optimizer).save(tmp_path / "a.h5")
    other = module()
    with pytest.raises(ValueError, match=r'name_map={"new": "old"}|name_map=.*new.*old'):
        fv.Checkpoint(new=other).restore(path)
    fv.Checkpoint(new=other).restore(path, name_map={"new": "old"}, partial=True)
    assert everything(other) == everything(net)


def test_restores_are_seen_by_autograd(tmp_path: Path) -> None:
    net, other = module(), module()
    path = fv.Checkpoint(net).save(tmp_path / "a.h5")
    loss = other(X).square().mean()
    fv.Checkpoint(other).restore(path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


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


def test_weights_are_imported_from_safetensors(tmp_path: Path) -> None:
    net, other = module(), module()
    train(net, ours.SGD(net.parameters(), lr=0.5), 1)
    state = {name: x.contiguous() for name, x in net.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    fv.Checkpoint(other).import_weights(tmp_path / "a.safetensors")
    assert everything(other) == everything(net)


def test_checkpoints_do_not_load_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys, fastvar as fv\n"
        "c = fv.Checkpoint(w=fv.Variable([1.0]), data={'x': 1})\n"
        f"c.restore(c.save({str(tmp_path / 'a.h5')!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_names_must_differ() -> None:
    net, optimizer = started()
    for objects in ({"variables": fv.Variable([1.0], name="weight")}, {"weight": fv.Variable([1.0])}):
        with pytest.raises(ValueError, match="two variables are named 'weight'"):
            fv.Checkpoint(nn.Linear(2, 2), **objects)
    bias = nn.Module()
    bias.register_buffer("bias", torch.ones(2))
    with pytest.raises(ValueError, match="two tensors are named 'a/bias'"):
        fv.Checkpoint({"a": {"bias": fv.Variable([1.0])}}, a=bias)
    with pytest.raises(ValueError, match="an optimizer cannot be given as variables="):
        fv.Checkpoint(net, variables=optimizer)
