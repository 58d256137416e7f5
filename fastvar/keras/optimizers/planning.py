"""What stays true of a step on Keras's variables until one of them, or a hyperparameter, changes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import is_
from typing import Any

import keras

from fastvar.buffers import Array, arithmetic
from fastvar.formats import OF_MASTERS, dtype_of
from fastvar.keras.optimizers.slot_formats import format_for, format_of, like, made
from fastvar.keras.supported import Unfit, refused
from fastvar.kernels import RULES
from fastvar.optimizer import Optimizer, given
from fastvar.optimizer.quantized import Quantized, Slot
from fastvar.variable import Variable

if keras.backend.backend() == "torch":
    from fastvar.keras.optimizers.on_torch import Memory, set_in_c_order
else:
    from fastvar.keras.optimizers.on_numpy import Memory, set_in_c_order  # type: ignore[assignment]

NOT_OF_KERAS = ("adaptive_clipnorm", "nonfinite")
ELSEWHERE = ("learning_rate", "loss_scale_factor", "name")  # asked for at each step; done before; in messages
OFF_IF_0 = ("clipnorm", "clipvalue", "global_clipnorm", "ema_overwrite_frequency", "gradient_accumulation_steps")
OF_EVERY_CLASS = {"average": "_model_variables_moving_average", "gradient_accumulator": "_accumulated_gradients"}


class KerasPlan:
    """An optimizer of fastvar on the variables and the state of one of Keras.

    Raises
    ------
    Unfit
        If kernels cannot run its steps.
    """

    def __init__(self, optimizer: Any) -> None:
        self.read: dict[str, Any] = settings(optimizer)
        self.rate: float = 0.0
        self.rule: Optimizer = rule_of(optimizer, lambda step: self.rate)
        self.check_rate: Callable[[Any], float] = self.rule.parameters["learning_rate"].check
        try:
            self._take(optimizer)
        except (TypeError, ValueError) as error:
            raise Unfit(str(error)) from None

    def _take(self, optimizer: Any) -> None:
        """Let the rule work on the memory of the variables and of their slots."""
        overwritten = optimizer._overwrite_variable_with_gradient
        self.variables: list[Any] = [v for v in optimizer._trainable_variables if not overwritten(v)]
        self.index: dict[int, int] = {id(v): i for i, v in enumerate(self.variables)}
        self.memory: Memory = Memory()
        places: list[Any] = [self._place(optimizer, v) for v in self.variables]
        self.rule._excluded = (
            [p for p, v in zip(places, self.variables, strict=True) if not optimizer._use_weight_decay(v)],
            None,
        )
        slots: dict[str, list[Any]] = {}
        for slot, attribute in (OF_EVERY_CLASS | optimizer.slot_lists).items():
            if kept := getattr(optimizer, attribute, None):
                slots[slot] = [
                    self._slot(optimizer, slot, kept, p, v) for p, v in zip(places, self.variables, strict=True)
                ]
        given.take(self.rule, [places], slots)
        self.plain: bool = self.rule._refreshed().plain  # it refuses what kernels cannot update
        self.memory.taken()
        self.excluded: Any = excluded(optimizer)

    def _place(self, optimizer: Any, variable: Any) -> Variable:
        """Return the place of a variable, with what its master keeps."""
        place = Variable(self.memory.take_weight(variable), name=variable.path, copy=False)
        kind = place.dtype.name
        if kind in OF_MASTERS and optimizer.master is None:
            raise refused(variable, "float32 or float64, or master True or False", kind)
        if kind == "float16" or (kind in OF_MASTERS and optimizer.master):
            rest = optimizer._masters[optimizer._get_variable_index(variable)]
            if rest is None:
                raise Unfit(f"Keras keeps no master of {variable.path}, which is {kind}")
            memory = self.memory.take_slot(rest, self.index[id(variable)], OF_MASTERS[kind])
            place._take_master(Variable(memory, False, copy=False))
        return place

    def _slot(self, optimizer: Any, slot: str, kept: list[Any], place: Any, variable: Any) -> Slot | None:
        """Return the place of a slot that Keras keeps, None if the rule has none for this variable."""
        if slot in optimizer.slot_lists and not self.rule.has_slot(slot, place):
            return None
        of = kept[optimizer._get_variable_index(variable)]
        if of is None:
            raise Unfit(f"Keras keeps no {slot} of {variable.path}")
        i, wanted = self.index[id(variable)], format_for(self.rule, slot, place, optimizer)
        if format_of(of) != wanted:
            raise Unfit(f"{of.path} would be in {wanted or 'the dtype of the variable'} if it were built now")
        if wanted == "8bit":
            return Quantized(*self.memory.take_codes(of, i), place.dtype, slot)
        dtype = dtype_of(wanted) if wanted else arithmetic(place.dtype)
        return Variable(self.memory.take_slot(of, i, dtype), False, slot, copy=False)

    def holds(self, optimizer: Any) -> bool:
        """Return whether nothing has changed."""
        same = settings(optimizer) == self.read and excluded(optimizer) is self.excluded
        return same and self.memory.holds()

    def has(self, variables: list[Any]) -> bool:
        """Return whether these are all of its variables, in its order."""
        return len(variables) == len(self.variables) and all(map(is_, variables, self.variables))

    def arranged(self, grads: list[Any], variables: list[Any]) -> Any:
        """Return the gradients, or None, in the order of the plan."""
        if not self.has(variables):
            ordered: list[Any] = [None] * len(self.variables)
            for gradient, variable in zip(grads, variables, strict=True):
                i = self.index[id(variable)]
                if ordered[i] is not None:
                    raise Unfit(f"{variable.path} has several gradients")
                ordered[i] = gradient
            grads = ordered
        return self.memory.gradients(grads, self.plain)

    def follow(self, optimizer: Any) -> None:
        """Read the learning rate and the count of steps."""
        rate = float(optimizer.learning_rate)
        try:
            self.rate = self.check_rate(rate)
        except ValueError as error:
            raise Unfit(f"learning_rate {error}") from None
        self.rule._state.count[0] = int(optimizer._iterations)

    def step(self, grads: Any) -> bool:
        """Check everything, then update; return whether variables were updated, and not sums alone."""
        state, before = self.rule._state, self.rule.iterations
        if "accumulated" in state.numbers:
            self._mark(grads)
        self.rule._apply(grads, state.variables, False)
        self.memory.changed()
        return bool(self.rule.iterations > before)

    def _mark(self, grads: list[Any]) -> None:
        """Mark which variables without a gradient have had one since the last update, from their sums."""
        sums: list[Array] = [place.value for place in self.rule._state.slots["gradient_accumulator"]]
        for i, gradient in enumerate(grads):
            if gradient is None:
                self.rule._state.numbers["accumulated"][i] = sums[i].any()


@functools.cache
def _names(rule_class: Any) -> list[str]:
    return [name for name in rule_class.parameters if name not in (*NOT_OF_KERAS, *ELSEWHERE)]


def settings(optimizer: Any) -> dict[str, Any]:
    """Return the hyperparameters that a rule has beside the learning rate."""
    try:
        values = {name: getattr(optimizer, name) for name in _names(optimizer.rule_class)}
    except AttributeError as error:  # an earlier release of Keras, with another meaning
        raise Unfit(str(error)) from None
    return {name: [*value] if isinstance(value, list) else value for name, value in values.items()}


def rule_of(optimizer: Any, rate: Callable[[int], float] = lambda step: 0.0) -> Optimizer:
    """Return an optimizer of fastvar with the rule and the hyperparameters of one of Keras."""
    given = settings(optimizer)
    given |= {name: given[name] or None for name in OFF_IF_0} | {"master": bool(given["master"])}
    try:
        rule: Optimizer = optimizer.rule_class(learning_rate=rate, **given)
        if rule.rule() not in RULES.values():
            raise Unfit("the rule is not compiled with these hyperparameters")
    except (TypeError, ValueError) as error:
        raise Unfit(str(error)) from None
    return rule


def stored_slot(optimizer: Any, add: Callable[..., Any], variable: Any, slot: str, initializer: Any) -> Any:
    """Return the variable of a new slot in 16 or 8 bits, or None if it should be in another dtype."""
    wanted = format_for(rule_of(optimizer), slot, like(variable), optimizer)
    if wanted is None:
        return None
    if wanted == "8bit":
        set_in_c_order(variable)
    return made(add, variable, slot, initializer, wanted)


def excluded(optimizer: Any) -> Any:
    """Return what is another object whenever other variables are excluded from weight decay."""
    return getattr(optimizer, "_exclude_from_weight_decay_cache", None)
