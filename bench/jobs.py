"""Whole jobs with fastvar and without: the seconds of an epoch or iteration, and those in the optimizer.

Every job returns, for each contender, a pair for each round. The contenders take turns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

import fastvar as fv
from bench import sklearn_mlp, torch_train
from fastvar.benchmark import as_written
from fastvar.benchmark.contenders import FASTVAR
from fastvar.benchmark.measure import MIN_ROUNDS

Rounds = dict[str, list[tuple[float, float]]]
Epoch = Callable[[], tuple[float, float]]


def in_turn(epochs: dict[str, Epoch], enough: float) -> Rounds:
    """Run an epoch of each in turn for `enough` seconds, after one that is not counted."""
    rounds: Rounds = {name: [] for name in epochs}
    for epoch in epochs.values():
        epoch()
    end = perf_counter() + enough
    while perf_counter() < end or len(rounds[FASTVAR]) < MIN_ROUNDS:
        for name, epoch in epochs.items():
            rounds[name].append(epoch())
    return rounds


class Clock:
    """Counts the seconds in a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        start = perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += perf_counter() - start

    def epoch(self, run: Callable[[], object]) -> tuple[float, float]:
        """Return the seconds of a run, and those in the function."""
        start, self.seconds = perf_counter(), 0.0
        run()
        return perf_counter() - start, self.seconds


def digits(enough: float) -> Rounds:
    """Train the perceptron of examples/mlp.py on digits, with gradients in NumPy."""
    from tests.support.examples import mlp

    def made(ours: bool) -> Epoch:
        rng = np.random.default_rng(0)
        (x, y), _ = mlp().digits(rng)
        net = mlp().MLP([64, 64], 10, rng)
        values = [v.value for v in net.variables]
        gradients = [np.zeros_like(value) for value in values]
        written, optimizer = as_written.adam(values, gradients), fv.optimizers.Adam(0.001)

        def update() -> None:
            if ours:
                optimizer.apply([v.grad for v in net.variables], net.variables)
                return
            for gradient, v in zip(gradients, net.variables, strict=True):
                gradient[...] = v.grad
            written()

        clock = Clock(update)

        def run() -> None:
            for rows in mlp().batches(len(y), 64, rng):
                net.loss(x[rows], y[rows])
                clock()

        return partial(clock.epoch, run)

    return in_turn({FASTVAR: made(True), "NumPy": made(False)}, enough)


def sklearn(enough: float) -> Rounds:
    """Fit MLPClassifier (512, 512) to 1,000 rows of 64 features."""
    ours, theirs = (importlib.import_module(name) for name in ("fastvar.sklearn", "sklearn.neural_network"))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 64)).astype(np.float32), rng.integers(0, 10, 1000)

    def made(kind: Any) -> Epoch:
        return lambda: sklearn_mlp.seconds(kind((512, 512), batch_size=200, random_state=0), x, y)

    epochs = {FASTVAR: made(ours.MLPClassifier), "scikit-learn": made(theirs.MLPClassifier)}
    return in_turn(epochs, enough)


def keras(enough: float) -> Rounds:
    """Fit a perceptron of Keras on PyTorch."""
    import keras as library

    ours = importlib.import_module("fastvar.keras.optimizers")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1024, 64)).astype(np.float32), rng.integers(0, 10, 1024)

    def made(kind: Any) -> Epoch:
        layers = [library.layers.Dense(512, activation="relu") for _ in range(2)]
        model = library.Sequential([library.Input((64,)), *layers, library.layers.Dense(10)])
        optimizer = kind(0.001)
        clock = Clock(optimizer.apply)
        optimizer.apply = clock
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        return partial(clock.epoch, lambda: model.fit(x, y, batch_size=64, verbose=0))

    return in_turn({FASTVAR: made(ours.Adam), "Keras": made(library.optimizers.Adam)}, enough)


def in_torch(network: str, enough: float) -> Rounds:
    """Train a network of bench/torch_train.py in PyTorch; a round is one iteration."""
    make, rounds = torch_train.NETWORKS[network]
    return torch_train.measured(make, max(MIN_ROUNDS, int(rounds * min(1.0, enough / 4))))


JOBS: dict[str, Callable[[float], Rounds]] = {
    "digits": digits,
    "sklearn": sklearn,
    "keras": keras,
    **{network: partial(in_torch, network) for network in ("cnn", "transformer")},
}
