"""A script as users write them: a perceptron with all that a training has. It is type-checked, and run."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastvar as fv
from fastvar.hyper import Number, number

Array = npt.NDArray[Any]


class Dense(fv.Module):
    """A layer with its backprop."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        scale = np.sqrt(2 / inputs)
        self.kernel = fv.Variable(
            rng.normal(0, scale, (inputs, outputs)).astype(np.float32),
            regularizer=Ridge(1e-5),
            constraint=fv.constraints.MaxNorm(4.0),
        )
        self.bias = fv.Variable(np.zeros(outputs, np.float32))

    def forward(self, x: Array) -> Array:
        self.x = x
        return x @ self.kernel.value + self.bias.value

    def backward(self, gradient: Array) -> tuple[Array, dict[str, Array]]:
        back = gradient @ self.kernel.T
        return back, {"kernel": self.x.T @ gradient, "bias": gradient.sum(axis=0)}


class Net(fv.Module):
    def __init__(self, sizes: list[int], rng: np.random.Generator) -> None:
        self.layers = [Dense(n, m, rng) for n, m in itertools.pairwise(sizes)]

    def loss_and_gradients(self, x: Array, y: Array) -> tuple[float, dict[str, Any]]:
        hidden: list[Array] = []
        for layer in self.layers[:-1]:
            x = np.maximum(layer.forward(x), 0)
            hidden.append(x)
        error = self.layers[-1].forward(x) - y
        gradient, found = self.layers[-1].backward(2 * error / len(y))
        gradients = [found]
        for layer, after in zip(self.layers[-2::-1], hidden[::-1], strict=True):
            gradient, found = layer.backward(gradient * (after > 0))
            gradients.insert(0, found)
        return float((error**2).mean()), {"layers": gradients}


class Ridge(fv.regularizers.Regularizer):
    """A penalty of the user's own."""

    l2: float = number(default=0.01, low=0)


class Momentum(fv.Optimizer):
    """A rule of the user's own."""

    learning_rate: Number = number(default=0.01, low=0)
    momentum: Number = number(default=0.9, low=0, below=1)
    slots = ("velocity",)

    def update(self, variable: Array, gradient: Array, slots: Any, hyper: Any) -> None:
        slots.velocity = hyper.momentum * slots.velocity - hyper.learning_rate * gradient
        variable += slots.velocity


def batches(x: Array, y: Array, size: int, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    order = rng.permutation(len(x))
    for i in range(0, len(x), size):
        yield x[order[i : i + size]], y[order[i : i + size]]


def train(net: Net, optimizer: fv.Optimizer, folder: Path, epochs: int) -> tuple[float, str]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(256, 4)).astype(np.float32)
    y = np.sin(x.sum(axis=1, keepdims=True))
    loss = float("inf")
    progress: dict[str, int] = {"epoch": 0}
    checkpoint = fv.Checkpoint(net, optimizer=optimizer, progress=progress, rng=rng)
    with fv.CheckpointManager(checkpoint, folder, max_to_keep=2, monitor="loss") as manager:
        manager.restore_or_initialize()
        while progress["epoch"] < epochs and not manager.stopping:
            for inputs, targets in batches(x, y, 32, rng):
                loss = optimizer.minimize(functools.partial(net.loss_and_gradients, inputs, targets), net)
            progress["epoch"] += 1
            manager.save(blocking=False, metrics={"loss": loss})
        manager.wait()
        return loss, manager.checkpoints[-1]


def main(folder: Path, epochs: int = 30) -> None:
    rng = np.random.default_rng(0)
    net = Net([4, 32, 1], rng)
    rate = fv.schedules.Warmup(fv.schedules.CosineDecay(0.05, decay_steps=8 * epochs), warmup_steps=10)
    adamw = fv.optimizers.AdamW(rate, weight_decay=1e-3, global_clipnorm=1.0)
    loss, path = train(net, adamw, folder / "adamw", epochs)
    net.layers[0].trainable = False  # fine-tune the head
    head = Momentum(lambda step: 0.01 / (1 + step), clipnorm=1.0, use_ema=True)
    tuned, _ = train(net, head, folder / "head", epochs=2)
    net.layers[0].trainable = True
    weights: dict[str, Array] = {name: v.numpy() for name, v in net.named_variables().items()}
    report = fv.Checkpoint(net).restore(path, partial=True)
    norms = [float(np.linalg.norm(v - weights[name])) for name, v in net.named_variables().items()]
    print(f"loss {loss:.4f}, then {tuned:.4f}; {len(report.taken)} restored; moved by {max(norms):.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
