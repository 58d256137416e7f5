"""The steps of a TensorFlow 1 program: create, train, save, restore, regularise, transfer, customise, scale.

python examples/tensorflow_steps.py [--folder runs/tensorflow_steps] [--steps 300]

Run it again with more steps: it continues. docs/tensorflow.md has the same steps beside TensorFlow's.
"""

from __future__ import annotations

import argparse

import numpy as np

import fastvar as fv
from fastvar.hyper import Number, number


class Normalized(fv.Optimizer):
    """A rule of one's own: steps divided by the sum of the sizes of all gradients so far."""

    learning_rate: Number = number(default=0.5, low=0)
    slots = ("length",)

    def update(self, variable, gradient, slots, hyper):
        slots.length += np.abs(gradient)
        variable -= hyper.learning_rate * gradient / (slots.length + 1e-8)


class Linear:
    """`x @ w + b`, and its loss on data."""

    def __init__(self, prefix=""):
        self.w = fv.Variable(fv.initializers.GlorotUniform(seed=0), shape=(8, 1), name=f"{prefix}w")
        self.b = fv.Variable(fv.initializers.Zeros(), shape=1, name=f"{prefix}b")
        self.variables = [self.w, self.b]
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(256, 8)).astype(np.float32)
        self.y = self.x @ np.arange(8, dtype=np.float32)[:, None] + 3

    def loss_and_gradients(self):
        error = self.x @ self.w.value + self.b.value - self.y
        return (error**2).mean(), [2 * self.x.T @ error / len(error), 2 * error.mean(axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/tensorflow_steps")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()

    net = Linear()
    print(fv.check_gradients(net.loss_and_gradients, net.variables))
    net.w.regularizer = fv.regularizers.L2(1e-5)
    rate = fv.schedules.ExponentialDecay(0.1, decay_steps=100, decay_rate=0.5)
    optimizer = fv.optimizers.Adam(rate, global_clipnorm=5.0)
    checkpoint = fv.Checkpoint(variables=net.variables, optimizer=optimizer)
    with fv.CheckpointManager(checkpoint, arguments.folder, max_to_keep=3) as manager:
        if path := manager.restore_or_initialize():
            print(f"Restored step {optimizer.iterations} from {path}")
        while optimizer.iterations < arguments.steps:
            optimizer.minimize(net.loss_and_gradients, net.variables)
            if optimizer.iterations % 100 == 0:
                manager.save()
    loss = net.loss_and_gradients()[0]
    print(f"Trained: loss {loss:.5f}, with the penalty {loss + fv.penalty(net.variables):.5f}")

    other = Linear("features/")  # its names in the program: features/w, features/b
    renamed = {"features/w": "w", "features/b": "b"}
    weights = fv.Checkpoint(variables=other.variables)
    print(weights.restore(manager.latest_checkpoint, partial=True, name_map=renamed))
    other.w.trainable, other.y = False, other.y + 2  # a new task for the bias alone
    normalized = Normalized(clipnorm=5.0)  # all options work with it, and so do checkpoints
    for _ in range(300):
        loss = normalized.minimize(other.loss_and_gradients, other.variables)
    print(f"Transferred: loss {loss:.5f}")

    table = fv.Variable(fv.initializers.RandomNormal(seed=1), shape=(100_000, 16), name="table")
    before, rows = table.value.copy(), [7, 500, 7]
    fv.optimizers.Adam(rate).apply([fv.IndexedSlices(values=np.ones((3, 16)), indices=rows)], [table])
    print(f"Scaled: changed the rows {np.flatnonzero((table.value != before).any(axis=1))} of {len(before):,}")


if __name__ == "__main__":
    main()
