"""Ranks as processes of MPI: the same bits, and a fault of one ends all."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastvar as fv
from tests.support import ranks
from tests.support.mpi_jobs import REPEATS, ROOT, running, start

pytestmark = pytest.mark.usefixtures("mpi")

IDS = ["adam", "muon", "prodigy"]
DEADLINE = 20 if REPEATS else 5  # seconds for which a rank waits for another


def test_same_bits() -> None:
    """Processes compute what one process does without MPI."""
    plain = subprocess.run(
        [sys.executable, "-m", "tests.support.ranks", "16", *IDS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        text=True,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert len(plain.stdout.split("\n")) == 1 + 2 * 3 * len(IDS)
    for size in (1, 2, 3, 4, 16) if REPEATS else (3,):
        process = start(size, "-m", "tests.support.ranks", "16", *IDS)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out == plain.stdout


def test_a_network_learns_the_same_on_four_ranks(tmp_path: Path) -> None:
    """It continues on four ranks what one has begun, and gives what one gives."""
    script = str(ROOT / "examples" / "digits_ranks.py")
    outs = []
    for folder, size, epochs in (("whole", 1, 8), ("parted", 1, 3), ("parted", 4, 8)):
        process = start(size, script, "--folder", str(tmp_path / folder), "--epochs", str(epochs))
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        outs.append(out)
    assert outs[0] == outs[2] != outs[1]
    assert float(outs[0].partition("accuracy ")[2].partition("%")[0]) > 95


# What goes wrong on one rank, in its third step; what is said then.
FAULTS = {
    "kill": "",
    "exception": "rank 1 of 3: Halfway: no more data",
    "exit": "rank 1 of 3: SystemExit: 3",
    "leave": "rank 1 has come to the end",
    "stop": f"rank 1 has not come to step 3 in {DEADLINE} seconds",
    "shape": "gradient of 'bias'",
    "option": "rank 1 and rank 0 differ in options learning_rate: 0.5 and 0.1",
    "nan": "gradient of 'long' must be finite",
    "write": "{folder}/ckpt-3.",
}


@pytest.mark.parametrize("fault", FAULTS if REPEATS else ["kill", "exception", "stop", "option", "nan", "write"])
def test_fault_of_one_rank_ends_all(fault: str, tmp_path: Path) -> None:
    """All end with an error soon after, and none is left."""
    for _ in range(REPEATS or 1):
        process = start(3, "-m", "tests.support.faulty_rank", fault, str(tmp_path), str(DEADLINE))
        try:
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
        ended = time.time()
        assert process.returncode != 0
        assert FAULTS[fault].format(folder=tmp_path / "run") in err
        if fault == "write":  # all raise the error, and the first to end names the rank that had it
            assert re.search(rf"rank 1( of 3: CheckpointError)?: {tmp_path}/run/ckpt-3\.", err)
            saved_until(tmp_path / "run", 2)
        marks = [mark for mark in tmp_path.iterdir() if mark.name != "run"]
        begun = min(float(mark.read_text()) for mark in marks if mark.name == "fault")
        assert ended - begun < DEADLINE + 5
        pids = [int(mark.name) for mark in marks if mark.name != "fault"]
        assert len(pids) == 3
        assert not [pid for pid in pids if running(pid)]
        for mark in marks:
            mark.unlink()


def saved_until(folder: Path, step: int) -> None:
    """Restore what was saved at a step, by one process, and remove it."""
    net = ranks.network({})
    optimizer = fv.optimizers.Adam(0.1, nonfinite="raise")
    with fv.CheckpointManager(fv.Checkpoint(net, optimizer=optimizer), folder) as manager:
        manager.restore_or_initialize()
        assert optimizer.iterations == step
        manager.save()  # removes what the failed save has left
        assert len([*folder.glob("*.part-*")]) == 3 * step
    shutil.rmtree(folder)


def test_request_to_stop_reaches_all(tmp_path: Path) -> None:
    """SIGTERM to one rank makes all stop after the same step."""
    process = start(3, "-m", "tests.support.faulty_rank", "none", str(tmp_path), "60")
    while len(pids := [int(mark.name) for mark in tmp_path.iterdir()]) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(pids[1], signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(out.split("\n")) == 4
    assert len({*out.strip().split("\n")}) == 1
    assert out.startswith("stopped after step ")
