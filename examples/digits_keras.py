"""Train a Keras network on handwritten digits, first with keras.optimizers, then with fastvar in its place.

python examples/digits_keras.py [--epochs 20]
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["KERAS_BACKEND"] = "torch"

import keras
from sklearn.datasets import load_digits

import fastvar.keras.optimizers

BATCH, HELD_OUT = 64, 360


class Timed:
    """Adds up the seconds that the steps of an optimizer take."""

    def __init__(self, optimizer) -> None:
        self.seconds, self.apply = 0.0, optimizer.apply
        optimizer.apply = self.step

    def step(self, *args, **kwargs) -> None:
        start = time.perf_counter()
        self.apply(*args, **kwargs)
        self.seconds += time.perf_counter() - start


def train(optimizers, epochs: int) -> tuple[float, float, float]:
    """Return the held-out accuracy, and the seconds of the training and of the optimizer in it."""
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32") / 16
    net = keras.Sequential(
        [
            keras.layers.Input((64,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(4e-3, epochs * ((len(y) - HELD_OUT) // BATCH + 1))
    optimizer = optimizers.AdamW(schedule, global_clipnorm=1.0)
    timed = Timed(optimizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    begin = time.perf_counter()
    net.fit(x[:-HELD_OUT], y[:-HELD_OUT], batch_size=BATCH, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - begin
    _, accuracy = net.evaluate(x[-HELD_OUT:], y[-HELD_OUT:], verbose=0)
    return accuracy, seconds, timed.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    for name, optimizers in (
        ("keras.optimizers", keras.optimizers),
        ("fastvar.keras.optimizers", fastvar.keras.optimizers),
    ):
        accuracy, seconds, in_optimizer = train(optimizers, epochs)
        share = in_optimizer / seconds
        print(f"{name:25} held-out accuracy {accuracy:.2%}; {seconds:.2f} s, {share:.0%} of it in the optimizer")


if __name__ == "__main__":
    main()
