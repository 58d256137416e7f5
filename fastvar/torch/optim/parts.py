"""The groups of an optimizer, and how they give a rule its hyperparameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fastvar.optimizer.planning import Resolved
from fastvar.torch import AdamW
from fastvar.torch.optim.keywords import OF_GROUPS

FLAGS = ("amsgrad", "centered", "momentum")  # of a group: they decide on its slots and its rule
REFUSED = ("capturable", "differentiable")  # what a group must not ask for
DECAYING: Any = AdamW()  # says how weights decay that decay by themselves
FIXED = (float, int, bool, str, type(None))  # types of values that cannot change in place


class Carrying:
    """Makes a rule of `fastvar.torch` take the number that the update before left from its hyperparameters."""

    def _carried(self, what: str, hyper: Any, t: int, first: float, after: Callable[[float], float]) -> float:
        before: float = first if t == 1 else hyper.carried
        hyper.left = after(before)
        return before


@functools.cache
def carrying(rule_class: Any) -> Any:
    """Return a class like that of `fastvar.torch`, but `Carrying`, and stored under a name of its own."""
    return type(rule_class.__name__, (Carrying, rule_class), {"namespace": "torch.optim."})


class Part:
    """The members of a group, and the rule that its flags ask for."""

    def __init__(self, rule_class: Any, group: dict[str, Any], number: int, keywords: dict[str, Any]) -> None:
        self.rule: Any = self.rule_for(rule_class, group)
        self.decays: Any = DECAYING if group.get("decoupled_weight_decay") else self.rule
        self.number: int = number
        self.keywords: dict[str, Any] = keywords  # those of the optimizer, and its own
        self.slots: tuple[str, ...] = tuple(self.rule.slots)
        self.flags: list[Any] = flags(group)
        self.members: slice = slice(0)
        self.read: dict[str, Any] | None = None
        self.hyper: Any = None

    def rule_for(self, rule_class: Any, group: dict[str, Any]) -> Any:
        """Return the rule that the flags of a group ask for."""
        given = {name: group[name] for name in FLAGS if name in rule_class.parameters}
        settings = {name: float(bool(x)) if name == "momentum" else bool(x) for name, x in given.items()}
        return carrying(rule_class)(maximize=bool(group["maximize"]), **settings)

    def numbers(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters of a group with numbers in the place of tensors."""
        return {name: numbers(value) for name, value in values.items()}

    def read_options(self, group: dict[str, Any]) -> bool:
        """Take the hyperparameters of the group as numbers; return False if its flags are others."""
        values = {**group, "params": None, "param_names": None}
        if values == self.read:
            return True
        read = self.numbers(values)
        self.hyper = Resolved(read | {"slots": self.slots, "kind": "", "group": self.number})
        parts = [x for value in values.values() for x in (value if type(value) is tuple else (value,))]
        self.read = values if all(type(x) in FIXED for x in parts) else None
        return flags(group) == self.flags


def numbers(value: Any) -> Any:
    """Return a hyperparameter with numbers in the place of tensors."""
    if isinstance(value, torch.Tensor):
        return value.item()
    return tuple(map(numbers, value)) if type(value) in (tuple, list) else value


def flags(group: dict[str, Any]) -> list[Any]:
    """Return what a plan depends on in a group."""
    names = (*REFUSED, *FLAGS, "maximize", "decoupled_weight_decay")
    return [*(bool(group.get(name)) for name in names), *(group.get(name, ...) for name in OF_GROUPS)]
