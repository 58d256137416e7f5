"""Keywords of fastvar that a framework's classes of optimizers take beside their own arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from fastvar.hyper import Parameter
from fastvar.optimizer.options import Options


class Keywords:
    """Parameters that classes of a framework take by name.

    Parameters
    ----------
    options : tuple of str
        The names of those that mean the same as in `fastvar.optimizers`.
    **parameters : Parameter
        All others.
    """

    def __init__(self, options: tuple[str, ...], **parameters: Parameter) -> None:
        self.options: tuple[str, ...] = options
        self.parameters: dict[str, Parameter] = parameters | {
            name: copy.copy(Options.parameters[name]) for name in options
        }
        for name, parameter in self.parameters.items():
            parameter.name = name
        self.defaults: dict[str, Any] = {name: parameter.default for name, parameter in self.parameters.items()}

    def popped(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Remove the keywords from arguments, and return them."""
        return {name: arguments.pop(name) for name in self.parameters if name in arguments}

    def checked(self, owner: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Return the values of keywords, or raise an error that names one."""
        return {name: self.parameters[name].checked(owner, value) for name, value in given.items()}

    def changed(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return those that are not at their default."""
        return {name: value for name, value in values.items() if value != self.defaults[name]}

    def extended(self, signature: inspect.Signature) -> inspect.Signature:
        """Return a signature with the keywords."""
        own = [*signature.parameters.values()]
        rest = [p for p in own if p.kind is inspect.Parameter.VAR_KEYWORD]
        by_name = inspect.Parameter.KEYWORD_ONLY
        more = [inspect.Parameter(name, by_name, default=default) for name, default in self.defaults.items()]
        return signature.replace(parameters=[*own[: len(own) - len(rest)], *more, *rest])


class Keyword:
    """The attribute of an optimizer that has the value of a keyword. It is checked when it is set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name: str = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer._keywords[self.name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        optimizer._take({self.name: value})


def keyword() -> Any:
    """Return a `Keyword`."""
    return Keyword()


def arguments_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a method without `self`."""
    return inspect.Signature([*inspect.signature(function).parameters.values()][1:])
