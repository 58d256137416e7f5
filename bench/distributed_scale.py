"""What a step and a checkpoint of many ranks take: constants measured here, put into a model.

    mpirun -n 4 python bench/distributed_scale.py [--ranks 1000] [--parameters 1e9]

The model is of Adam in float32, with as many micro-batches as ranks. It knows memory, messages, bytes, and this
processor's speed. It does not know the network: give its bandwidth with `--gigabytes` per second and rank.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastvar as fv
import fastvar.distributed as fd
from fastvar.checkpoint import parts
from fastvar.checkpoint.file_format import Saved
from fastvar.checkpoint.folder import Folder
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.distributed.exchange import Exchange, Route
from fastvar.distributed.orders import ORDERS
from fastvar.distributed.partition import Partition

ELEMENTS = 1 << 24  # of the model that is measured
TENSORS = 300  # variables of the model that is predicted


def median(run: Callable[[], object], rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def resident() -> int:
    """Return the most memory that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(world: fd.World) -> float:
    """Return the bytes for each parameter that training adds to a process."""
    before = resident()
    w = fv.Variable(np.zeros(ELEMENTS, np.float32), copy=False)
    gradient = np.ones(ELEMENTS, np.float32)
    optimizer = fd.Distributed(fv.optimizers.Adam(1e-3), world, world.size)
    optimizer.build([w])
    for _ in range(2):
        for _ in optimizer.micro_batches():
            optimizer.add([gradient])
        optimizer.step()
    return (resident() - before) / ELEMENTS


def predicted_memory(ranks: int) -> float:
    """Return the same by the model: weights, gradient, its sum, what arrives, slots."""
    return 4 + 4 + 4 + 4 * (ranks - 1) / ranks + 8 / ranks


def message(world: fd.World) -> float:
    """Return the seconds that one message takes a rank, to send and to receive it."""
    small = [np.zeros(1) for _ in range(2000)]
    other = (world.rank + 1) % world.size, (world.rank - 1) % world.size

    def run(n: int) -> float:
        return median(lambda: world.meeting.exchange({other[0]: small[:n]}, {other[1]: small[:n]}, "messages"))

    return (run(2000) - run(1000)) / 1000


def arithmetic() -> tuple[float, float]:
    """Return the seconds for each element that adding and updating take, on one processor."""
    x, y, w = (np.ones(ELEMENTS, np.float32) for _ in range(3))
    v, optimizer = fv.Variable(w, copy=False), fv.optimizers.Adam(1e-3)
    add = median(lambda: np.add(x, y, out=x))
    return add / ELEMENTS, median(lambda: optimizer.apply([y], [v])) / ELEMENTS


class Seat:
    """The place of rank 0 in a meeting of many, where nobody else is."""

    rank = 0

    def __init__(self, size: int) -> None:
        self.size = size


def planning(ranks: int, parameters: int) -> tuple[float, float]:
    """Return the seconds in which rank 0 of many works out what travels: at first, and at a change."""
    sizes = [parameters // TENSORS] * TENSORS
    variables = [fv.Variable(np.zeros(n, np.float32), copy=False) for n in sizes]  # memory that nobody touches
    seat: Any = Seat(ranks)
    there = np.ones(TENSORS, bool)

    def build() -> tuple[Partition, Exchange]:
        partition = Partition(sizes, ranks, [False] * TENSORS)
        return partition, Exchange(seat, ORDERS["tree"], ranks, variables, partition, [])

    partition, exchange = build()
    return median(build, 3), median(lambda: Route(variables, partition, there, exchange._places), 3)


def files(ranks: int) -> tuple[float, float, float, int]:
    """Write the set of files of a small model on many ranks.

    Return the seconds to write one part, to publish the set and to open it, and the bytes of its first file.
    """
    n = 2 * 1024 * max(ranks, TENSORS) // TENSORS
    partition = Partition([n] * TENSORS, ranks, [False] * TENSORS)
    kinds = ("variables", "optimizer/momentum", "optimizer/velocity")
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(name, "ckpt")
        folder.lock.acquire()
        path, set_id, saved = folder.path(1), parts.new_set(), Saved(parts.new_set(), 1)
        records, times = [], []
        for rank in range(ranks):
            mine = {
                f"{kind}/{i}": parts.Slice((n,), part.start, np.ones(part.stop - part.start, np.float32))
                for kind in kinds
                for i, part in enumerate(partition.of(rank))
                if part.stop > part.start
            }
            begin = time.perf_counter()
            records.append(parts.prepare_part(path, set_id, rank + 1, ranks, mine, step=1, saved=saved)())
            times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        parts.publish(path, records, {}, {}, step=1, lock=folder.lock, saved=saved)
        publish = time.perf_counter() - begin
        folder.lock.release()

        def open_set() -> None:
            with CheckpointFile(path) as file:
                assert len(file.entries) == 3 * TENSORS

        return statistics.median(times), publish, median(open_set, 3), Path(path).stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="per second that a rank sends")
    options = parser.parse_args()
    ranks, n = options.ranks, int(options.parameters)
    with fd.world(timeout=600) as world:
        bytes_, per_message = memory(world), message(world) if world.size > 1 else float("nan")
        if world.rank:
            return
        print(
            f"memory: {bytes_:.1f} bytes a parameter on {world.size} ranks, by the model "
            f"{predicted_memory(world.size):.1f}"
        )
    fv.set_num_threads(1)
    add, update = arithmetic()
    build, change = planning(ranks, n)
    print(
        f"a message {1e6 * per_message:.1f} us; adding {1e9 * add:.2f}, updating {1e9 * update:.2f} ns an element"
    )
    for size in sorted({min(10, ranks), min(100, ranks), ranks}):
        part, publish, opened, size_of = files(size)
        print(
            f"a set of {size} parts: a part {1e3 * part:.1f} ms, publishing {publish:.2f} s, "
            f"opening {opened:.2f} s, its first file {size_of / 1e6:.2f} MB"
        )
    sent = 8 * n * (ranks - 1) / ranks
    print(f"predicted for {ranks} ranks, {n:.0e} parameters:")
    print(
        f"  memory of a rank  {n * predicted_memory(ranks) / 1e9:8.2f} GB, "
        f"of these slots {8 * n / ranks / 1e9:.3f}"
    )
    print(
        f"  a rank sends      {sent / 1e9:8.2f} GB a step, {sent / 1e9 / options.gigabytes:.2f} s at "
        f"{options.gigabytes:g} GB/s"
    )
    print(f"  messages          {3 * (ranks - 1):8d}    a step, {3 * (ranks - 1) * per_message:.3f} s")
    print(f"  adding            {n * add:8.2f} s  a step, updating {n / ranks * update:.4f} s")
    print(f"  planning          {build:8.2f} s  once, {change:.3f} s if other variables have gradients")
    print(f"  a part            {12 * n / ranks / 1e6:8.2f} MB, {ranks + 1} files of {12 * n / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
