"""Optimizers that PyTorch does not have: the rules of `fastvar.optimizers` on torch tensors."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from typing import Any, ClassVar

from fastvar import optimizers
from fastvar.hyper import Parameter
from fastvar.optimizer import Optimizer
from fastvar.optimizer.options import Options
from fastvar.torch.optim.keywords import KEYWORDS
from fastvar.torch.optim.measuring import MeasuringPlan
from fastvar.torch.optim.parts import Part, numbers
from fastvar.torch.optim.planning import TensorPlan
from fastvar.torch.optim.stepping import KernelStep

__all__ = [
    "AdEMAMix",
    "AdaBelief",
    "Adan",
    "Adopt",
    "Ftrl",
    "Lamb",
    "Lars",
    "Lion",
    "Prodigy",
    "ScheduleFreeAdamW",
    "Signum",
    "Yogi",
]

RATE = "learning_rate"  # "lr" in groups, for PyTorch's schedulers
IN_NUMPY = ("learning_rate_power",)  # only its default has a compiled rule


class NativePart(Part):
    """A group of an optimizer of `fastvar.optimizers`, whose hyperparameters are checked when they change."""

    def rule_for(self, rule_class: Any, group: dict[str, Any]) -> Any:
        return rule_class()

    def numbers(self, values: dict[str, Any]) -> dict[str, Any]:
        rule_class: Any = type(self.rule)
        read = super().numbers(values)
        read |= checked(self.rule, declared(rule_class), read)
        return read | {RATE: read["lr"]}


@functools.cache
def declared(rule_class: Any) -> dict[str, Parameter]:
    """Return the hyperparameters of groups in the order of the signature, none of them a callable.

    The learning rate is "lr". What only a rule in NumPy can have is left out.
    """
    found = {}
    for name, parameter in sorted(rule_class.parameters.items(), key=lambda item: item[1].kw_only):
        own = name not in Options.parameters and name not in IN_NUMPY
        if own or (parameter.per_group and name not in KEYWORDS.options):
            one = copy.copy(parameter)
            one.name, one.scheduled = "lr" if name == RATE else name, False
            found[one.name] = one
    return found


def checked(owner: Any, parameters: dict[str, Parameter], values: dict[str, Any]) -> dict[str, Any]:
    """Return hyperparameters as numbers, or raise an error that names the owner and one of them."""
    return {name: one.checked(owner, numbers(values[name])) for name, one in parameters.items()}


class NativeOptimizer(KernelStep):
    """Base class of optimizers whose formula, hyperparameters and defaults are those of `rule_class`."""

    part_class: ClassVar[type[Part]] = NativePart
    hyperparameters: ClassVar[dict[str, Parameter]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rule_class" in vars(cls):
            rule_class: Any = cls.rule_class
            cls.hyperparameters = declared(rule_class)
            cls.__signature__ = KEYWORDS.extended(signature(cls.hyperparameters))  # type: ignore[attr-defined]
            cls.__doc__ = documentation(cls.__doc__, rule_class, cls.hyperparameters)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        keywords = KEYWORDS.popped(kwargs)
        try:
            bound = signature(self.hyperparameters).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        params = bound.arguments.pop("params")
        checked(self, self.hyperparameters, bound.arguments)
        super().__init__(params, bound.arguments, **keywords)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as PyTorch does.

        Raises
        ------
        TypeError, ValueError
            If it holds variables of fastvar, or a hyperparameter cannot have its value.
        """
        if isinstance(param_group, dict):
            checked(self, self.hyperparameters, {**self.defaults, **param_group})
        super().add_param_group(param_group)


def signature(parameters: dict[str, Parameter]) -> inspect.Signature:
    """Return the signature of a class with these hyperparameters."""
    either, by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    made = [
        inspect.Parameter(name, by_name if one.kw_only else either, default=one.default)
        for name, one in parameters.items()
    ]
    return inspect.Signature([inspect.Parameter("params", either), *made])


def documentation(summary: str | None, rule_class: Any, parameters: dict[str, Parameter]) -> str:
    """Return the docstring of a class that begins with a summary."""
    lines = [
        f"{summary}\n",
        f"Formula and parameters are those of `fastvar.optimizers.{rule_class.__name__}`;",
        "`lr` is its `learning_rate`. Each tensor has its own count of updates.\n",
        "Parameters\n----------",
        "params : iterable",
        "    Tensors to update, or groups of these, as in every optimizer of PyTorch.",
    ]
    for name, one in parameters.items():
        kind = "float or None" if one.default is None else type(one.default).__name__
        lines.append(f"{name} : {kind}\n    By default {one.default}.")
    lines.append("**keywords\n    Those of every class, see `KernelStep`.")
    return "\n".join(lines)


class Lion(NativeOptimizer):
    """`fastvar.optimizers.Lion` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Lion


class Signum(NativeOptimizer):
    """`fastvar.optimizers.Signum` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Signum


class AdEMAMix(NativeOptimizer):
    """`fastvar.optimizers.AdEMAMix` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.AdEMAMix


class Adan(NativeOptimizer):
    """`fastvar.optimizers.Adan` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Adan


class Adopt(NativeOptimizer):
    """`fastvar.optimizers.Adopt` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Adopt


class ScheduleFreeAdamW(NativeOptimizer):
    """`fastvar.optimizers.ScheduleFreeAdamW` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.ScheduleFreeAdamW


class AdaBelief(NativeOptimizer):
    """`fastvar.optimizers.AdaBelief` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.AdaBelief


class Yogi(NativeOptimizer):
    """`fastvar.optimizers.Yogi` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Yogi


class Ftrl(NativeOptimizer):
    """`fastvar.optimizers.Ftrl` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Ftrl


class Lamb(NativeOptimizer):
    """`fastvar.optimizers.Lamb` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Lamb
    plan_class: ClassVar[type[TensorPlan]] = MeasuringPlan


class Lars(NativeOptimizer):
    """`fastvar.optimizers.Lars` on torch tensors."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Lars
    plan_class: ClassVar[type[TensorPlan]] = MeasuringPlan


class Prodigy(NativeOptimizer):
    """`fastvar.optimizers.Prodigy` on torch tensors. All share one estimate, with the first group's parameters."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Prodigy
    plan_class: ClassVar[type[TensorPlan]] = MeasuringPlan

    @property
    def distance(self) -> float:
        """The current estimate of the distance to the solution."""
        first: float = self.param_groups[0]["initial_distance"]
        return max((float(state["distance"]) for state in self.state.values()), default=first)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, as PyTorch does, but keep its estimate in float64."""
        super().load_state_dict(state_dict)
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for number, p in zip(saved, params, strict=True):
            for name in ("distance", "numerator"):
                if name in (state := state_dict["state"].get(number, {})):
                    self.state[p][name] = state[name].clone()
