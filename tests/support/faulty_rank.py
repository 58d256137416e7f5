"""A training program on ranks of MPI, one of which goes wrong. tests/distributed/test_mpi.py starts it."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import fastvar as fv
import fastvar.distributed as fd
from tests.support import ranks

TOTAL = 6


class Halfway(Exception):
    pass


def go_wrong(fault: str, optimizer: fd.Distributed, folder: Path) -> None:
    (folder / "fault").write_text(str(time.time()))
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "exception":
        raise Halfway("no more data")
    if fault in {"exit", "leave"}:
        sys.exit(3 if fault == "exit" else 0)
    if fault == "write":  # as root, a folder that is read-only would be no fault
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    if fault == "option":
        optimizer.optimizer.learning_rate = 0.5


def main(fault: str, folder: Path, timeout: float) -> None:
    with fd.world(timeout) as world:
        net = ranks.network({})
        inner = fv.optimizers.Adam(0.1, nonfinite="raise")
        optimizer = fd.Distributed(inner, world, TOTAL)
        optimizer.build(net)
        (folder / str(os.getpid())).write_text(str(time.time()))
        checkpoint = fd.Checkpoint(net, optimizer=optimizer)
        manager = fd.CheckpointManager(checkpoint, folder / "run") if fault == "write" else None
        while not world.stopping and (fault == "none" or optimizer.iterations < 5):
            wrong = world.rank == 1 and optimizer.iterations == 2 and fault != "none"
            if wrong:
                go_wrong(fault, optimizer, folder)
            for number in optimizer.micro_batches():
                grads = [None if g is None else g.copy() for g in ranks.gradients(0, number)]
                if wrong and fault == "shape":
                    grads[2] = grads[2][:3]
                if wrong and fault == "nan":
                    grads[1][5] = float("nan")
                optimizer.add(grads)
            optimizer.step()
            if manager:
                manager.save()
        print(f"stopped after step {optimizer.iterations}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
