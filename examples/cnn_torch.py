"""A convolutional network in PyTorch, trained with fastvar on a CPU, and resumed from a file of PyTorch.

python examples/cnn_torch.py [--epochs 10] [--file runs/cnn.pt] [--torch]

Run it again with more epochs: it continues. With --torch, the optimizer is PyTorch's; each reads the other's file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import fastvar.torch.optim

BATCH, HELD_OUT = 32, 360


def data():
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x, dtype=torch.float32)[order].reshape(-1, 1, 8, 8) / 16, torch.tensor(y)[order]


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--file", type=Path, default="runs/cnn.pt")
    parser.add_argument("--torch", action="store_true")
    arguments = parser.parse_args()
    optim = torch.optim if arguments.torch else fastvar.torch.optim

    torch.manual_seed(0)
    (x, y), net = data(), network()
    optimizer = optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
    if arguments.file.exists():
        for name, state in torch.load(arguments.file).items():
            parts[name].load_state_dict(state)
        print(f"Resumed after epoch {schedule.last_epoch} from {arguments.file}")
    while schedule.last_epoch < arguments.epochs:
        for rows in torch.randperm(len(y) - HELD_OUT).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {schedule.last_epoch}: loss {loss:.4f}")
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: part.state_dict() for name, part in parts.items()}, arguments.file)
    net.eval()
    with torch.no_grad():
        accuracy = (net(x[-HELD_OUT:]).argmax(1) == y[-HELD_OUT:]).float().mean()
    print(f"{optim.__name__}: held-out accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
