"""Train a PyTorch network on handwritten digits, first with torch.optim, then with fastvar in its place.

python examples/digits_torch.py [--epochs 20]
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits

import fastvar.torch.optim

BATCH, HELD_OUT = 32, 360


def data():
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]


def train(optim, epochs: int) -> tuple[float, float, float]:
    """Return the held-out accuracy, and the seconds of the training and of the optimizer in it."""
    torch.manual_seed(0)
    x, y = data()
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )
    optimizer = optim.AdamW(net.parameters(), lr=2e-3)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    begin, in_optimizer = time.perf_counter(), 0.0
    for _ in range(epochs):
        for rows in torch.randperm(len(y) - HELD_OUT).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            start = time.perf_counter()
            optimizer.step()
            in_optimizer += time.perf_counter() - start
        schedule.step()
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        right = net(x[-HELD_OUT:]).argmax(1) == y[-HELD_OUT:]
    return right.float().mean().item(), seconds, in_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    for name, optim in (("torch.optim", torch.optim), ("fastvar.torch.optim", fastvar.torch.optim)):
        accuracy, seconds, in_optimizer = train(optim, epochs)
        share = in_optimizer / seconds
        print(f"{name:20} held-out accuracy {accuracy:.2%}; {seconds:.2f} s, {share:.0%} of it in the optimizer")


if __name__ == "__main__":
    main()
