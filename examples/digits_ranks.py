"""Train a network on handwritten digits on many processes: the result has the same bits on any number of them.

mpirun -n 4 python examples/digits_ranks.py [--epochs 30] [--folder runs/ranks]

Stop it and start it again with another number of processes: it continues.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from mlp import MLP, digits

import fastvar as fv
import fastvar.distributed as fd

MICRO_BATCHES, SIZE = 8, 16  # of a step, and examples of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/ranks"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    (x, y), held_out = digits(rng)
    net = MLP([64, 128, 64], 10, rng, l2=1e-4)
    steps = len(x) // (MICRO_BATCHES * SIZE)
    with fd.world() as world:
        optimizer = fd.Distributed(fv.optimizers.Adam(2e-3), world, MICRO_BATCHES)
        optimizer.build(net)
        with fd.CheckpointManager(fd.Checkpoint(net, optimizer=optimizer), arguments.folder) as manager:
            manager.restore_or_initialize()
            while optimizer.iterations < arguments.epochs * steps and not world.stopping:
                epoch, step = divmod(optimizer.iterations, steps)
                order = np.random.default_rng(epoch).permutation(len(x))  # the same on all ranks
                for i in optimizer.micro_batches():
                    rows = order[(step * MICRO_BATCHES + i) * SIZE :][:SIZE]
                    net.loss(x[rows], y[rows])
                    optimizer.add([v.grad for v in net.trainable_variables])
                optimizer.step()
                if step == steps - 1:
                    manager.save(blocking=False)
        if world.rank == 0:
            weights = hashlib.md5(b"".join(v.value.tobytes() for v in net.variables)).hexdigest()
            print(
                f"Step {optimizer.iterations}, held-out accuracy {net.accuracy(*held_out):.2%}, weights {weights}"
            )


if __name__ == "__main__":
    main()
