"""Restore weights and moments in a new process, in which no optimizer is built, and print the seconds.

python -m bench.resume FOLDER fastvar|"raw bytes" COUNT SIZE
"""

from __future__ import annotations

import sys
from time import perf_counter

import numpy as np

import fastvar as fv
from bench.savers import raw_saver


def main(folder: str, who: str, count: int, size: int) -> None:
    """Restore `count` variables of `size` numbers each, with fastvar or with plain reads into new arrays."""
    weights = [fv.Variable(np.ones(size, np.float32), name=f"w{i}") for i in range(count)]
    optimizer = fv.optimizers.Adam()
    checkpoint = fv.Checkpoint(variables=weights, optimizer=optimizer)
    np.ones(3 * count * size, np.float32)  # freed at once: a virtual machine may have lent its free memory
    start = perf_counter()
    if who == "fastvar":
        checkpoint.restore(f"{folder}/model.h5")
    else:
        moments = {f"m{i}": np.empty(size, np.float32) for i in range(2 * count)}
        raw_saver({f"w{i}": w._array for i, w in enumerate(weights)} | moments).load(folder)
    print(perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
