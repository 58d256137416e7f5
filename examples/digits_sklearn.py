"""Train scikit-learn's perceptron on handwritten digits, first as it is, then with fastvar's updates.

python examples/digits_sklearn.py [--epochs 20]
"""

from __future__ import annotations

import argparse
import time
import warnings

from sklearn import neural_network
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

import fastvar.sklearn

HELD_OUT = 360


def train(kind, epochs: int) -> tuple[float, float, float]:
    """Return the held-out accuracy, and the seconds of the training and of the optimizer in it."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    model = kind((128, 64), batch_size=32, random_state=0)
    model.partial_fit(x[:-HELD_OUT], y[:-HELD_OUT], classes=range(10))  # this makes the optimizer
    update, in_optimizer = model._optimizer.update_params, 0.0

    def timed(params, grads):
        nonlocal in_optimizer
        start = time.perf_counter()
        update(params, grads)
        in_optimizer += time.perf_counter() - start

    model._optimizer.update_params = timed
    begin = time.perf_counter()
    for _ in range(epochs - 1):
        model.partial_fit(x[:-HELD_OUT], y[:-HELD_OUT])
    seconds = time.perf_counter() - begin
    return model.score(x[-HELD_OUT:], y[-HELD_OUT:]), seconds, in_optimizer


def main() -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    for name, kind in (
        ("scikit-learn", neural_network.MLPClassifier),
        ("fastvar.sklearn", fastvar.sklearn.MLPClassifier),
    ):
        accuracy, seconds, in_optimizer = train(kind, epochs)
        share = in_optimizer / seconds
        print(f"{name:16} held-out accuracy {accuracy:.2%}; {seconds:.2f} s, {share:.0%} of it in the optimizer")


if __name__ == "__main__":
    main()
