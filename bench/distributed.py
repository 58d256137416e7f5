"""A step on two ranks of MPI, beside MPI's own sums of the same bytes and a step of each rank's half.

    mpirun -n 2 python bench/distributed.py [MILLIONS ...]

`Reduce_scatter_block` adds the gradients, each rank updates its half, and `Allgather` shares the weights: the
least that sharded training does, without the same bits on any number of ranks. Both run in turn. The figures are
medians over the rounds of the slower rank, in milliseconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

import fastvar as fv
import fastvar.distributed as fd

ROUNDS = 15


def ours(world: fd.World, n: int, gradient: np.ndarray) -> Callable[[], None]:
    optimizer = fd.Distributed(fv.optimizers.Adam(1e-3), world, world.size, compare_every=10**6)
    optimizer.build([fv.Variable(np.zeros(n, np.float32), name="w")])

    def step() -> None:
        for _ in optimizer.micro_batches():
            optimizer.add([gradient])
        optimizer.step()

    step()
    return step


def theirs(world: fd.World, n: int, gradient: np.ndarray) -> Callable[[], None]:
    ranks, half = MPI.COMM_WORLD, n // world.size
    weights, total = np.zeros(n, np.float32), np.zeros(half, np.float32)
    mine = fv.Variable(weights[world.rank * half : (world.rank + 1) * half], copy=False)
    optimizer = fv.optimizers.Adam(1e-3)

    def step() -> None:
        ranks.Reduce_scatter_block(gradient, total, MPI.SUM)
        optimizer.apply([total], [mine])
        ranks.Allgather(MPI.IN_PLACE, weights)

    step()
    return step


def local(world: fd.World, n: int, gradient: np.ndarray) -> Callable[[], None]:
    w, optimizer = fv.Variable(np.zeros(n // world.size, np.float32)), fv.optimizers.Adam(1e-3)
    return lambda: optimizer.apply([gradient[: n // world.size]], [w])


def main(millions: list[float]) -> None:
    ranks = MPI.COMM_WORLD
    fv.set_num_threads(1)
    with fd.world() as world:
        if world.rank == 0:
            print(f"{'elements':>12} {'fastvar':>9} {'MPI':>9} {'ratio':>6} {'local step':>11}")
        for size in millions:
            n = int(size * 2**20) // world.size * world.size
            gradient = np.random.default_rng(world.rank).normal(size=n).astype(np.float32)
            made = [make(world, n, gradient) for make in (ours, theirs, local)]
            times: list[list[float]] = [[] for _ in made]
            for _ in range(ROUNDS):
                for one, step in zip(times, made, strict=True):
                    ranks.Barrier()
                    begin = time.perf_counter()
                    step()
                    one.append(ranks.allreduce(time.perf_counter() - begin, MPI.MAX))
            mine, other, least = (1e3 * statistics.median(one) for one in times)
            if world.rank == 0:
                print(f"{n:12,} {mine:9.2f} {other:9.2f} {mine / other:6.2f} {least:11.2f}", flush=True)


if __name__ == "__main__":
    main([float(size) for size in sys.argv[1:]] or [0.0625, 0.25, 1, 4, 16])
