"""Training with `fastvar.torch.optim` beside torch.optim: `python bench/torch_train.py [NETWORK ...]`.

An iteration is zero_grad, forward, backward and a step of AdamW. The optimizers take turns, each with a network of
its own, and each ratio is the median over rounds. "fused" is PyTorch's fastest path; "default" is the path without
options. "share" is the part of an iteration that the step takes. OMP_NUM_THREADS and FASTVAR_NUM_THREADS set the
threads.
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
from torch import nn

import fastvar.torch.optim as ours


def cnn() -> tuple[Any, Any]:
    """Return a small convolutional network and a batch of 16 images."""
    net = nn.Sequential(
        *(
            nn.Conv2d(1, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(),
        ),
        *(nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 10)),
    )
    images = torch.randn(16, 1, 16, 16)
    net(images)  # LazyLinear learns its size
    return net, images


def mlp() -> tuple[Any, Any]:
    """Return 200 small layers and a batch of 32."""
    layers = [layer for _ in range(200) for layer in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(32, 32)


def transformer() -> tuple[Any, Any]:
    """Return an encoder of 4 layers and a batch of 8 sequences of 32."""
    layer = nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(8, 32, 64)


NETWORKS: dict[str, tuple[Callable[[], tuple[Any, Any]], int]] = {
    "cnn": (cnn, 301),
    "mlp": (mlp, 101),
    "transformer": (transformer, 101),
}  # and rounds
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "fastvar": lambda params: ours.AdamW(params, lr=1e-4),
    "fused": lambda params: torch.optim.AdamW(params, lr=1e-4, fused=True),
    "default": lambda params: torch.optim.AdamW(params, lr=1e-4),
}


def iteration(net: Any, batch: Any, optimizer: Any) -> tuple[float, float]:
    """Train once; return the seconds of all, and of the step."""
    start = perf_counter()
    optimizer.zero_grad()
    net(batch).square().mean().backward()
    before = perf_counter()
    optimizer.step()
    end = perf_counter()
    return end - start, end - before


def measured(make: Callable[[], tuple[Any, Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the times of every iteration with each optimizer, after five that are not counted."""
    entries = {}
    for who, optimizer in OPTIMIZERS.items():
        torch.manual_seed(0)
        net, batch = make()
        entries[who] = net, batch, optimizer(net.parameters())
    times: dict[str, list[tuple[float, float]]] = {who: [] for who in entries}
    order = [*entries]
    for _ in range(rounds + 5):
        for who in order:
            times[who].append(iteration(*entries[who]))
        order.append(order.pop(0))
    return {who: took[5:] for who, took in times.items()}


def row(times: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Return the medians: iterations, ratios and shares."""
    whole = [f"{median(all for all, _ in took) * 1e3:.2f}" for took in times.values()]
    ratios = [
        f"{median(theirs / mine for (theirs, _), (mine, _) in zip(times[who], times['fastvar'], strict=True)):.2f}"
        for who in ("fused", "default")
    ]
    shares = [f"{median(step / all for all, step in took):.1%}" for took in times.values()]
    return whole + ratios + shares


def main() -> None:
    columns = (
        *(f"{who} ms" for who in OPTIMIZERS),
        "x fused",
        "x default",
        *(f"{who} share" for who in OPTIMIZERS),
    )
    table = Table("network", "tensors", "elements", *columns)
    for name in sys.argv[1:] or NETWORKS:
        make, rounds = NETWORKS[name]
        params = [*make()[0].parameters()]
        count = sum(p.numel() for p in params)
        table.add_row(name, str(len(params)), f"{count:,}", *row(measured(make, rounds)))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
