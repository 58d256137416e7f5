"""Steps of `fastvar.torch.optim` beside those of torch.optim: `python bench/torch_optim.py [CLASS ...]`.

Every step has fresh gradients, as after a backward pass. The optimizers take turns, and each ratio is the median
over rounds. "fused" is PyTorch's fastest path, which not every class has; "default" is the path without options.
"loaded" is ours after `load_state_dict`. What is wanted is in parentheses. SparseAdam: gradients of 4,096 rows.
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
OF_ROWS = ("SparseAdam",)
ROWS = 4096  # of a sparse gradient
TABLE = 2**20, 32  # shape of its parameter
WANTED_OF_FUSED = {64: 10, 1000: 5, 65_536: 2.5, 2**22: 0.97, 2**24: 0.97}  # by elements of a tensor
WANTED_OF_DEFAULT = {
    **dict.fromkeys(("NAdam", "RAdam", "Adamax", "Adadelta", "Rprop", "Adafactor"), 3),
    **{"RMSprop": 2.5, "ASGD": 1, "SGD": 1},
}  # at 4M elements
WANTED_OF_ROWS = 3


def shape_of(name: str, size: int) -> tuple[int, ...]:
    """Return the shape of a tensor: of these classes a matrix, as square as powers of 2 allow."""
    columns = 1
    while name in OF_MATRICES and size % (2 * columns) == 0 and 4 * columns * columns <= size:
        columns *= 2
    if name in OF_ROWS:
        return TABLE
    return (size // columns, columns) if name in OF_MATRICES else (size,)


def gradient_of(name: str, size: int) -> torch.Tensor:
    """Return a gradient."""
    if name not in OF_ROWS:
        return torch.randn(shape_of(name, size))
    rows = torch.randint(0, TABLE[0], (1, ROWS))
    return torch.sparse_coo_tensor(rows, torch.randn(ROWS, TABLE[1]), TABLE, check_invariants=False)


def wanted(who: str, name: str, size: int) -> str:
    """Return the ratio that is wanted, as text."""
    if name in OF_ROWS:
        return f" ({WANTED_OF_ROWS})"
    if who == "fused":
        return f" ({WANTED_OF_FUSED[size]})"
    return f" ({WANTED_OF_DEFAULT[name]})" if size == 2**22 and name in WANTED_OF_DEFAULT else ""


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
        "loaded": getattr(ours, name),
        **({"fused": lambda params: getattr(torch.optim, name)(params, fused=True)} if name in FUSED else {}),
        "default": getattr(torch.optim, name),
        **({} if name in OF_ROWS else {"reading": getattr(ours, name)}),
    }
    made = {}
    for who, make in makers.items():
        params = [torch.nn.Parameter(torch.ones(shape_of(name, size))) for _ in range(count)]
        optimizer = make(params)
        if who == "loaded":
            for p in params:
                p.grad = gradient_of(name, size)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        made[who] = params, reading(params, optimizer) if who == "reading" else optimizer.step
    return made


def measured(name: str, count: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step of each contender, after two that are not counted."""
    gradients = [gradient_of(name, size) for _ in range(count)]
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
    columns = ("fastvar", "loaded", "reading", "fused", "default")
    table = Table("class", "tensors", "elements", *(f"{who} us" for who in columns), "x fused", "x default")
    for name in sys.argv[1:] or ["Adam", "SGD", "Adafactor", "SparseAdam"]:
        for count, size, rounds in [(1, TABLE[0] * TABLE[1], 31)] if name in OF_ROWS else SIZES:
            times = measured(name, count, size, rounds)
            row = [f"{median(times[who]) * 1e6:.1f}" if who in times else "" for who in columns]
            for who in ("fused", "default"):
                pairs = zip(times.get(who, ()), times["fastvar"], strict=False)
                ratios = [theirs / mine for theirs, mine in pairs]
                row.append(f"{median(ratios):.2f}{wanted(who, name, size)}" if ratios else "")
            table.add_row(name, str(count), f"{size:,}", *row)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
