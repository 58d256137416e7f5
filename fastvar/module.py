"""Trees of variables: modules like `tf.Module`, and dicts, lists and dataclasses of variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvar import buffers
from fastvar.masters import exact
from fastvar.tables import Table, count, size
from fastvar.variable import Variable

Part = Any  # a node of a tree: the number of a variable, a dict of parts, or None for anything else
UNKNOWN = object()  # for names that are not in a tree
FEW = 5  # the most paths that an error names
_LEAVES = {type(None), bool, int, float, str}


def children(thing: Any) -> Iterable[tuple[str, Any]] | None:
    """Return the children of a tree with their names, or None for something that is not a tree.

    Trees are modules, mappings, lists, tuples, named tuples and dataclasses, of variables or of gradients.
    """
    if isinstance(thing, (list, tuple)):
        return zip(getattr(thing, "_fields", None) or map(str, range(len(thing))), thing, strict=True)
    if isinstance(thing, Mapping):
        if hasattr(type(thing), "close") or hasattr(type(thing), "tocsr"):  # an open file, a sparse matrix
            return None
        return zip(map(str, thing), thing.values(), strict=True)
    if isinstance(thing, Module):
        return (dict(_fields(thing)) | vars(thing)).items()  # a dataclass may keep its fields in slots
    return _fields(thing) if dataclasses.is_dataclass(thing) and not isinstance(thing, type) else None


def _fields(thing: Any) -> list[tuple[str, Any]]:
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    return [(field.name, getattr(thing, field.name)) for field in fields if hasattr(thing, field.name)]


def is_sequence(thing: Any) -> bool:
    """Return whether the children of a tree have positions instead of names."""
    return isinstance(thing, (list, tuple)) and not hasattr(thing, "_fields")


def as_tree(thing: Any, owner: str) -> Any:
    """Return a tree as it is, and any other iterable as a list."""
    if isinstance(thing, (list, tuple, Variable)) or children(thing) is not None:
        return thing
    if not isinstance(thing, Iterable):
        raise TypeError(f"{owner} must be a list, a dict, a module or the like, got {thing!r}")
    return list(thing)


def walk(thing: Any, path: str = "") -> list[tuple[str, Variable]]:
    """Return the variables of a tree with their paths. A shared variable is listed once, under its first path."""
    tree = Tree(thing, path)
    return [*zip(tree.paths, tree.variables, strict=True)]


def holds_variables(thing: Any) -> bool:
    """Return whether a tree holds a variable. Skip long lists of numbers, which are common in state."""
    rest: list[Any] = [thing]
    seen: dict[int, Any] = {}
    held: Iterable[Any]
    while rest:
        thing = rest.pop()
        if isinstance(thing, Variable):
            return True
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if type(thing) is dict:
            held = thing.values()
        elif type(thing) is list:
            held = () if {*map(type, thing)} <= _LEAVES else thing
        else:
            held = [child for _, child in children(thing) or ()]
        rest += [child for child in held if type(child) not in _LEAVES]
    return False


class Tree:
    """The variables of a tree and their paths, by which gradients are matched.

    Parameters
    ----------
    root : tree or Variable
    path : str
        The path of the root.
    counters : bool
        Whether to include frozen variables in modules whose dtype no optimizer can update.

    Attributes
    ----------
    variables : list of Variable
        Each of them once, in the order of the tree.
    paths : list of str
        The first path of each.
    foreign : list of (str, object)
        Objects where only variables belong, with their paths. Modules may hold anything. Dataclasses may hold
        anything but arrays. None may be anywhere.
    duplicates : list of (str, str)
        Both paths of anything that occurs twice, outside modules.
    ordered : bool
        Whether the order of the variables is certain. That of a dict is not: JAX sorts its keys.
    flat : bool
        Whether it is a plain sequence of variables.
    sequence_length : int
        The length of a list of gradients that can only be in the order of the variables, or -1.
    """

    def __init__(self, root: Any, path: str = "", counters: bool = True) -> None:
        self.variables: list[Variable] = []
        self.paths: list[str] = []
        self.foreign: list[tuple[str, Any]] = []
        self.duplicates: list[tuple[str, str]] = []
        self.ordered: bool = True
        self._counters = counters
        self._parts = self._part(root, path, "data", {})
        self._positions = is_sequence(root)
        self.flat: bool = self._positions and all(type(part) is int for part in self._parts.values())
        alike = self._positions and len(self._parts) == len(self.variables) and not self.flat
        in_order = type(self._parts) is dict and self.ordered and not alike
        self.sequence_length: int = len(self.variables) if in_order else -1

    def _part(self, thing: Any, path: str, within: str, seen: dict[int, tuple[str, Part, Any]]) -> Part:
        """Return the part for an object at a path. `seen` has the path and the part of each object so far."""
        if id(thing) in seen:
            first, part, _ = seen[id(thing)]
            if within != "module" and _numbers(part):
                self.duplicates.append((first, path))
            return part
        if isinstance(thing, Variable):
            if within == "module" and not (self._counters or thing.trainable or buffers.trained(thing.dtype)):
                return None
            number = len(self.variables)
            self.variables.append(thing)
            self.paths.append(path)
            seen[id(thing)] = path, number, thing
            return number
        held = children(thing)
        if held is None:
            strange = within == "data" or (within == "dataclass" and hasattr(type(thing), "__array__"))
            if strange and thing is not None:
                self.foreign.append((path, thing))
            return None
        if isinstance(thing, Module):
            within = "module"
        elif dataclasses.is_dataclass(thing) and within == "data":
            within = "dataclass"
        seen[id(thing)] = path, None, thing  # a tree that contains itself ends here
        known = len(self.variables)
        parts = {name: self._part(child, _join(path, name), within, seen) for name, child in held}
        if within != "module" and isinstance(thing, Mapping) and len(self.variables) > known:
            self.ordered = False
        seen[id(thing)] = path, parts, thing
        return parts

    def arrange(self, gradients: Any, owner: str) -> list[Any]:
        """Return the gradients in a tree with the same paths, one per variable.

        A mapping may also have full paths, or names of variables, as keys. A flat sequence or other iterable gives
        the gradients in the order of the variables.

        Raises
        ------
        ValueError
            If a path is missing or unknown, or a variable has two gradients.
        """
        if type(self._parts) is not dict:
            return [gradients]
        gradients = as_tree(gradients, f"{owner}: gradients")
        if is_sequence(gradients) and self._in_order(gradients, owner):
            return list(gradients)
        found: dict[int, Any] = {}
        wrong: dict[str, list[str]] = {"unknown": [], "given twice": []}
        self._find(self._parts, gradients, "", found, wrong)
        missing = [i for i in range(len(self.variables)) if i not in found]
        wrong["missing"] = [repr(self.paths[i]) for i in missing]
        what = "; ".join(f"{kind} {_few(paths)}" for kind, paths in wrong.items() if paths)
        if what:
            if missing and not any(self.variables[i].trainable for i in missing):
                what += "; these are not trained: give None, or pass `trainable_variables` of the module"
            raise ValueError(f"{owner}: gradients must have the paths of the variables (None is none): {what}")
        return [found[i] for i in range(len(self.variables))]

    def _in_order(self, gradients: Any, owner: str) -> bool:
        """Return whether a sequence holds the gradients in order, and is not a tree."""
        n = len(self.variables)
        if self._positions and not self.flat:
            parts = self._parts.values()
            if len(gradients) == len(parts) and all(map(self._fits, parts, gradients, range(len(parts)))):
                return False
            if len(gradients) != n and any(children(gradient) is not None for gradient in gradients):
                return False
        paths = _few([repr(path) for path in self.paths])
        if not self.ordered:
            raise ValueError(
                f"{owner}: gradients must be given by their paths {paths}, as dicts have no order that all agree "
                f"on; got a sequence of {len(gradients)}"
            )
        if len(gradients) != n:
            raise ValueError(
                f"{owner}: got {count(len(gradients), 'gradient')} for {count(n, 'variable')}, {paths}"
            )
        return True

    def _fits(self, part: Part, gradient: Any, position: int) -> bool:
        """Return whether an element of a sequence can belong to the part of the tree at its position."""
        if type(part) is int or gradient is None:
            return True
        if part is None or children(gradient) is None:
            return False
        return len(self._parts) != len(self.variables) or not _is_gradient(gradient, self.variables[position])

    def _find(
        self,
        parts: dict[str, Part],
        gradients: Any,
        path: str,
        found: dict[int, Any],
        wrong: dict[str, list[str]],
    ) -> None:
        """Collect the gradients below a path in `found`, and mistakes in `wrong`."""
        if gradients is None:
            found.update({number: None for number in _numbers(parts) if number not in found})
            return
        held = children(gradients)
        if held is None:
            wrong["unknown"].append(f"{path!r} ({type(gradients).__name__})")
            return
        if parts is self._parts:
            held = list(held)
            if any(name not in parts for name, _ in held):
                parts = self._named() | parts
        for name, gradient in held:
            part = parts.get(name, UNKNOWN)
            if type(part) is int:
                if found.get(part) is None:
                    found[part] = gradient
                elif gradient is not None and gradient is not found[part]:
                    wrong["given twice"].append(repr(_join(path, name)))
            elif type(part) is dict:
                self._find(part, gradient, _join(path, name), found, wrong)
            elif part is UNKNOWN:
                wrong["unknown"].append(repr(_join(path, name)))

    def _named(self) -> dict[str, int]:
        """Return the numbers of the variables by their full paths and names, where these are unique."""
        numbers: dict[str, set[int]] = {}
        for number, (path, variable) in enumerate(zip(self.paths, self.variables, strict=True)):
            for name in (path, variable.name or path):
                numbers.setdefault(name, set()).add(number)
        return {name: min(those) for name, those in numbers.items() if len(those) == 1}


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _is_gradient(thing: Any, variable: Variable) -> bool:
    """Return whether a list is itself a gradient of the variable: a list of numbers can be."""
    try:
        array = np.asarray(thing)
    except Exception:  # whatever a foreign __array__ raises
        return False
    return array.shape == variable.shape and array.dtype.kind in "fiub"


def _numbers(part: Part) -> list[int]:
    """Return the numbers of the variables below a part."""
    if type(part) is dict:
        return [number for below in part.values() for number in _numbers(below)]
    return [] if part is None else [part]


def _few(names: list[str]) -> str:
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more:,} more" if more > 0 else "")


def _lost(before: Any, now: Any, path: str) -> str | None:
    """Return the path at which something else would replace a variable (in containers: an array would)."""
    if isinstance(before, Variable):
        return None if isinstance(now, Variable) else path
    pairs: Any = ()
    if before is not now and isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)):
        pairs = enumerate(zip(before, now, strict=False))
    elif before is not now and isinstance(before, dict) and isinstance(now, dict):
        pairs = [(key, (before[key], now[key])) for key in before if key in now]
    for key, (old, new) in pairs:
        if isinstance(old, Variable) and not hasattr(new, "shape"):
            continue
        if lost := _lost(old, new, f"{path}[{key!r}]"):
            return lost
    return None


def penalty(variables: Any) -> float:
    """Return the sum of the penalties of the trainable variables in a tree.

    It belongs to the loss that a program reports; optimizers add its gradient themselves.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, -2.0], regularizer=fv.regularizers.L1(0.5))
    >>> fv.penalty([w, fv.Variable(3.0)])
    1.5
    """
    held = walk(as_tree(variables, "penalty: variables"))
    return sum((v.regularizer(exact(v.memory)) for _, v in held if v.trainable and v.regularizer), 0.0)


class Module:
    """Base class of objects that own variables.

    A module finds the variables in its attributes, which may be variables, modules, or dicts, lists, tuples, named
    tuples and dataclasses of them. Their order is that in which the attributes were set. A variable without a name
    of its own is named by its path, such as `encoder/0/kernel`.

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

    if not TYPE_CHECKING:  # with a __setattr__, type checkers allow every name

        def __setattr__(self, name: str, value: Any) -> None:
            if lost := _lost(vars(self).get(name), value, name):
                raise TypeError(
                    f"{type(self).__name__}: {lost} holds a Variable, and must be assigned one, got "
                    f"{type(value).__name__}; to change its values, `.{lost}.assign(...)`; to drop it, `del` first"
                )
            super().__setattr__(name, value)

    def named_variables(self) -> dict[str, Variable]:
        """Return the variables by their paths.

        Raises
        ------
        ValueError
            If two variables have the same name.
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

    def penalty(self) -> float:
        """Return the sum of the penalties of its trainable variables, as `fastvar.penalty` does."""
        return penalty(self)

    @property
    def trainable(self) -> bool:
        """Whether any variable is trainable; assigning freezes or unfreezes all of them."""
        return any(v.trainable for v in self.variables)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for variable in self.variables:
            variable.trainable = value

    def summary(self) -> Table:
        """Return a table of the variables: names, shapes, dtypes, bytes, and which are trainable.

        Examples
        --------
        >>> import fastvar as fv, numpy as np
        >>> net = fv.Module()
        >>> net.kernel = fv.Variable(np.zeros((300, 10), np.float32))
        >>> net.bias = fv.Variable(np.zeros(10), trainable=False)
        >>> net.summary()
        Module
        name    shape      dtype    trainable   bytes
        ------  ---------  -------  ---------  ------
        kernel  (300, 10)  float32  yes        12,000
        bias    (10,)      float64  no             80
        2 variables, 3,010 parameters (3,000 trainable), 12.1 kB
        """
        named = self.named_variables()
        rows = [(name, str(v.shape), str(v.dtype), v.trainable, v.nbytes) for name, v in named.items()]
        total = count(sum(v.size for v in named.values()), "parameter")
        trainable = sum(v.size for v in named.values() if v.trainable)
        memory = size(sum(v.nbytes for v in named.values()))
        footer = f"{count(len(named), 'variable')}, {total} ({trainable:,} trainable), {memory}"
        return Table(type(self).__name__, ("name", "shape", "dtype", "trainable", "bytes"), rows, footer)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def __repr__(self) -> str:
        variables = self.variables
        total = count(sum(v.size for v in variables), "parameter")
        return f"<{type(self).__name__}: {count(len(variables), 'variable')}, {total}>"
