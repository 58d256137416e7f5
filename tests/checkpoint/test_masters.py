"""Masters of variables of 16 bits in checkpoints: what is stored, resumed, renamed, left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import assert_same_bits
from tests.support.sixteen import BFLOAT16, Net, every_dtype, step


@every_dtype
@pytest.mark.parametrize("built", [False, True], ids=["new", "built"])
def test_training_goes_on_from_a_checkpoint(tmp_path: Path, built: bool, dtype: Any) -> None:
    net, optimizer = Net(dtype), fv.optimizers.Adam(0.01)
    step(net, optimizer, 0, 5)
    fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.h5")
    other, resumed = Net(dtype), fv.optimizers.Adam(0.01)
    if built:
        step(other, resumed, 7, 2)
    fv.Checkpoint(other, optimizer=resumed).restore(tmp_path / "a.h5")
    for each, its in ((net, optimizer), (other, resumed)):
        step(each, its, 5, 5)
    assert_same_bits(other.w.master, net.w.master)
    assert_same_bits(other.b.value, net.b.value)


def test_without_a_master_training_goes_on_alike(tmp_path: Path) -> None:
    net, optimizer = Net(BFLOAT16), fv.optimizers.Adam(0.01, master=False, seed=3)
    step(net, optimizer, 0, 5)
    fv.Checkpoint(net, optimizer=optimizer).save(tmp_path / "a.h5")
    assert "variables/w.master" not in dict(fv.checkpoint.list_variables(tmp_path / "a.h5"))
    other, resumed = Net(BFLOAT16), fv.optimizers.Adam(0.01, master=False, seed=3)
    fv.Checkpoint(other, optimizer=resumed).restore(tmp_path / "a.h5")
    for each, its in ((net, optimizer), (other, resumed)):
        step(each, its, 5, 5)
    np.testing.assert_array_equal(other.w.value.view("u2"), net.w.value.view("u2"))


@every_dtype
def test_files_with_and_without_a_master(tmp_path: Path, dtype: Any) -> None:
    trained, fresh = Net(dtype), Net(dtype)
    step(trained, fv.optimizers.Adam(0.01), 0, 5)
    fv.Checkpoint(trained).save(tmp_path / "with.h5")
    fv.Checkpoint(fresh).save(tmp_path / "without.h5")
    assert dict(fv.checkpoint.list_variables(tmp_path / "with.h5"))["variables/w.master"] == (7, 5)
    restored = fv.Checkpoint(fresh).restore(tmp_path / "with.h5")
    assert "variables/w.master" in restored.taken
    assert_same_bits(fresh.w.master, trained.w.master)
    fv.Checkpoint(trained).restore(tmp_path / "without.h5")
    assert_same_bits(trained.w.master, Net(dtype).w.value.astype("f4"))
    wide = Net(np.float32)
    with pytest.raises(ValueError, match=r"variables/w: float32\[7, 5\] here, (bfloat16|float16)\[7, 5\] in the"):
        fv.Checkpoint(wide).restore(tmp_path / "with.h5")


def test_names_change_together(tmp_path: Path) -> None:
    trained, other = Net(BFLOAT16), Net(BFLOAT16)
    step(trained, fv.optimizers.Adam(0.01), 0, 5)
    fv.Checkpoint(part=trained).save(tmp_path / "a.h5")
    fv.Checkpoint(other).restore(tmp_path / "a.h5", name_map=lambda name: f"part/{name}")
    assert_same_bits(other.w.master, trained.w.master)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    w, other = fv.Variable(np.zeros(3, BFLOAT16), name="w"), fv.Variable(np.zeros(3), name="w.master")
    fv.optimizers.SGD().build([w])
    with pytest.raises(ValueError, match=r"two tensors are named 'variables/w\.master'"):
        fv.Checkpoint([w, other]).save(tmp_path / "a.h5")


def test_weights_only_leaves_masters_out(tmp_path: Path) -> None:
    net = Net(BFLOAT16)
    step(net, fv.optimizers.Adam(0.01), 0, 2)
    fv.Checkpoint(net).save(tmp_path / "a.h5")
    fv.checkpoint.convert(tmp_path / "a.h5", tmp_path / "a.safetensors", weights_only=True)
    assert {*fv.checkpoint.load_foreign(tmp_path / "a.safetensors")} == {"w", "b"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_weights_named_like_a_master_are_weights(tmp_path: Path, dtype: Any) -> None:
    """Only beside weights of 16 bits is the suffix that of a master."""
    net = {"w": fv.Variable(np.zeros(3, np.float32)), "w.master": fv.Variable(np.ones(2, dtype), False)}
    fv.Checkpoint(net).save(tmp_path / "a.h5")
    fv.checkpoint.convert(tmp_path / "a.h5", tmp_path / "a.safetensors", weights_only=True)
    assert {*fv.checkpoint.load_foreign(tmp_path / "a.safetensors")} == {"w", "w.master"}
