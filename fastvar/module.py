"""Modules (layer 5): objects whose attributes hold variables, in the manner of `tf.Module`."""

from __future__ import annotations

from typing import Any

from fastvar.variable import Variable


def walk(thing: Any, path: str = "") -> list[tuple[str, Variable]]:
    """Return the variables reachable from `thing` with their paths: modules, lists, tuples, dicts, variables."""
    found: list[tuple[str, Variable]] = []
    _walk(thing, path, set(), found)
    return found


def _walk(thing: Any, path: str, seen: set[int], found: list[tuple[str, Variable]]) -> None:
    if id(thing) in seen:  # shared or cyclic: listed once, under its first path
        return
    children: Any = ()
    if isinstance(thing, Variable):
        found.append((path, thing))
    elif isinstance(thing, Module):
        children = vars(thing).items()
    elif isinstance(thing, dict):
        children = thing.items()
    elif isinstance(thing, (list, tuple)):
        children = enumerate(thing)
    else:
        return
    seen.add(id(thing))
    for key, child in children:
        _walk(child, f"{path}/{key}" if path else str(key), seen, found)


class Module:
    """Base class of things that own variables.

    Attributes that are variables, modules, or lists, tuples and dicts of them are found, in the order in
    which they were set; a variable without a name of its own is named by its path, such as
    `encoder/0/kernel`.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> class Dense(fv.Module):
    ...     def __init__(self, n, m):
    ...         self.kernel = fv.Variable(np.zeros((n, m), np.float32))
    ...         self.bias = fv.Variable(np.zeros(m, np.float32))
    >>> class Net(fv.Module):
    ...     def __init__(self):
    ...         self.encoder = [Dense(4, 3), Dense(3, 3)]
    ...         self.head = Dense(3, 2)
    >>> net = Net()
    >>> list(net.named_variables())[:2]
    ['encoder/0/kernel', 'encoder/0/bias']
    >>> net.encoder[0].trainable = False
    >>> [v.name for v in net.trainable_variables]
    ['encoder/1/kernel', 'encoder/1/bias', 'head/kernel', 'head/bias']
    """

    def named_variables(self) -> dict[str, Variable]:
        """Return the variables by their paths.

        Raises
        ------
        ValueError
            If two variables have one name.
        """
        named: dict[str, Variable] = {}
        for path, variable in walk(self):
            if variable._name is None and not (variable._path or "").endswith(f"/{path}"):
                variable._path = path  # the longest path seen: that of the outermost module
            name = variable._name or path
            if name in named:
                raise ValueError(f"{type(self).__name__}: two variables are named {name!r}")
            named[name] = variable
        return named

    @property
    def variables(self) -> list[Variable]:
        """All variables, in the order in which the attributes were set."""
        return list(self.named_variables().values())

    @property
    def trainable_variables(self) -> list[Variable]:
        """The variables whose `trainable` is True."""
        return [v for v in self.variables if v.trainable]

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """The variables whose `trainable` is False."""
        return [v for v in self.variables if not v.trainable]

    @property
    def trainable(self) -> bool:
        """Whether any variable is trainable; assigning freezes or unfreezes all of them."""
        return any(v.trainable for v in self.variables)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for variable in self.variables:
            variable.trainable = value

    def __repr__(self) -> str:
        variables = self.variables
        count = sum(v.size for v in variables)
        return f"<{type(self).__name__}: {len(variables)} variables, {count:,} parameters>"
