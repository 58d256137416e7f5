"""Steps of `fastvar.torch.optim` beside those of torch.optim: `python bench/torch_optim.py [CLASS ...]`.

Every step has fresh gradients, as after a backward pass. The optimizers take turns, and each ratio is the median
over rounds. "fused" is PyTorch's fastest path, which not every class has; "default" is the path without options.
"reading" is the part of our step that reads PyTorch's tensors and advances their versions: no step takes less.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fastvar.torch.optim as ours

SIZES = [
    (1000, 64, 61),
    (200, 1000, 101),
    (1, 65_536, 301),
    (1, 2**22, 31),
    (1, 2**24, 11),
]  # tensors, each, rounds
FUSED = ("Adam", "AdamW", "SGD", "Adagrad")
OF_MATRICES = ("Adafactor", "Muon")


def shape_of(name: str, size: int) -> tuple[int, ...]:
    """Return the shape of a tensor: of these classes a matrix, as square as powers of 2 allow."""
    columns = 1
    while name in OF_MATRICES and size % (2 * columns) == 0 and 4 * columns * columns <= size:
        columns *= 2
    return (size // columns, columns) if name in OF_MATRICES else (size,)


def reading(params: list[Any], optimizer: Any) -> Callable[[], object]:
    """Return a function that reads all tensors like a step, and updates nothing."""
    for _ in range(2):  # the second step plans
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    watch = optimizer._plan.watch

    def read() -> None:
        watch.read_gradients([params], optimizer.state)
        torch.autograd.graph.increment_version(params)
        watch.release()

    return read


def contenders(name: str, count: int, size: int) -> dict[str, tuple[list[Any], Callable[[], object]]]:
    """Return parameters and a step for each."""
    makers = {
        "fastvar": getattr(ours, name),
        **({"fused": lambda params: getattr(torch.optim, name)(params, fused=True)} if name in FUSED else {}),
        "default": getattr(torch.optim, name),
        "reading": getattr(ours, name),
    }
    made = {}
    for who, make in makers.items():
        params = [torch.nn.Parameter(torch.ones(shape_of(name, size))) for _ in range(count)]
        optimizer = make(params)
        made[who] = params, reading(params, optimizer) if who == "reading" else optimizer.step
    return made


def measured(name: str, count: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step of each contender, after two that are not counted."""
    gradients = [torch.randn(shape_of(name, size)) for _ in range(count)]
    entries = contenders(name, count, size)
    times: dict[str, list[float]] = {who: [] for who in entries}
    for _ in range(rounds + 2):
        for who, (params, step) in entries.items():
            for p, gradient in zip(params, gradients, strict=True):
                p.grad = gradient.clone()
            start = perf_counter()
            step()
            times[who].append(perf_counter() - start)
            for p in params:
                p.grad = None
    return {who: took[2:] for who, took in times.items()}


def main() -> None:
    columns = ("fastvar", "reading", "fused", "default")
    table = Table("class", "tensors", "elements", *(f"{who} us" for who in columns), "x fused", "x default")
    for name in sys.argv[1:] or ["Adam", "SGD"]:
        for count, size, rounds in SIZES:
            times = measured(name, count, size, rounds)
            row = [f"{median(times[who]) * 1e6:.1f}" if who in times else "" for who in columns]
            for who in ("fused", "default"):
                pairs = zip(times.get(who, ()), times["fastvar"], strict=False)
                ratios = [theirs / mine for theirs, mine in pairs]
                row.append(f"{median(ratios):.2f}" if ratios else "")
            table.add_row(name, str(count), f"{size:,}", *row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
