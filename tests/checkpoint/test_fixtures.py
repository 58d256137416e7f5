"""Committed files of each format version stay readable, and give what was put into them."""

import shutil

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint.file_format import OF_SETS, READABLE
from fastvar.checkpoint.reader import File, peek
from tests.checkpoint.fixtures.make import FOLDER, SAVED, STATE, Run, tensors, value_of

every_version = pytest.mark.parametrize("version", [version for version in READABLE if version != OF_SETS])


@every_version
def test_every_dtype_and_shape(version):
    expected = tensors()
    assert peek(FOLDER / f"dtypes_v{version}.h5")[0].version == version
    with File(FOLDER / f"dtypes_v{version}.h5") as file:
        file.verify()
        assert (file.step, file.saved, repr(file.state)) == (2**40, SAVED, repr(STATE))
        assert list(file.entries) == list(expected)
        for name, array in expected.items():
            value = file.read(name)
            assert (value.dtype, value.shape, value.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


@every_version
def test_a_run_with_every_optimizer_goes_on(version, tmp_path):
    """All weights, slots, counters, generators, state and metrics are restored into a present program."""
    shutil.copy(FOLDER / f"run_v{version}-1.h5", tmp_path)
    run, undisturbed = Run(), Run()
    manager = fv.CheckpointManager(run.checkpoint, tmp_path, checkpoint_name=f"run_v{version}", monitor="loss")
    assert manager.restore_or_initialize() == manager.best_checkpoint == str(tmp_path / f"run_v{version}-1.h5")
    places = run.places()
    assert len(places) > 90
    for name, place in places.items():
        np.testing.assert_array_equal(place.value, value_of(name, place.shape, place.dtype), err_msg=name)
    for name, optimizer in run.optimizers.items():
        assert optimizer._steps == 2, name
    undisturbed.draws()
    assert run.draws() == undisturbed.draws()
    array = run.state.pop("array")
    assert array.tolist() == [0, 1, 8, 27, 64]
    assert repr(run.state) == repr(STATE)
    assert run.optimizers["scaled"].dynamic_scale == 1024
    assert run.optimizers["scaled"].inner_optimizer.learning_rate == 0.5 * (1 + np.cos(np.pi * 2 / 100)) / 2
