"""Schedules as text, as on a command line: a Python expression, parsed without evaluating it."""

from __future__ import annotations

import ast
from typing import Any

from fastvar import schedules
from fastvar.names import did_you_mean
from fastvar.schedules.base import LearningRateSchedule

PREFIXES = ("", "schedules", "fv.schedules", "fastvar.schedules")


def parse(text: str) -> LearningRateSchedule:
    """Make a schedule from `text`: a class of `fastvar.schedules`, whose arguments are literals and schedules.

    Raises
    ------
    TypeError, ValueError
        If it is anything else, or the class refuses the arguments.

    Examples
    --------
    >>> from fastvar.schedules.notation import parse
    >>> parse("Warmup(CosineDecay(0.1, decay_steps=1000), 100)")
    Warmup(schedule=CosineDecay(initial_learning_rate=0.1, decay_steps=1000), warmup_steps=100)
    """
    try:
        body = ast.parse(text.strip(), mode="eval").body
        if isinstance(body, (ast.Name, ast.Attribute)):
            raise ValueError(f"schedule must have arguments, as {_class(body).__name__}(...), got {text!r}")
        value = _value(body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"schedule must be a Python expression, got {text!r}") from error
    if not isinstance(value, LearningRateSchedule):
        raise ValueError(f"schedule must be one of {', '.join(_known())}, got {text!r}")
    return value


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        arguments = [_value(argument) for argument in node.args]
        if any(k.arg is None for k in node.keywords):
            raise ValueError(f"arguments must be given one by one, got {ast.unparse(node)}")
        return _class(node.func)(*arguments, **{str(k.arg): _value(k.value) for k in node.keywords})
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(element) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node)
        raise ValueError(f"arguments must be numbers, strings, lists or schedules, got {text}") from None


def _class(node: ast.expr) -> Any:
    prefix, _, name = ast.unparse(node).rpartition(".")
    if prefix not in PREFIXES or name not in _known():
        raise _unknown(ast.unparse(node))
    return getattr(schedules, name)


def _unknown(text: str) -> ValueError:
    hint = did_you_mean(text.rpartition(".")[2], {"": _known()})
    return ValueError(f"schedule must be one of {', '.join(_known())}, got {text}{hint}")


def _known() -> list[str]:
    return [name for name in schedules.__all__ if name != LearningRateSchedule.__name__]
