"""Ranks of MPI that save again and again until they are killed. tests/distributed/test_kills.py starts them."""

import os
import sys
from pathlib import Path

import numpy as np

import fastvar as fv
import fastvar.distributed as fd

RATE = 2.0**-10


def network() -> dict[str, fv.Variable]:
    return {name: fv.Variable(np.zeros(n), name=name) for name, n in (("a", 5000), ("b", 3), ("c", 9000))}


def main(folder: Path, blocking: bool) -> None:
    """Let all weights be the number of steps, times RATE: so a save that mixes two of them is seen."""
    with fd.world(60) as world:
        net = network()
        optimizer = fd.Distributed(fv.optimizers.SGD(RATE, momentum=0.0), world, 4)
        optimizer.build(net)
        with fd.CheckpointManager(
            fd.Checkpoint(net, optimizer=optimizer), folder / "run", max_to_keep=2
        ) as manager:
            manager.restore_or_initialize()
            (folder / f"{os.getpid()}.pid").touch()
            while True:
                for _ in optimizer.micro_batches():
                    optimizer.add({name: -np.ones(v.shape) for name, v in net.items()})
                optimizer.step()
                manager.save(blocking=blocking)
                if world.rank == 0:
                    (folder / "saved").write_text(str(optimizer.iterations - (not blocking)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "blocking")
