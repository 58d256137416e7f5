"""A plugin for pytest: Keras's own tests find the optimizers of `fastvar.keras` in the place of Keras's.

    python -m pytest -p tests.support.keras_swap --pyargs keras.src.optimizers

At the end it prints how many steps ran in the kernels, and how many as in Keras.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import keras

import fastvar.keras.optimizers as ours

STEPS: Counter[str] = Counter()
REASONS: Counter[str] = Counter()


def swap() -> None:
    for name in ours.classes.__all__:
        mine, theirs = getattr(ours, name), getattr(keras.optimizers, name)
        for module in (keras.optimizers, keras.src.optimizers, sys.modules[theirs.__module__]):
            setattr(module, name, mine)
        keras.src.optimizers.ALL_OBJECTS_DICT[name.lower()] = mine


def count() -> None:
    run = ours.KernelStep._backend_apply_gradients

    def counted(self: Any, *args: Any) -> None:
        before = self.keras_steps
        run(self, *args)
        STEPS["keras" if self.keras_steps > before else "kernel"] += 1
        if self.keras_steps > before:
            REASONS[self.keras_reason] += 1

    ours.KernelStep._backend_apply_gradients = counted  # type: ignore[method-assign]


def pytest_configure() -> None:
    """Swap when this is a plugin, not when a run of doctests imports it."""
    swap()
    count()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"kernel steps: {STEPS['kernel']}, keras steps: {STEPS['keras']}")
    for reason, times in REASONS.items():
        terminalreporter.write_line(f"{times} as in Keras: {reason}")
