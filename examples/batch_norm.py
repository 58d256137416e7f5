"""Batch normalisation with a backward pass of one's own: resume, early stopping, the best checkpoint.

python examples/batch_norm.py [--folder runs/batch_norm] [--epochs 60] [--patience 6]

Kill it at any time and run it again: it continues. `fastvar inspect runs/batch_norm` shows its checkpoints.
"""

from __future__ import annotations

import argparse

import numpy as np
from mlp import MLP, Dense, batches, digits

import fastvar as fv


class BatchNorm(fv.Module):
    """Batch normalisation. The moving statistics are not trained, but they are in every checkpoint."""

    def __init__(self, size: int):
        self.gain = fv.Variable(fv.initializers.Ones(), shape=size)
        self.offset = fv.Variable(fv.initializers.Zeros(), shape=size)
        self.mean = fv.Variable(fv.initializers.Zeros(), shape=size, trainable=False)
        self.variance = fv.Variable(fv.initializers.Ones(), shape=size, trainable=False)
        self.training = True

    def forward(self, x):
        mean, variance = self.mean.value, self.variance.value
        if self.training:
            mean, variance = x.mean(axis=0), x.var(axis=0)
            self.mean += 0.1 * (mean - self.mean.value)
            self.variance += 0.1 * (variance - self.variance.value)
        self.scale = 1 / np.sqrt(variance + 1e-3)
        self.x = (x - mean) * self.scale
        return self.x * self.gain.value + self.offset.value

    def backward(self, dy):
        self.gain.grad, self.offset.grad = (dy * self.x).sum(axis=0), dy.sum(axis=0)
        dx = dy * self.gain.value
        return self.scale * (dx - dx.mean(axis=0) - self.x * (dx * self.x).mean(axis=0))


class Tanh:
    def forward(self, x):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dy):
        return dy * (1 - self.y**2)


class Net(MLP):
    def __init__(self, rng: np.random.Generator):
        self.norm = BatchNorm(64)
        self.body = [Dense(64, 64, rng, relu=False), self.norm, Tanh()]
        self.head = Dense(64, 10, rng, relu=False, l2=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/batch_norm")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--patience", type=int, default=6)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    (x, y), held_out = digits(rng)
    net = Net(rng)
    print(fv.check_gradients(lambda: (net.loss(x[:32], y[:32]), [v.grad for v in net.variables]), net))
    optimizer = fv.optimizers.AdamW(3e-3, weight_decay=1e-3)
    optimizer.build(net)
    progress = {"epoch": 0, "best": 1e9, "waited": 0}
    state = fv.Checkpoint(net, optimizer=optimizer, rng=rng, progress=progress)
    with fv.CheckpointManager(state, arguments.folder, max_to_keep=2, monitor="loss") as manager:  # and the best
        if path := manager.restore_or_initialize():
            print(f"Resumed after epoch {progress['epoch']} from {path}")
        while progress["epoch"] < arguments.epochs and progress["waited"] < arguments.patience:
            for rows in batches(len(y), 32, rng):
                net.loss(x[rows], y[rows])
                optimizer.step()
            net.norm.training = False
            loss = net.loss(*held_out)
            net.norm.training = True
            progress["epoch"] += 1
            progress["waited"] = 0 if loss < progress["best"] else progress["waited"] + 1
            progress["best"] = min(loss, progress["best"])
            manager.save(metrics={"loss": loss})
            print(f"epoch {progress['epoch']}: held-out loss {loss:.4f}, penalty {net.penalty():.4f}")
            if manager.stopping:  # SIGTERM: the job is preempted
                return
        fv.Checkpoint(net).restore(manager.best_checkpoint, partial=True)
    net.norm.training = False
    print(f"The best weights, of {progress['epoch']} epochs: held-out accuracy {net.accuracy(*held_out):.2%}")


if __name__ == "__main__":
    main()
