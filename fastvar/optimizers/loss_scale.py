"""Dynamic loss scaling."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastvar import buffers
from fastvar.hyper import Declared, Parameter, integer, nested, number
from fastvar.kernels.atomic import Atomic
from fastvar.kernels.turn import Turn
from fastvar.optimizer import Optimizer
from fastvar.place import Place


def _inner(name: str) -> Any:
    """Return a property that reads and sets an attribute of the inner optimizer."""

    def get(self: Any) -> Any:
        return getattr(self.inner_optimizer, name)

    def set_(self: Any, value: Any) -> None:
        setattr(self.inner_optimizer, name, value)

    return property(get, set_, doc=f"`{name}` of the inner optimizer.")


class LossScaleOptimizer(Optimizer, options=False):
    """Scale the loss so that gradients of half precision neither vanish nor overflow.

    Differentiate `scale_loss(loss)`. A step divides the gradients by the scale, and the inner optimizer updates
    the variables. If a gradient is infinite or NaN, the step changes nothing and the scale is halved. After
    `dynamic_growth_steps` good steps in a row the scale is doubled.

    Parameters
    ----------
    inner_optimizer : Optimizer
        Optimizer that updates the variables. Its `loss_scale_factor` and `nonfinite` are set by this one.
    initial_scale : float
        Initial scale, > 0, by default 32768.
    dynamic_growth_steps : int
        Number of good steps before the scale is doubled, >= 1, by default 2000.
    name : str, optional
        Start of error messages, by default the class name.

    References
    ----------
    Micikevicius et al., Mixed Precision Training, 2018 (arXiv:1710.03740), section 3.2.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> w = fv.Variable([1.0])
    >>> optimizer = fv.optimizers.LossScaleOptimizer(fv.optimizers.SGD(0.5))
    >>> optimizer.apply([np.float16([np.inf])], [w])  # overflowed: halves the scale
    >>> optimizer.scale_loss(2.0), optimizer.skipped
    (32768.0, 1)
    >>> optimizer.apply([[16384.0]])
    >>> w.value
    array([0.5])
    """

    learning_rate: Any = _inner("learning_rate")
    slots: ClassVar[Any] = _inner("slots")
    iterations: Any = _inner("iterations")
    inner_optimizer: Optimizer = nested(Optimizer)  # type: ignore[misc]
    initial_scale: float = number(default=2.0**15, above=0)
    dynamic_growth_steps: int = integer(default=2000, low=1)

    schedulable = False
    # Set here, not by the program.
    stateful: ClassVar[tuple[str, ...]] = ("inner_optimizer.loss_scale_factor", "inner_optimizer.nonfinite")

    if TYPE_CHECKING:

        def __init__(
            self,
            inner_optimizer: Optimizer,
            initial_scale: float = ...,
            dynamic_growth_steps: int = ...,
            *,
            name: str | None = ...,
        ) -> None: ...
    else:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            Declared.__init__(self, *args, **kwargs)
            self._state = self.inner_optimizer._state
            # The scale, and the numbers of steps made and skipped when it was set. One copy writes all three.
            self._state.numbers["loss_scale"] = np.array([self.initial_scale, 0.0, 0.0])
            self._turn = Turn(type(self).__name__)
            self._install(self.initial_scale)

    def _install(self, scale: float) -> None:
        inner = self.inner_optimizer
        if inner.nonfinite != "skip":
            inner.nonfinite = "skip"
        if inner.loss_scale_factor != scale:
            inner.loss_scale_factor = scale

    def _validate(self) -> None:
        if isinstance(self._parameters["inner_optimizer"], LossScaleOptimizer):
            raise ValueError("LossScaleOptimizer: inner_optimizer must not be a LossScaleOptimizer")

    def _set(self, parameter: Parameter, value: Any) -> None:
        if parameter.name == "inner_optimizer" and value is not self.inner_optimizer:
            raise ValueError(f"{self._owner}: inner_optimizer is fixed; make a new optimizer for another")
        with Atomic(self._kept(), []):
            Declared._set(self, parameter, value)
            if not self._steps and not self.skipped:
                self._state.numbers["loss_scale"][...] = (self.initial_scale, 0.0, 0.0)

    @property
    def dynamic_scale(self) -> float:
        """The current scale."""
        scale, steps, skips = (float(x) for x in self._state.numbers["loss_scale"])
        made, skipped = self._steps, self.skipped
        if skipped > skips:
            scale = scale * 0.5 ** (skipped - skips)
        elif made - steps >= self.dynamic_growth_steps:
            scale = scale * 2.0
        else:
            return scale
        self._state.numbers["loss_scale"][...] = (scale, made, skipped)
        return scale

    def valid_number(self, name: str, number: buffers.Array) -> bool:
        if name != "loss_scale":
            return self.inner_optimizer.valid_number(name, number)
        return bool(0 < number[0] < inf) and buffers.are_counts(number[1:])

    def _kept(self) -> list[tuple[Any, Any]]:
        return [(self._parameters, self._parameters.copy()), *self.inner_optimizer._kept()]

    @property
    def _updating(self) -> Optimizer:
        return self.inner_optimizer

    def build(self, variables: Any) -> None:
        self.inner_optimizer.build(variables)

    def _apply(self, grads: Any, variables: Any, zero: bool) -> None:
        with self._turn:
            self._install(self.dynamic_scale)
            self.inner_optimizer._apply(grads, variables, zero)

    @property
    def _turns(self) -> list[Turn]:
        return [self._turn, *self.inner_optimizer._turns]

    def scale_loss(self, loss: Any) -> Any:
        """Return `loss` times the current scale, to be differentiated."""
        return loss * self.dynamic_scale

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Iterable[str] | None = None) -> None:
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def decays(self, variable: Place) -> bool:
        return self.inner_optimizer.decays(variable)

    def finalize_variable_values(self, var_list: Any = None) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._turn = Turn(type(self).__name__)
