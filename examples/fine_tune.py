"""Fine-tune the digits network for another task: train a new head on its trained body, then the whole network.

python examples/digits.py && python examples/fine_tune.py

The task: is the digit at least five? The new network calls its body `features`, so the restore needs a name map.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mlp import MLP, Dense, batches, digits
from tqdm import tqdm

import fastvar as fv


class Classifier(MLP):
    """The same layers under another name, with a head of two classes."""

    def __init__(self, rng: np.random.Generator):
        self.features = [Dense(64, 128, rng, relu=True), Dense(128, 64, rng, relu=True)]
        self.head = Dense(64, 2, rng, relu=False)

    body = property(lambda self: self.features)


def train(net: Classifier, optimizer: fv.Optimizer, data, epochs: int, rng: np.random.Generator, what: str):
    x, y = data
    for _ in tqdm(range(epochs), desc=what, unit="epoch"):
        for rows in batches(len(y), 32, rng):
            net.loss(x[rows], y[rows])
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/digits"), help="folder of the digits run")
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()

    (x, y), (held_x, held_y) = digits(np.random.default_rng(0))
    data, held_out = (x, (y >= 5).astype(int)), (held_x, (held_y >= 5).astype(int))
    rng = np.random.default_rng(2)
    net = Classifier(rng)

    digits_net = fv.Checkpoint(MLP([64, 128, 64], 10, rng))
    path = fv.CheckpointManager(digits_net, arguments.folder).latest_checkpoint
    if path is None:
        raise SystemExit(f"No checkpoint in {arguments.folder}: run examples/digits.py first")
    print(fv.Checkpoint(net).restore(path, partial=True, name_map={"features": "body", "head": None}))

    net.features[0].trainable = net.features[1].trainable = False
    optimizer = fv.optimizers.Adam(3e-3)
    optimizer.build(net)
    before = net.features[0].kernel.numpy()
    train(net, optimizer, data, arguments.epochs, rng, "head only")
    assert np.array_equal(before, net.features[0].kernel), "a frozen layer has moved"
    frozen = net.accuracy(*held_out)

    net.trainable = True
    optimizer.learning_rate = 5e-4
    train(net, optimizer, data, arguments.epochs, rng, "everything")
    print(f"Held-out accuracy: {frozen:.2%} with the body frozen, {net.accuracy(*held_out):.2%} after unfreezing")


if __name__ == "__main__":
    main()
