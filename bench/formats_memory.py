"""Memory of weights and Adam's slots in each format, measured: `python -m bench.formats_memory [elements]`.

Each choice runs in a process of its own, which reads its resident memory before it makes the variable, and after
two steps. The gradient, made before, is not counted. 2^28 elements, the default, are 1 GiB of float32.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import fastvar as fv
from fastvar.tables import Table

WEIGHTS: dict[str, tuple[Any, bool]] = {  # dtype, master
    "float32": (np.float32, True),
    "bfloat16, with a master": (ml_dtypes.bfloat16, True),
    "bfloat16, without": (ml_dtypes.bfloat16, False),
    "float16, with a master": (np.float16, True),
}
SLOTS = ("float32", "bfloat16", "8bit")


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(weights: str, slots: str, elements: int) -> float:
    """Return the bytes that an element takes."""
    dtype, master = WEIGHTS[weights]
    gradient = np.full(elements, 0.5, dtype)
    optimizer = fv.optimizers.Adam(1e-3, slot_dtype=None if slots == "float32" else slots, master=master)
    before = resident()
    w = fv.Variable(gradient)
    for _ in range(2):
        optimizer.apply([gradient], [w])
    return (resident() - before) / elements


def main(elements: int = 1 << 28) -> None:
    rows: dict[str, list[Any]] = {weights: [weights] for weights in WEIGHTS}
    for weights, slots in itertools.product(WEIGHTS, SLOTS):
        command = [sys.executable, "-m", "bench.formats_memory", str(elements), weights, slots]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows[weights].append(round(float(out), 2))
    note = f"{elements:,} elements; resident memory, without the gradient"
    print(Table("Bytes of an element: weights and slots of Adam", ("weights", *SLOTS), [*rows.values()], note))


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[1:]:
        print(measure(given[1], given[2], int(given[0])))
    else:
        main(*map(int, given))
