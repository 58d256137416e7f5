"""Load the weights of examples/batch_norm.py in PyTorch. examples/operations.sh converts them.

python examples/in_torch.py runs/operations/model.safetensors
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from mlp import digits
from safetensors.torch import load_file


class Dense(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.empty(inputs, outputs))
        self.bias = torch.nn.Parameter(torch.empty(outputs))

    def forward(self, x):
        return x @ self.kernel + self.bias


class Norm(torch.nn.Module):
    def __init__(self, size: int):
        super().__init__()
        for name in ("gain", "offset", "mean", "variance"):
            self.register_buffer(name, torch.empty(size))

    def forward(self, x):
        return (x - self.mean) / (self.variance + 1e-3).sqrt() * self.gain + self.offset


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = torch.nn.ModuleList([Dense(64, 64)]), Norm(64), Dense(64, 10)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.body[0](x))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    net = Net()
    net.load_state_dict(load_file(parser.parse_args().file))
    _, (x, labels) = digits(np.random.default_rng(0))
    with torch.no_grad():
        accuracy = (net(torch.from_numpy(x)).argmax(1).numpy() == labels).mean()
    print(f"In PyTorch: held-out accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
