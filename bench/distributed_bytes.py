"""Bytes that ranks send in a step, counted by Open MPI, beside those of a ring that adds up the same gradients.

    python bench/distributed_bytes.py

It starts `mpirun` itself, for steps on 1M float32 elements. A ring sends 2 (P - 1) times the bytes of the
gradient, in all, if each of P ranks has one sum.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import fastvar as fv
import fastvar.distributed as fd

ELEMENTS = 2**20
STEPS = 10
CASES = [
    (2, 2),
    (2, 32),
    (4, 4),
    (4, 64),
    (3, 3),
    (3, 48),
    (4, 6),
    (6, 6),
    (6, 16),
    (2, 7),
]  # ranks, micro-batches


def train(micro_batches: int, steps: int, order: str) -> None:
    """Make some steps, on the ranks that mpirun has started."""
    gradient = np.ones(ELEMENTS, np.float32)
    with fd.world() as world:
        optimizer = fd.Distributed(fv.optimizers.Adam(), world, micro_batches, order, compare_every=10**6)
        optimizer.build([fv.Variable(np.zeros(ELEMENTS, np.float32), name="w")])
        for _ in range(steps):
            for _ in optimizer.micro_batches():
                optimizer.add([gradient])
            optimizer.step()


def sent(ranks: int, micro_batches: int, steps: int, order: str) -> int:
    """Return the bytes that all ranks send."""
    with tempfile.TemporaryDirectory() as folder:
        monitoring = {"enable": "1", "enable_output": "3", "filename": f"{folder}/sent"}
        options = [
            part for name, value in monitoring.items() for part in ("--mca", f"pml_monitoring_{name}", value)
        ]
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), *options]
        command += [sys.executable, __file__, str(micro_batches), str(steps), order]
        subprocess.run(command, check=True, capture_output=True)
        lines = [line.split() for path in Path(folder).iterdir() for line in path.read_text().splitlines()]
    return sum(int(words[3]) for words in lines if words[:1] == ["E"])


def main() -> None:
    print(f"{'ranks':>5} {'micro-batches':>13} {'order':>9} {'bytes a step':>13} {'of a ring':>9}")
    for ranks, micro_batches in CASES:
        for order in ("tree", "sequence"):
            first, all_ = (sent(ranks, micro_batches, steps, order) for steps in (1, STEPS + 1))
            a_step = (all_ - first) / STEPS
            ring = 2 * (ranks - 1) * 4 * ELEMENTS
            print(f"{ranks:5} {micro_batches:13} {order:>9} {a_step:13,.0f} {a_step / ring:9.3f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        train(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        main()
