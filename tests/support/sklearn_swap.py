"""A plugin of pytest: scikit-learn's tests with our perceptrons, and the number of updates in the kernels."""

from __future__ import annotations

from typing import Any

from sklearn import neural_network
from sklearn.neural_network import _multilayer_perceptron as perceptron

import fastvar.sklearn

steps = [0]


def swap() -> None:
    for name in ("MLPClassifier", "MLPRegressor"):
        for module in (neural_network, perceptron):
            setattr(module, name, getattr(fastvar.sklearn, name))


def count() -> None:
    run = fastvar.sklearn.KernelUpdate.update_params

    def counted(self: Any, params: Any, grads: Any) -> None:
        run(self, params, grads)
        steps[0] += 1

    fastvar.sklearn.KernelUpdate.update_params = counted  # type: ignore[method-assign]


def pytest_configure() -> None:
    """Swap when this is a plugin, not when a run of doctests imports it."""
    swap()
    count()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"updates in the kernels: {steps[0]}")
