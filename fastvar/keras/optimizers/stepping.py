"""The step that every class of `fastvar.keras.optimizers` has in place of Keras's."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from fastvar.keras.optimizers.planning import KerasPlan
from fastvar.keras.supported import Unfit
from fastvar.optimizer import Optimizer

is_overwritten: Callable[[Any], bool] = attrgetter("overwrite_with_gradient")
OF_A_STEP = (  # methods of Keras that a step of the kernels replaces
    "update_step",
    "_apply_weight_decay",
    "_backend_update_step",
    "_clip_gradients",
    "_overwrite_model_variables_with_average_value",
    "_update_model_variables_moving_average",
    "_use_weight_decay",
)


class KernelStep(keras.optimizers.Optimizer):
    """A class of `keras.optimizers` that comes before Keras's own, and overrides its step.

    Attributes
    ----------
    rule_class : type
        The class of `fastvar.optimizers` whose rule and scalars it takes.
    slot_lists : dict of str to str
        For each slot of the rule, the attribute in which Keras keeps a list of it.
    kernel_steps : int
        How many steps have run in fastvar's kernels.
    keras_steps : int
        How many steps have run as in Keras.
    keras_reason : str or None
        Why the last of these did.
    """

    rule_class: ClassVar[type[Optimizer]]
    slot_lists: ClassVar[dict[str, str]]
    kernel_steps: int = 0
    keras_steps: int = 0
    keras_reason: str | None = None
    _plan: KerasPlan | None = None

    @classmethod
    def keras_class(cls) -> Any:
        """Return Keras's own class."""
        return next(each for each in cls.__mro__ if each.__module__.startswith("keras."))

    def _check_variables_are_known(self, variables: list[Any]) -> None:
        if self._plan is None or not self._plan.has(variables):
            super()._check_variables_are_known(variables)

    def _overwrite_variables_directly_with_gradients(self, grads: Any, variables: Any) -> Any:
        """Return the gradients and variables that remain; do so at once where Keras would look at each."""
        if any(map(is_overwritten, variables)):
            return super()._overwrite_variables_directly_with_gradients(grads, variables)
        return grads, variables

    def _backend_apply_gradients(self, grads: list[Any], trainable_variables: list[Any]) -> None:
        try:
            _step(self, grads, trainable_variables)
        except Unfit as reason:
            self.keras_steps += 1
            self.keras_reason = str(reason)
            super()._backend_apply_gradients(grads, trainable_variables)
        else:
            self.kernel_steps += 1

    def _after_update(self, rule: Any) -> None:
        """Keep what Keras keeps besides slots."""


def _step(optimizer: KernelStep, grads: list[Any], variables: list[Any]) -> None:
    """Run a step in the kernels, or raise `Unfit` before anything is written."""
    if in_stateless_scope() or in_symbolic_scope():
        raise Unfit("it is stateless or symbolic")
    plan = optimizer._plan
    if plan is None or not plan.holds(optimizer):
        optimizer._plan = None
        _check_methods(type(optimizer))
        plan = optimizer._plan = KerasPlan(optimizer)
    plan.follow(optimizer)
    if plan.step(plan.arranged(grads, variables)):
        optimizer._after_update(plan.rule)


def _check_methods(cls: type[KernelStep]) -> None:
    """Raise `Unfit` if a subclass has a step of its own."""
    own = cls.keras_class()
    for name in OF_A_STEP:
        if getattr(cls, name) is not getattr(own, name):
            raise Unfit(f"{cls.__name__} overrides {name}")
