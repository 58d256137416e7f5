"""The step that every class of `fastvar.keras.optimizers` has in place of Keras's."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar, NoReturn

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from fastvar.formats import OF_MASTERS
from fastvar.hyper import flag
from fastvar.keras.optimizers import masters, slot_formats
from fastvar.keras.optimizers.planning import KerasPlan, rule_of, stored_slot
from fastvar.keras.supported import Unfit
from fastvar.optimizer import Optimizer
from fastvar.optimizer.keywords import Keywords, arguments_of, keyword
from fastvar.tables import Table

KEYWORDS = Keywords(("slot_dtype", "slot_dtype_min_size", "seed"), master=flag(default=None, optional=True))
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

    Parameters
    ----------
    slot_dtype : {None, "bfloat16", "8bit"}
        How slots are stored: in the dtype of their variable, or in 2 bytes or about 1 byte an element, rounded
        stochastically. In 8 bits, a slot is two variables, `..._codes` and `..._scales`.
    slot_dtype_min_size : int
        Slots of variables with fewer elements, by default 4096, keep the dtype of the variable.
    master : bool, optional
        How variables of 16 bits are updated: by default, as in Keras. With True, in float32: what 16 bits leave
        out is kept in a variable `..._master`, of bfloat16 the lower 16 bits, of float16 the float32 number. With
        False, in float32 and rounded stochastically; float16 is an error.
    seed : int
        Seed of the stochastic rounding, from 0 to 2^64 - 1.

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
    slot_dtype: str | None = keyword()
    slot_dtype_min_size: int = keyword()
    master: bool | None = keyword()
    seed: int = keyword()
    kernel_steps: int = 0
    keras_steps: int = 0
    keras_reason: str | None = None
    _keywords: dict[str, Any] = KEYWORDS.defaults
    _stores = False  # whether a slot is in 16 or 8 bits, or Keras's code cannot update a variable of 16 bits
    _masters: list[Any]  # what masters keep of each variable, None if it has no master
    _plan: KerasPlan | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rule_class" in vars(cls):
            theirs: Any = super()
            cls.__signature__ = KEYWORDS.extended(arguments_of(theirs.__init__))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        keywords = KEYWORDS.checked(self, KEYWORDS.popped(kwargs))
        super().__init__(*args, **kwargs)
        self.__dict__["_keywords"] = KEYWORDS.defaults | keywords  # Keras would make it a tracked dict

    def _take(self, given: dict[str, Any]) -> None:
        """Take keywords, or raise an error that names one."""
        if self.built and "seed" not in given:
            raise ValueError(
                f"{type(self).__name__}: {next(iter(given))} must be set before the optimizer is built"
            )
        self.__dict__["_keywords"] = self._keywords | KEYWORDS.checked(self, given)

    def get_config(self) -> dict[str, Any]:
        """Return the config as Keras does, with those keywords of fastvar that are not at their default."""
        config: dict[str, Any] = super().get_config()
        return config | KEYWORDS.changed(self._keywords)

    @classmethod
    def keras_class(cls) -> Any:
        """Return Keras's own class."""
        return next(each for each in cls.__mro__ if each.__module__.startswith("keras."))

    # Slots in 16 and 8 bits, and variables of 16 bits.

    def build(self, variables: list[Any]) -> None:
        """Make slots as Keras does, and masters.

        Raises
        ------
        ValueError
            If slots are to be in 16 or 8 bits, or variables of 16 bits are to be updated in float32, and kernels
            cannot run the optimizer. If a variable is float16 and `master` False. Nothing has changed.
        """
        if self.built:
            return
        self._stores = self.master is not None and masters.are_in_16_bits(variables)
        if self.slot_dtype is not None or self._stores:
            try:
                rule_of(self)
            except Unfit as reason:
                self._refuse(reason)
        for v in variables if self.master is False else ():
            if v.dtype == "float16":
                raise ValueError(f"{type(self).__name__}: {v.path} is float16, which needs master=True")
        super().build(variables)
        add = super().add_variable
        has_none = self._overwrite_variable_with_gradient
        self._masters = [masters.made(add, v) if self.master and not has_none(v) else None for v in variables]

    def add_variable(
        self, shape: Any, initializer: Any = "zeros", dtype: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Add a variable as Keras does, in float32 for those of 16 bits that are updated in float32."""
        if self.master is not None and dtype in OF_MASTERS:
            dtype = "float32"
        return super().add_variable(shape, initializer, dtype, *args, **kwargs)

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> Any:
        """Add a variable as Keras does or, of a slot in 16 or 8 bits, those that hold it."""
        if self.slot_dtype is not None and name in self.slot_lists:
            made = stored_slot(self, super().add_variable, reference_variable, name, initializer)
            if made is not None:
                self._stores = True
                return made
        return super().add_variable_from_reference(reference_variable, name, initializer)

    def load_own_variables(self, store: Any) -> None:
        """Set the state as Keras does, or raise ValueError if a file has other formats."""
        if self._stores:
            values = [store[str(i)] for i in range(len(store.keys()))]
            slot_formats.check_stored(type(self).__name__, self.variables, values)
        super().load_own_variables(store)

    def set_weights(self, weights: Any) -> None:
        """Set the state as Keras does, or raise ValueError if it has other formats."""
        if self._stores:
            slot_formats.check_stored(type(self).__name__, self.variables, weights)
        super().set_weights(weights)

    def _refuse(self, reason: Unfit) -> NoReturn:
        owner, what, option = type(self).__name__, "weights in 16 bits", "master"
        if self.slot_dtype is not None:
            what, option = "slots in 16 or 8 bits", "slot_dtype"
        raise ValueError(
            f"{owner}: {what} need fastvar's kernels, which cannot run it: "
            f"{str(reason).removeprefix(f'{owner}: ')}; use {option}=None, or to_keras(optimizer)"
        ) from None

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Overwrite variables with their averages as Keras does, and what masters keep of them."""
        super().finalize_variable_values(var_list)
        if self.use_ema and self.master:
            averages = self._model_variables_moving_average
            for v, average, rest in zip(var_list, averages, self._masters, strict=True):
                if rest is not None:
                    masters.write(v, rest, slot_formats.as_array(average))

    def memory(self) -> Table:
        """Return a table of the bytes of variables and slots, as `fastvar.optimizers` do.

        Raises
        ------
        ValueError
            If kernels cannot run the optimizer, or it is not built.
        """
        owner = type(self).__name__
        if not self.built:
            raise ValueError(f"{owner}: must be built before its memory is known")
        try:
            return _planned(self).rule.memory()
        except Unfit as reason:
            told = str(reason).removeprefix(f"{owner}: ")
            raise ValueError(f"{owner}: only Keras's code can run it: {told}") from None

    # Steps.

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
            if self._stores:
                self._refuse(reason)
            self.keras_steps += 1
            self.keras_reason = str(reason)
            super()._backend_apply_gradients(grads, trainable_variables)
        else:
            self.kernel_steps += 1
            if self.master is not None:
                self._project(trainable_variables)

    def _project(self, variables: list[Any]) -> None:
        """Project variables of 16 bits in float32, and leave only the others for Keras to project."""
        left: list[Any] = []
        for v in variables:
            if v.constraint is None or v.dtype not in OF_MASTERS:
                left.append(v)
                continue
            rest = self._masters[self._get_variable_index(v)]
            numbers = keras.ops.convert_to_tensor(masters.exact(v, rest))
            masters.write(v, rest, slot_formats.as_array(v.constraint(numbers)))
        variables[:] = left

    def _after_update(self, rule: Any) -> None:
        """Keep what Keras keeps besides slots."""


def _step(optimizer: KernelStep, grads: list[Any], variables: list[Any]) -> None:
    """Run a step in the kernels, or raise `Unfit` before anything is written."""
    if in_stateless_scope() or in_symbolic_scope():
        raise Unfit("it is stateless or symbolic")
    plan = _planned(optimizer)
    plan.follow(optimizer)
    if plan.step(plan.arranged(grads, variables)):
        optimizer._after_update(plan.rule)


def _planned(optimizer: KernelStep) -> KerasPlan:
    """Return the plan of the next step, or raise `Unfit`."""
    plan = optimizer._plan
    if plan is None or not plan.holds(optimizer):
        optimizer._plan = None
        _check_methods(type(optimizer))
        plan = optimizer._plan = KerasPlan(optimizer)
    return plan


def _check_methods(cls: type[KernelStep]) -> None:
    """Raise `Unfit` if a subclass has a step of its own."""
    own = cls.keras_class()
    for name in OF_A_STEP:
        if getattr(cls, name) is not getattr(own, name):
            raise Unfit(f"{cls.__name__} overrides {name}")
