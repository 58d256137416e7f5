"""Adam with weights and slots in other formats: times, beside float32, rivals and the limit.

    python bench/slot_formats.py

The limit of a step is the larger of two times, both measured in the same run: what only moving its bytes takes
(the traffic limit of limit.c, by bytes), and what its arithmetic takes in cache, divided by the threads. PyTorch
and bitsandbytes, whose Adam has 8-bit slots, take part if they are installed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import limit
from fastvar import buffers, get_num_threads, kernels
from fastvar.benchmark.measure import Run, interleaved, ratio
from fastvar.formats import GROUP, Codes, Master
from fastvar.kernels import rounding
from fastvar.masters import rest_of
from fastvar.tables import Table

LARGE, CACHED = 1 << 26, 1 << 14
OF_BITSANDBYTES = 1 << 24  # beyond all caches, too; a step on the large array takes 2 seconds
SCALARS = [(0.1, 0.999, 0.001, 1e-3, 0.0, 1.0, 1e-7)]
SLOTS = ("float32", "bfloat16", "8bit")
MASTERS = [("split", "bfloat16"), ("float16 master", "float16"), ("bfloat16", "bfloat16")]  # weights and gradients
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1 + 4 / GROUP}
BYTES |= {"split": 4.0, "float16 master": 6.0}  # bfloat16 with its lower bits, float16 with the float32 number
OF_FLOAT32 = 7 * 4  # bytes that a step moves for each element: weights and slots twice, the gradient once


class Case(NamedTuple):
    """The formats of the weights, of the gradient and of the slots."""

    weights: str
    gradient: str
    slots: str

    @property
    def moved(self) -> float:
        """Bytes that a step moves for each element."""
        return 2 * BYTES[self.weights] + BYTES[self.gradient] + 2 * 2 * BYTES[self.slots]


CASES = [Case("float32", *pair) for pair in itertools.product(("float32", "bfloat16"), SLOTS)]
CASES += [Case(*pair, slots) for pair in MASTERS for slots in SLOTS]


def array(name: str, size: int, value: float) -> Any:
    return buffers.full((size,), ml_dtypes.bfloat16 if name == "bfloat16" else name, value)


def weights(name: str, size: int) -> Any:
    if name not in ("split", "float16 master"):
        return array(name, size, 0.5)
    half = array("bfloat16" if name == "split" else "float16", size, 0.5)
    return Master(half, rest_of(half))


def slot(name: str, size: int) -> Any:
    if name == "8bit":
        return Codes(array("uint8", size, 0), array("float32", -(-size // GROUP), 0))
    return array(name, size, 0.0)


def stepping(case: Case, size: int, threads: int) -> Run:
    slots = [[slot(case.slots, size) for _ in range(2)]]
    plan = kernels.Plan("bench", kernels.RULES["adam"], ["w"], [weights(case.weights, size)], slots, [0])
    gradient = np.random.default_rng(0).standard_normal(size, np.float32).astype(array(case.gradient, 0, 0).dtype)
    rounding.set_seeds(plan.seeds, 0, 1, np.arange(1))

    def run(number: int) -> None:
        for _ in range(number):
            plan.bind([gradient])
            plan.run(SCALARS, threads)

    return run


def on_tensors(kind: Any, size: int, threads: int, **options: Any) -> Run:
    import torch

    torch.set_num_threads(threads)
    p = torch.nn.Parameter(torch.full((size,), 0.5))
    p.grad = torch.full((size,), 0.1)
    optimizer = kind([p], **options)
    return lambda number: [optimizer.step() for _ in range(number)]


def fused(threads: int) -> Run | None:
    try:
        from torch.optim import Adam
    except ModuleNotFoundError:
        return None
    return on_tensors(Adam, LARGE, threads, fused=True)


def bitsandbytes(threads: int) -> Run | None:
    try:
        from bitsandbytes.optim import Adam8bit
    except ModuleNotFoundError:
        return None
    return on_tensors(Adam8bit, OF_BITSANDBYTES, threads)


def measured(size: int, threads: int, more: dict[str, Run]) -> dict[Any, list[float]]:
    runs: dict[Any, Run] = {case: stepping(case, size, threads) for case in CASES}
    return interleaved(runs | more, rounds=15, enough=20.0)


def main() -> None:
    threads = get_num_threads()
    cached = measured(CACHED, 1, {})
    written: list[Any] = [array("float32", LARGE, 0.5) for _ in range(3)]
    moving: Callable[[int], None] | None = limit.runner(written, array("float32", LARGE, 0.1), threads)
    peers = {"moving": moving, "torch fused": fused(threads), "bitsandbytes": bitsandbytes(threads)}
    large = measured(LARGE, threads, {name: run for name, run in peers.items() if run is not None})
    plain = CASES[0]
    rows = []
    for case in CASES:
        arithmetic = median(cached[case]) / CACHED / threads
        traffic = median(large["moving"]) / LARGE * case.moved / OF_FLOAT32 if moving else 0.0
        time = median(large[case]) / LARGE
        row = ["/".join(case), 1e9 * time, 1e9 * traffic, 1e9 * arithmetic]
        row += [time / max(traffic, arithmetic), ratio(large[plain], large[case])]
        for peer, size in (("torch fused", LARGE), ("bitsandbytes", OF_BITSANDBYTES)):
            row += [ratio(large[peer], large[case]) * LARGE / size if peer in large else None]
        rows.append(
            [*(round(x, 2) if isinstance(x, float) else x for x in row), ratio(cached[case], cached[plain])]
        )
    columns = ("weights/gradient/slots", "ns", "traffic", "arithmetic", "of limit", "times float32")
    columns += ("times fused", "times bitsandbytes", "in cache")
    note = f"{kernels.isa}, {threads} threads, {LARGE:,} elements; in cache: in times of float32, one thread"
    if "bitsandbytes" in large:
        theirs = 1e9 * median(large["bitsandbytes"]) / OF_BITSANDBYTES
        note += f"; bitsandbytes: 8 bits, {theirs:.1f} ns on {OF_BITSANDBYTES:,} elements"
    print(Table("Adam", columns, rows, note))


if __name__ == "__main__":
    main()
