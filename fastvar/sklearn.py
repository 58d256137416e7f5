"""scikit-learn's multi-layer perceptrons with updates in the kernels; see docs/sklearn.md.

    from fastvar.sklearn import MLPClassifier  # instead of `from sklearn.neural_network import MLPClassifier`

Only this module imports scikit-learn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import is_not
from typing import Any
from unittest import mock

from fastvar import kernels, optimizers, threads
from fastvar.optimizer.planning import PARALLEL, Resolved

try:
    import sklearn
    from sklearn import neural_network
    from sklearn.neural_network import _multilayer_perceptron as perceptron
    from sklearn.neural_network import _stochastic_optimizers as theirs

    _known = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 5)
except ImportError:
    _known = False
if not _known:
    raise ImportError("fastvar.sklearn: needs scikit-learn 1.5 or newer; run `pip install 'scikit-learn>=1.5'`")

__all__ = ["MLPClassifier", "MLPRegressor", "patch"]


class KernelUpdate:
    """An optimizer of scikit-learn that updates in the kernels. Its state stays in scikit-learn's attributes."""

    kernel_steps: int = 0  # the number of updates in the kernels
    _plan: Any = None
    _arrays: tuple[Any, ...] = ()

    def _rule(self) -> Any:
        """Return the optimizer of fastvar that has the same rule."""
        raise NotImplementedError

    def _slots(self) -> list[list[Any]]:
        """Return the lists of slots, in the order of the rule."""
        raise NotImplementedError

    def update_params(self, params: list[Any], grads: list[Any]) -> None:
        """Update the parameters in place, or raise an error and change nothing."""
        arrays = (*params, *(array for of_slot in self._slots() for array in of_slot))
        known = len(arrays) == len(self._arrays) and not any(map(is_not, arrays, self._arrays))
        writable = all(array.flags.writeable for array in arrays)
        if not (known and writable):  # read-only arrays are an error of the plan
            self._make_plan(params, arrays)
        self._plan.bind(grads)
        self._plan.run([self._scalars()], self._workers())
        self.kernel_steps += 1

    def _make_plan(self, params: list[Any], arrays: tuple[Any, ...]) -> None:
        self._kernel_rule = self._rule()
        names = [f"parameter {i}" for i in range(len(params))]
        slots = [*zip(*self._slots()[: len(self._kernel_rule.slots)], strict=True)] or [()] * len(params)
        rule = self._kernel_rule.rule()
        self._plan = kernels.Plan(type(self).__name__, rule, names, params, slots, [0] * len(params))
        self._arrays = arrays
        self._parallel = sum(p.size for p in params) >= PARALLEL

    def _workers(self) -> int:
        return threads.get_num_threads() if self._parallel else 1

    def _scalars(self) -> Any:
        return self._kernel_rule.scalars(Resolved(vars(self) | {"slots": self._kernel_rule.slots}), 1)

    def __getstate__(self) -> dict[str, Any]:
        ours = ("_plan", "_arrays", "_kernel_rule", "_parallel")
        return {name: value for name, value in vars(self).items() if name not in ours}


class SGDOptimizer(KernelUpdate, theirs.SGDOptimizer):  # type: ignore[misc]
    """scikit-learn's SGDOptimizer with updates in the kernels."""

    def _rule(self) -> Any:
        return optimizers.SGD(self.learning_rate, self.momentum, self.nesterov)

    def _slots(self) -> list[list[Any]]:
        return [self.velocities]


class AdamOptimizer(KernelUpdate, theirs.AdamOptimizer):  # type: ignore[misc]
    """scikit-learn's AdamOptimizer with updates in the kernels."""

    def _rule(self) -> Any:
        return optimizers.Adam(self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)

    def _slots(self) -> list[list[Any]]:
        return [self.ms, self.vs]

    def _scalars(self) -> Any:
        hyper = Resolved(vars(self) | {"learning_rate": self.learning_rate_init})
        return self._kernel_rule.scalars(hyper, self.t + 1)

    def update_params(self, params: list[Any], grads: list[Any]) -> None:
        """Update the parameters in place, or raise an error and change nothing."""
        super().update_params(params, grads)
        names = self._kernel_rule.rule().scalars
        # scikit-learn shows the corrected rate
        self.learning_rate: float = self._scalars()[names.index("scale_m")]
        self.t += 1


CLASSES: dict[Any, Any] = {theirs.SGDOptimizer: SGDOptimizer, theirs.AdamOptimizer: AdamOptimizer}


class KernelFit:
    """A perceptron whose optimizer, as scikit-learn makes it, becomes one of ours."""

    @property
    def _optimizer(self) -> Any:
        if "_optimizer" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute '_optimizer'")
        return vars(self)["_optimizer"]

    @_optimizer.setter
    def _optimizer(self, optimizer: Any) -> None:
        optimizer.__class__ = CLASSES.get(type(optimizer), type(optimizer))
        vars(self)["_optimizer"] = optimizer


class MLPClassifier(KernelFit, neural_network.MLPClassifier):  # type: ignore[misc]
    """scikit-learn's `MLPClassifier` with the updates of "adam" and "sgd" in the kernels.

    Parameters, attributes and methods are scikit-learn's. Weights agree with its own within rounding.

    Examples
    --------
    >>> from fastvar.sklearn import MLPClassifier
    >>> model = MLPClassifier(max_iter=500, random_state=0).fit([[0.0], [1.0]] * 50, [0, 1] * 50)
    >>> model.predict([[0.0], [1.0]])
    array([0, 1])
    >>> model._optimizer.kernel_steps == model.n_iter_
    True
    """


class MLPRegressor(KernelFit, neural_network.MLPRegressor):  # type: ignore[misc]
    """scikit-learn's `MLPRegressor` with the updates of "adam" and "sgd" in the kernels.

    Parameters, attributes and methods are scikit-learn's. Weights agree with its own within rounding.

    Examples
    --------
    >>> from fastvar.sklearn import MLPRegressor
    >>> model = MLPRegressor(max_iter=500, random_state=0).fit([[0.0], [1.0]] * 50, [0.0, 1.0] * 50)
    >>> model.predict([[0.0], [1.0]]).round()
    array([0., 1.])
    """


@contextlib.contextmanager
def patch() -> Iterator[None]:
    """Let scikit-learn's own perceptrons make their updates in the kernels, in all threads of the process.

    It concerns optimizers that are made meanwhile, by `fit` or a first `partial_fit`.

    Examples
    --------
    >>> from fastvar.sklearn import patch
    >>> from sklearn.neural_network import MLPClassifier
    >>> with patch():
    ...     model = MLPClassifier(max_iter=500, random_state=0).fit([[0.0], [1.0]] * 50, [0, 1] * 50)
    >>> model._optimizer.kernel_steps == model.n_iter_
    True
    """
    with mock.patch.multiple(perceptron, SGDOptimizer=SGDOptimizer, AdamOptimizer=AdamOptimizer):
        yield
