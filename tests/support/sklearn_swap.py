"""A plugin of pytest: scikit-learn's tests with our perceptrons, and the number of updates in the kernels."""

from __future__ import annotations

from typing import Any

from sklearn import neural_network
from sklearn.neural_network import _multilayer_perceptron as perceptron

import fastvar.sklearn

steps = [0]


def update_params(self: Any, params: Any, grads: Any) -> None:
    before(self, params, grads)
    steps[0] += 1


before = fastvar.sklearn.KernelUpdate.update_params
fastvar.sklearn.KernelUpdate.update_params = update_params  # type: ignore[method-assign]
for name in ("MLPClassifier", "MLPRegressor"):
    for module in (neural_network, perceptron):
        setattr(module, name, getattr(fastvar.sklearn, name))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"updates in the kernels: {steps[0]}")
