"""Steps of `fastvar.torch.optim` beside those of torch.optim: `python bench/torch_optim.py [CLASS ...]`.

Every step has fresh gradients, as after a backward pass. The optimizers take turns, and each ratio is the median
over rounds. "fused" is PyTorch's fastest path, which not every class has; "default" is the path without options.
"""

from __future__ import annotations

import sys
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


def contenders(name: str, count: int, size: int) -> dict[str, tuple[list[Any], Any]]:
    """Return parameters and an optimizer for each."""
    makers = {
        "fastvar": getattr(ours, name),
        **({"fused": lambda params: getattr(torch.optim, name)(params, fused=True)} if name in FUSED else {}),
        "default": getattr(torch.optim, name),
    }
    made = {}
    for who, make in makers.items():
        params = [torch.nn.Parameter(torch.ones(size)) for _ in range(count)]
        made[who] = params, make(params)
    return made


def measured(name: str, count: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step of each contender, after two that are not counted."""
    gradients = [torch.randn(size) for _ in range(count)]
    entries = contenders(name, count, size)
    times: dict[str, list[float]] = {who: [] for who in entries}
    for _ in range(rounds + 2):
        for who, (params, optimizer) in entries.items():
            for p, gradient in zip(params, gradients, strict=True):
                p.grad = gradient.clone()
            start = perf_counter()
            optimizer.step()
            times[who].append(perf_counter() - start)
            optimizer.zero_grad()
    return {who: took[2:] for who, took in times.items()}


def main() -> None:
    table = Table("class", "tensors", "elements", "fastvar us", "fused us", "default us", "x fused", "x default")
    for name in sys.argv[1:] or ["Adam", "SGD"]:
        for count, size, rounds in SIZES:
            times = measured(name, count, size, rounds)
            row = [
                f"{median(times[who]) * 1e6:.1f}" if who in times else ""
                for who in ("fastvar", "fused", "default")
            ]
            for who in ("fused", "default"):
                pairs = zip(times.get(who, ()), times["fastvar"], strict=False)
                ratios = [theirs / mine for theirs, mine in pairs]
                row.append(f"{median(ratios):.2f}" if ratios else "")
            table.add_row(name, str(count), f"{size:,}", *row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
