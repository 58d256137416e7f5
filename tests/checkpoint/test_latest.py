"""The newest file of a folder, and tensors by name, as in TensorFlow."""

import os
from pathlib import Path

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd


def test_latest_is_what_was_written_last(tmp_path: Path) -> None:
    w = fv.Variable([1.0], name="w")
    saver = fv.Saver([w])
    assert fv.latest_checkpoint(tmp_path / "missing") is None
    assert fv.latest_checkpoint(tmp_path) is None
    paths = [saver.save(tmp_path / "model.ckpt", global_step=step) for step in (9, 10, 100)]
    (tmp_path / "notes.txt").write_text("later")
    (tmp_path / "folder.h5").mkdir()
    assert fv.latest_checkpoint(tmp_path) == paths[-1]
    again = saver.save(tmp_path / "model.ckpt", global_step=3)
    os.utime(again, ns=(2**62, 2**62))
    assert fv.latest_checkpoint(os.fspath(tmp_path)) == again
    for path in paths:
        os.utime(path, ns=(0, 0))
    os.unlink(again)
    assert fv.latest_checkpoint(tmp_path) == paths[-1]  # of one time, the highest number
    w.assign([2.0])
    saver.restore(paths[-1])
    assert w.numpy() == [1.0]


def test_latest_of_a_manager_and_of_ranks(tmp_path: Path) -> None:
    """The parts of a set are no checkpoints."""

    def program(world: fd.World) -> str:
        w = fv.Variable(np.zeros(3000), name="w")
        optimizer = fd.Distributed(fv.optimizers.SGD(0.1), world, 2)
        optimizer.build([w])
        return fd.Checkpoint([w], optimizer=optimizer).save(tmp_path / "model.h5")

    path = fd.simulate(2, program)[0]
    assert len([*tmp_path.glob("*.h5")]) > 1
    for other in tmp_path.iterdir():
        if str(other) != path:
            os.utime(other, ns=(2**62, 2**62))
    assert fv.latest_checkpoint(tmp_path) == path
    with fv.CheckpointManager(fv.Checkpoint([fv.Variable([1.0], name="w")]), tmp_path / "run") as manager:
        manager.save()
    assert fv.latest_checkpoint(tmp_path / "run") == manager.latest_checkpoint


def test_unknown_tensor_says_what_there_is(tmp_path: Path) -> None:
    path = fv.Saver([fv.Variable([1.0], name="dense/kernel")]).save(tmp_path / "model")
    with pytest.raises(fv.CheckpointError, match=r"no tensor 'dense/kernal' .*\(it has .*dense/kernel\)"):
        fv.load_variable(path, "dense/kernal")
    with pytest.raises(
        fv.CheckpointError, match="no tensor 'x' in this checkpoint; list_variables gives the names"
    ):
        fv.load_variable(path, "x")
