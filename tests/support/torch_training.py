"""A small training in PyTorch, and all of its state, for tests of checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fastvar.torch.optim as ours

X = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def module(channels: int = 4, layout: Any = torch.channels_last) -> Any:
    torch.manual_seed(0)
    first = nn.Conv2d(3, channels, 3).to(memory_format=layout)
    return nn.Sequential(first, nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(4 * channels, 2))


def train(net: Any, optimizer: Any, steps: int, schedule: Any = None) -> None:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        if schedule is not None:
            schedule.step()


def contents(thing: Any) -> Any:
    """Return all of a state as comparable values: types, dtypes, shapes and bytes."""
    if isinstance(thing, torch.Tensor):
        whole = thing.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return str(thing.dtype), (*thing.shape,), whole.view(torch.uint8).numpy().tobytes()
    if isinstance(thing, dict):
        return type(thing).__name__, [(key, contents(value)) for key, value in sorted(thing.items(), key=repr)]
    if isinstance(thing, (list, tuple)):
        return type(thing).__name__, [contents(item) for item in thing]
    return repr(thing)


def everything(*things: Any) -> Any:
    return [contents(thing.state_dict()) for thing in things]


def started(channels: int = 4, make: Any = ours.Adam, names: bool = True, steps: int = 0) -> tuple[Any, Any]:
    net = module(channels)
    optimizer = make(net.named_parameters() if names else net.parameters(), lr=0.5)
    train(net, optimizer, steps)
    return net, optimizer
