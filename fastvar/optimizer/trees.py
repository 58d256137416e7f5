"""The arguments of `build` and `apply`: trees of variables and gradients, and groups in them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Container, Iterable, Mapping
from operator import is_
from typing import Any

import numpy as np

from fastvar import buffers
from fastvar.module import Module, Tree, as_tree, is_sequence
from fastvar.optimizer.state import State
from fastvar.place import label
from fastvar.variable import Variable


def parsed(owner: str, variables: Any, keys: tuple[str, ...]) -> tuple[Tree, list[dict[str, Any]]]:
    """Return the tree given to `Optimizer.build`, and its groups; first the variables outside groups."""
    refuse_tensors(owner, [variables])
    root = as_tree(variables, f"{owner}: variables")
    if isinstance(root, Module):
        root.named_variables()  # this names them
    tree = tree_of(owner, root, keys)
    refuse_foreign(owner, tree, f" (a group has the key {keys[0]!r})")
    for path, variable in zip(tree.paths, tree.variables, strict=True):
        if variable.name is None and not path.replace("/", "").isdigit():
            variable._path = path
    entries = root if is_sequence(root) else [root]
    standing: list[list[Variable]] = [[] for _ in entries]
    for path, variable in zip(tree.paths, tree.variables, strict=True):
        standing[int(path.partition("/")[0]) if is_sequence(root) else 0].append(variable)
    alone: list[Variable] = []
    grouped: list[dict[str, Any]] = []
    for entry, held in zip(entries, standing, strict=True):
        key = _key(owner, entry, keys)
        if key is None:
            alone += held
        else:
            grouped.append({name: value for name, value in entry.items() if name != key} | {"variables": held})
    return tree, [{"variables": alone}, *grouped] if alone or not grouped else grouped


def tree_of(owner: str, variables: Any, keys: tuple[str, ...]) -> Tree:
    """Return a tree of variables that must occur once each, except in modules."""
    tree = Tree(ungrouped(owner, variables, keys), counters=False)
    for first, second in tree.duplicates:
        name = tree.variables[tree.paths.index(first)].name if first in tree.paths else None
        what = repr(name) if name else f"variable {second}"
        raise ValueError(f"{owner}: {what} comes twice, at {first!r} and {second!r}")
    return tree


def tree_among(owner: str, variables: Any, keys: tuple[str, ...], known: Container[int]) -> Tree:
    """Return a tree of variables that must be among those of an optimizer, given by their `id`."""
    tree = tree_of(owner, variables, keys)
    refuse_tensors(owner, [thing for _, thing in tree.foreign])
    for _, thing in tree.foreign:
        raise TypeError(f"{owner}: variables must be fastvar.Variable, got {type(thing).__name__}")
    for v in tree.variables:
        if id(v) not in known:
            raise ValueError(
                f"{owner}: unknown variable {v!r}; call build with all variables first, "
                "or make an optimizer for it"
            )
    return tree


def variables_of(owner: str, var_list: Any) -> list[Variable]:
    """Return the variables of a tree or of another iterable."""
    refuse_tensors(owner, [var_list])
    tree = Tree(as_tree(var_list, f"{owner}: var_list"))
    refuse_foreign(owner, tree)
    return tree.variables


def arranged(
    owner: str, known: Tree | None, state: State, keys: tuple[str, ...], grads: Any, variables: Any
) -> list[Any]:
    """Return gradients in the order of the variables of an optimizer.

    The optimizer is built on the tree `known`. `variables` is a tree of the variables of the gradients; None means
    all.
    """
    tree = known
    if known is not None and variables is not None:
        if type(variables) is not list:
            variables = as_tree(variables, f"{owner}: variables")
        alike = is_sequence(variables) and known.flat and len(variables) == len(known.variables)
        if not (alike and all(map(is_, variables, known.variables))):
            tree = tree_among(owner, variables, keys, state.index)
    n = len(tree.variables) if tree is not None and tree.flat else None
    if n is not None and isinstance(grads, np.ndarray) and grads.shape[:1] != (n,):
        raise TypeError(f"{owner}: gradients must be a list of arrays, got one array of shape {grads.shape}")
    if tree is None or (tree is known and tree.flat and is_sequence(grads)):
        flat = list(grads)
        if flat and tree is None:
            raise ValueError(f"{owner}: call build(variables) first, or pass the variables")
        return flat  # the plan checks their number
    gradients = tree.arrange(ungrouped(owner, grads, keys), owner)
    return gradients if tree.variables is state.variables else state.ordered(tree.variables, gradients)


def refuse_foreign(owner: str, tree: Tree, hint: str = "") -> None:
    """Check that a tree holds only variables. Add the hint to errors below the top level."""
    refuse_tensors(owner, [thing for _, thing in tree.foreign])
    for path, thing in tree.foreign:
        got = f"{type(thing).__name__} at {path!r}{hint if not path.isdigit() else ''}"
        raise TypeError(f"{owner}: variables must be fastvar.Variable, got {got}")


def refuse_tensors(owner: str, things: Iterable[Any]) -> None:
    """Raise TypeError if there is a tensor or module of PyTorch; `fastvar.torch.optim` is for these."""
    torch = sys.modules.get("torch")  # whoever has a tensor has loaded it
    if torch is None:
        return
    for thing in things:
        if isinstance(thing, (torch.Tensor, torch.nn.Module)):
            raise TypeError(
                f"{owner}: variables must be fastvar.Variable, got {type(thing).__name__} of PyTorch; "
                f"use {_for_tensors(owner)} for torch tensors"
            )


def _for_tensors(owner: str) -> str:
    """Return the name of the optimizer of torch tensors of that name, in any case; or where those are."""
    package = "fastvar.torch.optim"
    try:
        here = importlib.import_module(package)  # by name: it is above this layer, and imports PyTorch
    except ImportError:
        return package
    names = [name for name in here.__all__ if name.lower() == owner.lower()]
    return f"{package}.{names[0]}" if names else package


def ungrouped(owner: str, root: Any, keys: tuple[str, ...]) -> Any:
    """Return a tree of variables or gradients in which each group is replaced by its contents.

    A mapping is a group if it has one of the `keys` and is at the top level: the root, or in a sequence.
    """
    if is_sequence(root):
        return [_held(owner, entry, keys) for entry in root]
    return _held(owner, root, keys)


def _held(owner: str, entry: Any, keys: tuple[str, ...]) -> Any:
    key = _key(owner, entry, keys)
    if key is None or entry[key] is None:
        return entry if key is None else None
    return as_tree(entry[key], f"{owner}: {key} of a group")


def _key(owner: str, entry: Any, keys: tuple[str, ...]) -> str | None:
    """Return the key of the variables of a group, or None for something else."""
    if isinstance(entry, Variable) or not isinstance(entry, Mapping):
        return None
    present = [key for key in keys if key in entry]
    if len(present) > 1:
        raise ValueError(f"{owner}: a group must have one of {', '.join(map(repr, keys))}, got {len(present)}")
    return present[0] if present else None


def check_variables(owner: str, groups: list[dict[str, Any]], master: bool | None) -> None:
    """Check that there are variables, that an optimizer can update them, and that none occurs twice.

    `master` is the option where a group has none; None is that of an optimizer that cannot update 16 bits.
    """
    for k, group in enumerate(groups):
        if not group["variables"]:
            what = f"group {k}" if len(groups) > 1 else "build"
            raise ValueError(f"{owner}: {what} must be given variables, got none")
    seen: set[Any] = set()
    for i, (v, own) in enumerate((v, group) for group in groups for v in group["variables"]):
        if not isinstance(v, Variable):
            raise TypeError(f"{owner}: variables must be fastvar.Variable, got {type(v).__name__}")
        if not (v.dtype in buffers.REAL if master is None else buffers.trained(v.dtype)):
            kinds = "float32 or float64" if master is None else "float32, float64, bfloat16 or float16"
            raise TypeError(f"{owner}: {label(v, i)} must be {kinds}, got {v.dtype}")
        if v.dtype == np.float16 and not own.get("master", master) and v.master is None:
            raise ValueError(f"{owner}: {label(v, i)} is float16, which needs master=True")
        if id(v) in seen or v._name in seen:
            raise ValueError(f"{owner}: {label(v, i)} comes twice")
        seen |= {id(v), v._name} if v._name else {id(v)}
