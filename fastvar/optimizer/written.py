"""A user's `update` as a rule in NumPy, and the mistakes in it that would do nothing."""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.hyper import suggestion
from fastvar.kernels.numpy_rule import Rule as NumpyRule

HOW = "write `variable -= step` or `variable[...] = new`, as `variable = new` only names another array"


class Written:
    """A rule that calls a function, which is watched at its first gradient that is not 0.

    Parameters
    ----------
    update : callable
        The `update` of an optimizer.
    slots : sequence of str
        The names of its slots.
    owner : str
        The optimizer, for messages.
    """

    def __init__(self, update: Callable[..., Any], slots: Sequence[str], owner: str) -> None:
        self._update = update
        self._slots = tuple(slots)
        self._owner = owner
        self._watched = True

    def rule(self) -> NumpyRule:
        """Return it as a rule."""
        return NumpyRule(self._block, self._slots, ("hyper",), whole=True)

    def _block(self, w: Array, g: Array, c: Any, *slots: Array) -> None:
        places = dict(zip(self._slots, slots, strict=True))
        namespace = SimpleNamespace(**places)
        before = w.copy() if self._watched and g.any() else None
        returned = self._update(w, g, namespace, c.hyper)
        if returned is not None and returned is not w:
            raise TypeError(f"{self._owner}: update must return None, got {type(returned).__name__}: {HOW}")
        if before is not None:
            if np.array_equal(before, w, equal_nan=True) and (name := _rebound(self._update)):
                warnings.warn(f"{self._owner}: `{name} = ...` has not changed the weights: {HOW}", stacklevel=2)
            self._watched = False
        for name, value in vars(namespace).items():
            if name not in places:
                hint = suggestion(name, {slot: slot for slot in places})
                raise AttributeError(f"{self._owner}: slots has no {name!r}{hint}; declare it in `slots`")
            if value is not places[name]:  # `slots.velocity = ...` also writes into it
                places[name][...] = value


def _rebound(update: Callable[..., Any]) -> str:
    """Return the name of the first argument if the source assigns to that name, else an empty string.

    Without this, rules would be suspected that rightly leave the weights at first, such as Adopt.
    """
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(update))).body
    except (OSError, TypeError, SyntaxError, ValueError):  # no source, or not of one function
        return ""
    name = next(iter(inspect.signature(update).parameters))
    targets = [t for node in ast.walk(function) if isinstance(node, ast.Assign) for t in node.targets]
    return name if any(isinstance(target, ast.Name) and target.id == name for target in targets) else ""
