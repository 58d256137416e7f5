"""Train a network on handwritten digits. Interrupt it and start it again: it continues bit for bit.

python examples/digits.py [--epochs 60] [--folder runs/digits]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
from mlp import MLP, batches, digits
from tqdm import tqdm

import fastvar as fv

mpl.use("Agg")
import matplotlib.pyplot as plt

BATCH, LEARNING_RATE, L2 = 32, 2e-3, 1e-4


class NumpyAdam:
    """Adam as people write it in NumPy, for comparison, with the L2 penalty in the gradient."""

    def __init__(self, variables, schedule):
        self.variables, self.schedule, self.t = variables, schedule, 0
        self.m = [np.zeros(v.shape, v.dtype) for v in variables]
        self.v = [np.zeros(v.shape, v.dtype) for v in variables]

    def step(self):
        rate = np.float32(self.schedule(self.t))
        self.t += 1
        for i, variable in enumerate(self.variables):
            g = variable.grad
            if variable.regularizer:
                g = g + np.float32(2 * variable.regularizer.l2) * variable.value
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
            alpha = rate * np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
            variable.assign_sub((alpha * self.m[i] / (np.sqrt(self.v[i]) + 1e-7)).astype(np.float32))


def setting(epochs: int, seed: int = 0):
    """Return the data, the network and the schedule of a run."""
    rng = np.random.default_rng(seed)
    train, held_out = digits(rng)
    net = MLP([64, 128, 64], 10, rng, l2=L2)
    steps = epochs * -(-len(train[1]) // BATCH)
    schedule = fv.schedules.CosineDecay(LEARNING_RATE / 10, steps, warmup_target=LEARNING_RATE, warmup_steps=100)
    return train, held_out, net, schedule


def train_epoch(net, optimizer, data, rng) -> tuple[float, float]:
    """Train for one epoch. Return the mean loss and the seconds spent in the optimizer."""
    x, y = data
    losses, seconds = [], 0.0
    for rows in batches(len(y), BATCH, rng):
        losses.append(net.loss(x[rows], y[rows]))
        start = time.perf_counter()
        optimizer.step()
        seconds += time.perf_counter() - start
    return float(np.mean(losses)), seconds


def train(folder: Path, epochs: int) -> tuple[MLP, dict]:
    """Train, or continue from the last checkpoint in `folder`."""
    data, held_out, net, schedule = setting(epochs)
    optimizer = fv.optimizers.Adam(schedule)
    optimizer.build(net)
    rng = np.random.default_rng(1)
    progress = {"epoch": 0, "epochs": epochs, "loss": [], "accuracy": [], "seconds": 0.0}
    manager = fv.CheckpointManager(
        fv.Checkpoint(net, optimizer=optimizer, rng=rng, progress=progress), folder, max_to_keep=3
    )
    path = manager.restore_or_initialize()
    if path is None:
        path = manager.save()
    elif progress["epochs"] != epochs:
        raise SystemExit(f"{folder} holds a run of {progress['epochs']} epochs; choose another --folder")
    else:
        print(f"Resumed after epoch {progress['epoch']} from {path}")
    try:
        with tqdm(total=epochs, initial=progress["epoch"], unit="epoch", desc="digits") as bar:
            while progress["epoch"] < epochs:
                loss, seconds = train_epoch(net, optimizer, data, rng)
                accuracy = net.accuracy(*held_out)
                progress["loss"].append(loss)
                progress["accuracy"].append(accuracy)
                progress["seconds"] += seconds
                progress["epoch"] += 1
                path = manager.save()
                bar.set_postfix(loss=f"{loss:.4f}", held_out=f"{accuracy:.2%}")
                bar.update()
    except KeyboardInterrupt:
        print(f"\nInterrupted. {path} is whole; run the same command again to resume from it.")
        raise SystemExit(130) from None
    return net, progress


def numpy_seconds(epochs: int) -> float:
    """Repeat the run with NumpyAdam. Return the seconds spent in it."""
    data, _, net, schedule = setting(epochs)
    optimizer, rng = NumpyAdam(net.variables, schedule), np.random.default_rng(1)
    return sum(train_epoch(net, optimizer, data, rng)[1] for _ in tqdm(range(epochs), desc="NumPy", unit="epoch"))


def plot(progress: dict, path: Path) -> None:
    """Draw the learning curves."""
    epochs = range(1, len(progress["loss"]) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.semilogy(epochs, progress["loss"], color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss (cross-entropy)", title="Loss")
    right.plot(epochs, [100 * a for a in progress["accuracy"]], color="tab:green")
    right.axhline(97, color="grey", linewidth=0.8, linestyle="--")
    right.set(xlabel="epoch", ylabel="held-out accuracy (%)", ylim=(85, 100), title="Accuracy")
    figure.suptitle("scikit-learn digits, MLP 64-128-64-10, fastvar Adam")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("runs/digits"))
    arguments = parser.parse_args()
    _, progress = train(arguments.folder, arguments.epochs)
    plot(progress, arguments.folder / "curves.png")
    print(f"Held-out accuracy {progress['accuracy'][-1]:.2%}; curves in {arguments.folder / 'curves.png'}")
    plain = numpy_seconds(arguments.epochs)
    ours = progress["seconds"]
    print(f"In the optimizer: {ours:.3f} s with fastvar, {plain:.3f} s with NumPy ({plain / ours:.1f} times)")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted after training; run the same command again for the comparison.") from None
