"""MPI jobs that are killed at random instants of their saves: the latest whole set restores.

`FASTVAR_FAULTS` (`make ranks`) makes it ten kills for each fault that it asks for, instead of two.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import fastvar as fv
from tests.support.mpi_jobs import REPEATS, running, start
from tests.support.saving_ranks import RATE, network

pytestmark = pytest.mark.usefixtures("mpi")
KILLS = 10 * REPEATS or 2


def test_kills_at_random_instants_of_saves(tmp_path: Path) -> None:
    """One random rank, or all, are killed. Then one process restores, and the next ranks continue."""
    steps = [0]
    for k in range(KILLS):
        size, mode = random.choice([2, 3, 4]), ("blocking", "background")[k % 2]
        process = start(size, "-m", "tests.support.saving_ranks", str(tmp_path), mode)
        try:
            pids = started(process, tmp_path, size)
            time.sleep(random.uniform(0, 0.3))
            for pid in pids if k % 4 < 2 else [random.choice(pids)]:
                os.kill(pid, signal.SIGKILL)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode != 0
        assert not [pid for pid in pids if running(pid)], err
        said = int((tmp_path / "saved").read_text() or 0)
        steps.append(restored(tmp_path / "run"))
        assert steps[-1] >= said, "a save that has returned is lost"
        for mark in tmp_path.glob("*.pid"):
            mark.unlink()
    assert steps == sorted(steps)
    print(f"{KILLS} kills: at steps {steps[1]} to {steps[-1]}")


def started(process: subprocess.Popen[str], folder: Path, size: int) -> list[int]:
    """Wait until all ranks save, and return their processes."""
    (folder / "saved").unlink(missing_ok=True)
    while not (folder / "saved").exists() or len([*folder.glob("*.pid")]) < size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return [int(mark.stem) for mark in folder.glob("*.pid")]


def restored(folder: Path) -> int:
    """Restore the latest set in one process, check it, save, and look for debris. Return the step."""
    net, optimizer = network(), fv.optimizers.SGD(RATE, momentum=0.0)
    manager = fv.CheckpointManager(fv.Checkpoint(net, optimizer=optimizer), folder, max_to_keep=2)
    with manager:
        manager.restore_or_initialize()
        for v in net.values():
            assert np.all(v.value == optimizer.iterations * RATE)
        manager.save()
        named = {name for found in manager._folder.scan().found for name in found.parts}
        assert {path.name for path in folder.glob("*.part-*")} == named
        assert not [*folder.glob(".fastvar-*.tmp")]
        assert len(manager.checkpoints) == 2
    return optimizer.iterations
