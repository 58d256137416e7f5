"""The options of every optimizer: parameters, which the docstring of `Optimizer` explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypedDict

from fastvar import formats
from fastvar.hyper import (
    Declared,
    Number,
    OptionalNumber,
    Parameter,
    Real,
    Schedule,
    choice,
    flag,
    integer,
    number,
    text,
)

Nonfinite = Literal["ignore", "skip", "raise"]
SlotDtype = Literal["bfloat16", "8bit"]


class OptionTypes(TypedDict, total=False):
    """The types of `**options` where a constructor does not follow from the fields of a class."""

    clipnorm: Real | Schedule | None
    clipvalue: Real | Schedule | None
    global_clipnorm: Real | Schedule | None
    adaptive_clipnorm: Real | Schedule | None
    use_ema: bool
    ema_momentum: Real | Schedule
    ema_overwrite_frequency: int | None
    loss_scale_factor: Real | Schedule | None
    gradient_accumulation_steps: int | None
    nonfinite: Nonfinite
    slot_dtype: SlotDtype | None
    slot_dtype_min_size: int
    master: bool
    seed: int
    name: str | None


class Options(Declared):
    """Base class with the options. `class LBFGS(Optimizer, options=False)` has only the name."""

    schedulable: ClassVar[bool] = True

    learning_rate: Number = number(default=0.001, low=0)
    weight_decay: OptionalNumber = number(default=None, low=0, optional=True, kw_only=True)
    clipnorm: OptionalNumber = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    clipvalue: OptionalNumber = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    global_clipnorm: OptionalNumber = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    adaptive_clipnorm: OptionalNumber = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    use_ema: bool = flag(default=False, kw_only=True)
    ema_momentum: Number = number(default=0.99, low=0, high=1, kw_only=True, per_group=False)
    ema_overwrite_frequency: int | None = integer(default=None, low=1, optional=True, kw_only=True)
    loss_scale_factor: OptionalNumber = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    gradient_accumulation_steps: int | None = integer(default=None, low=2, optional=True, kw_only=True)
    nonfinite: Literal["ignore", "skip", "raise"] = choice(
        "ignore", "skip", "raise", default="ignore", kw_only=True
    )
    slot_dtype: Literal["bfloat16", "8bit"] | None = choice(
        *formats.OF_SLOTS, default=None, optional=True, kw_only=True, per_group=True
    )
    slot_dtype_min_size: int = integer(default=4096, low=0, kw_only=True, per_group=True)
    master: bool = flag(default=True, kw_only=True, per_group=True)
    seed: int = integer(default=0, low=0, kw_only=True)
    name: str | None = text(default=None, kw_only=True)

    def __init_subclass__(cls, options: bool = True, **kwargs: Any) -> None:
        if not options:
            for name in Options.parameters:
                if name != "name" and name not in vars(cls):
                    setattr(cls, name, None)
        super().__init_subclass__(**kwargs)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The schedules that numbers follow, by name, as they were given. The attributes are present values."""
        return schedules_in(self._parameters)

    @property
    def _owner(self) -> str:
        """The beginning of error messages."""
        return self._parameters["name"] or type(self).__name__

    def _validate(self) -> None:
        p = self._parameters
        given = [n for n in ("clipnorm", "clipvalue", "global_clipnorm", "adaptive_clipnorm") if p.get(n)]
        if len(given) > 1:
            raise ValueError(f"{type(self).__name__}: only one of {' and '.join(given)} can be set")

    def _change(self, values: dict[str, Any], name: str, value: Any) -> None:
        """Set a hyperparameter in `values`, the optimizer's or a group's, and apply all its consequences."""
        raise NotImplementedError


def schedules_in(values: Mapping[str, Any]) -> dict[str, Schedule]:
    """Return those of the values of parameters that are schedules."""
    return {name: value for name, value in values.items() if callable(value)}


def evaluated(owner: str, parameter: Parameter, schedule: Callable[[int], float], step: int) -> float:
    """Return what a schedule says at a step, if the parameter can have that value."""
    value = schedule(step)
    try:
        return parameter.check(value)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise type(error)(f"{owner}: {parameter.name} at step {step} {error}") from None
