"""Fits of scikit-learn's MLPClassifier beside ours: `python bench/sklearn_mlp.py`.

Both fit in turn, on one thread each; a ratio is the median over rounds. `fit` is the whole fit with two hidden
layers of 512 units on 64 features, `updates` is the time in the optimizer.
"""

from __future__ import annotations

import warnings
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn import neural_network
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

import fastvar as fv
import fastvar.sklearn

ROUNDS = 5


def seconds(model: Any, x: Any, y: Any) -> tuple[float, float]:
    """Return the seconds of a partial fit of all data, and those in the optimizer."""
    model.partial_fit(x, y, classes=range(10))
    optimizer, inside = model._optimizer, [0.0]
    update = optimizer.update_params

    def timed(params: Any, grads: Any) -> None:
        start = perf_counter()
        update(params, grads)
        inside[0] += perf_counter() - start

    optimizer.update_params = timed
    start = perf_counter()
    model.partial_fit(x, y)
    return perf_counter() - start, inside[0]


def main() -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    fv.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 64)), rng.integers(0, 10, 1000)
    table = Table("dtype", "batch", "theirs s", "ours s", "x fit", "x updates")
    with threadpool_limits(1):
        for dtype in ("float32", "float64"):
            for batch in (32, 200):
                rounds = [
                    [
                        seconds(kind((512, 512), batch_size=batch, random_state=0), x.astype(dtype), y)
                        for kind in (neural_network.MLPClassifier, fastvar.sklearn.MLPClassifier)
                    ]
                    for _ in range(ROUNDS)
                ]
                whole = [median(r[k][0] for r in rounds) for k in (0, 1)]
                ratios = [median(theirs[k] / ours[k] for theirs, ours in rounds) for k in (0, 1)]
                table.add_row(dtype, str(batch), *(f"{s:.3f}" for s in whole), *(f"{r:.2f}" for r in ratios))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
