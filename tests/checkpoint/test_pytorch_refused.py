"""Restores of PyTorch's objects that are refused change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastvar as fv
import fastvar.torch.optim as ours
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.writer import write
from tests.support.torch_training import everything, module, started, train


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
    "groups": (grouped, "the saved optimizer has 1 group, not 2"),
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


def test_partial_restores_leave_a_refused_optimizer(tmp_path: Path) -> None:
    net, optimizer = started(steps=2)
    path = fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.h5")
    other, sgd = started(make=ours.SGD)
    report = fv.Checkpoint(other, optimizer=sgd).restore(path, partial=True)
    assert report.refused == ["optimizer: SGD: the saved optimizer is of class Adam"]
    assert everything(other) == everything(net)
    assert not sgd.state
