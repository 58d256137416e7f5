"""Steps of `fastvar.keras.optimizers` beside Keras's own on PyTorch: `python bench/keras_optim.py [CLASS ...]`.

Every step has fresh gradients, as after a backward pass. The optimizers take turns, and each ratio is the median
over rounds. "apply alone" is what Keras's `apply` takes around the update, which both have: that of an optimizer
whose update does nothing.
"""

from __future__ import annotations

import os
import sys
from statistics import median
from time import perf_counter
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fastvar.keras.optimizers as ours

SIZES = [([(1000,)] * 200, 31), ([(2048, 2048)], 9)]  # shapes, rounds


def contenders(name: str, shapes: list[Any]) -> dict[str, tuple[Any, list[Any]]]:
    """Return an optimizer and its variables for each."""
    theirs = getattr(keras.optimizers, name)
    nothing = type(name, (theirs,), {"_backend_apply_gradients": lambda self, grads, variables: None})
    made = {}
    for who, make in (("fastvar", getattr(ours, name)), ("Keras", theirs), ("apply alone", nothing)):
        variables = [keras.Variable(np.ones(shape, np.float32)) for shape in shapes]
        optimizer = make()
        optimizer.build(variables)
        made[who] = optimizer, variables
    return made


def measured(name: str, shapes: list[Any], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step of each contender, after two that are not counted."""
    gradients = [torch.randn(shape) for shape in shapes]
    entries = contenders(name, shapes)
    times: dict[str, list[float]] = {who: [] for who in entries}
    for _ in range(rounds + 2):
        for who, (optimizer, variables) in entries.items():
            given = [gradient.clone() for gradient in gradients]
            with torch.no_grad():
                start = perf_counter()
                optimizer.apply(given, variables)
                times[who].append(perf_counter() - start)
    assert entries["fastvar"][0].keras_steps == 0
    return {who: took[2:] for who, took in times.items()}


def main() -> None:
    table = Table("class", "variables", "elements", "fastvar us", "Keras us", "apply alone us", "times as fast")
    for name in sys.argv[1:] or ours.classes.__all__:
        for shapes, rounds in SIZES:
            times = measured(name, shapes, rounds)
            ratios = [theirs / mine for theirs, mine in zip(times["Keras"], times["fastvar"], strict=True)]
            row = [f"{median(times[who]) * 1e6:.0f}" for who in ("fastvar", "Keras", "apply alone")]
            elements = sum(int(np.prod(shape)) for shape in shapes)
            table.add_row(name, str(len(shapes)), f"{elements:,}", *row, f"{median(ratios):.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
