"""Gradients of a loss by autograd, JAX or PyTorch, each imported when it is first used."""

from __future__ import annotations

import functools
import importlib
import math
import reprlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fastvar.module import Tree, as_tree, children, is_sequence
from fastvar.variable import Variable

Library = Literal["autograd", "jax", "torch"]
Loss = Callable[[Any], Any]
Fill = Callable[[list[Any]], Any]  # makes the argument of a loss from the arrays of trained variables
ONLY_LOSS = '; if it returns only the loss, pass gradients="autograd", "jax" or "torch"'


def loss_and_gradients(owner: str, value_and_grad: Callable[[], Any], hint: str = "") -> tuple[Any, Any]:
    """Return the loss and the gradients that a function returns. The hint ends the error if it returns others."""
    if not callable(value_and_grad):
        raise TypeError(f"{owner}: value_and_grad must be a function, got {reprlib.repr(value_and_grad)}")
    try:
        found = value_and_grad()
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # not the call itself failed, but something within
        raise TypeError(f"{owner}: value_and_grad is called without arguments, but {error}{hint}") from None
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f"{owner}: value_and_grad must return (loss, gradients), got {reprlib.repr(found)}{hint}")
    return found[0], found[1]


def as_number(owner: str, loss: Any) -> float:
    """Return a loss as a float."""
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise TypeError(f"{owner}: the loss must be a number, got {reprlib.repr(loss)}") from None


def differentiated(owner: str, loss: Loss, variables: Any, library: Library) -> Callable[[], tuple[Any, Any]]:
    """Return a function that returns the loss and its gradients, in a tree like that of the variables.

    Parameters
    ----------
    owner : str
        The beginning of error messages.
    loss : callable
        Takes a tree like `variables`, with the library's arrays instead of variables. Modules become dicts.
    variables : tree of Variable
        What to differentiate with respect to; frozen ones are constants.
    library : {"autograd", "jax", "torch"}
        What differentiates.
    """
    if library not in LIBRARIES:
        raise ValueError(f"{owner}: gradients must be one of {', '.join(map(repr, LIBRARIES))}, got {library!r}")
    if not callable(loss):
        raise TypeError(f"{owner}: the loss must be a function of the variables, got {loss!r}")
    try:
        module = importlib.import_module(library)
    except ImportError:
        raise ImportError(f"{owner}: gradients={library!r} needs {library}; run `pip install {library}`") from None
    convert, differentiate = LIBRARIES[library]
    root = as_tree(variables, f"{owner}: variables")

    def value_and_grad() -> tuple[Any, Any]:
        flat = Tree(root, counters=False).variables
        trained = [v for v in flat if v.trainable]

        def tree(arrays: Any) -> Any:
            return _filled(root, given | dict(zip(map(id, trained), arrays, strict=True)))

        given = {id(v): convert(module, v, owner) for v in flat}
        value, grads = differentiate(module, loss, tree, [given[id(v)] for v in trained])
        return value, _filled(root, {id(v): g for v, g in zip(trained, grads, strict=True)})

    return value_and_grad


def _filled(thing: Any, values: dict[int, Any]) -> Any:
    """Return a tree with the values, by the `id` of variables, instead of variables, or None."""
    if isinstance(thing, Variable):
        return values.get(id(thing))
    held = children(thing)
    if held is None:
        return thing
    if is_sequence(thing):
        return [_filled(child, values) for _, child in held]
    filled = {name: _filled(child, values) for name, child in held}
    return type(thing)(**filled) if isinstance(thing, tuple) else filled


def _checked(value: Any, tensor: type = object) -> Any:
    """Return what a loss has returned: one number, and for PyTorch a tensor."""
    numeric = not isinstance(value, (str, tuple, list, dict, set, type(None)))
    if not numeric or math.prod(getattr(value, "shape", ())) != 1:
        raise TypeError(
            f"with gradients=... the function must return only the loss, a number; got {reprlib.repr(value)}"
        )
    if not isinstance(value, tensor):
        raise TypeError(f'with gradients="torch" the loss must be a tensor, got {reprlib.repr(value)}')
    return value


def _by_autograd(module: Any, loss: Loss, tree: Fill, arrays: list[Any]) -> Any:
    return module.value_and_grad(lambda trained: _checked(loss(tree(trained))))(arrays)


def _to_jax(jax: Any, v: Variable, owner: str) -> Any:
    """Return a copy: JAX may share memory, which the step then changes."""
    if v.dtype == np.float64 and not jax.config.jax_enable_x64:
        raise TypeError(
            f"{owner}: {v!r} is float64, which JAX would cast to float32; make it float32, "
            'or call jax.config.update("jax_enable_x64", True) first'
        )
    return jax.numpy.array(v.numpy(), copy=True)


def _by_jax(jax: Any, loss: Loss, tree: Fill, arrays: list[Any]) -> Any:
    bound = loss if isinstance(loss, functools.partial) else functools.partial(loss)
    if isinstance(bound.func, jax.stages.Wrapped):  # jax.jit has made constants of what it closes over
        given, structure = jax.tree.flatten(tree(arrays))
        number_of = {id(array): i for i, array in enumerate(arrays)}
        numbers = tuple(number_of.get(id(array), -1) for array in given)
        compiled = _compiled(jax, bound.func)
        value, grads = compiled(arrays, given, bound.args, bound.keywords, numbers, structure)
    else:
        value, grads = jax.value_and_grad(lambda trained: _checked(loss(tree(trained))))(arrays)
    return float(value), [np.asarray(g) for g in grads]


@functools.lru_cache(maxsize=16)
def _compiled(jax: Any, function: Any) -> Any:
    """Return the value and the gradients, compiled, of a loss that `jax.jit` has made.

    It takes the trained arrays; the leaves of the argument of the loss; the other arguments; of each leaf its
    number among the trained arrays, -1 if it is none; and the structure of the argument.
    """

    def loss(arrays: Any, given: Any, args: Any, keywords: Any, numbers: Any, structure: Any) -> Any:
        leaves = [leaf if i < 0 else arrays[i] for leaf, i in zip(given, numbers, strict=True)]
        return _checked(function(*args, structure.unflatten(leaves), **keywords))

    return jax.jit(jax.value_and_grad(loss), static_argnums=(4, 5))


def _by_torch(torch: Any, loss: Loss, tree: Fill, arrays: list[Any]) -> Any:
    value = _checked(loss(tree([tensor.requires_grad_() for tensor in arrays])), torch.Tensor)
    grads = torch.autograd.grad(value, arrays, allow_unused=True)
    wide = [g.float() if g is not None and g.dtype is torch.bfloat16 else g for g in grads]  # NumPy has none
    return value.item(), [None if g is None else g.numpy() for g in wide]


def _to_torch(torch: Any, v: Variable, owner: str) -> Any:
    """Return a copy: the loss may keep it."""
    if v.dtype.name == "bfloat16":
        return torch.tensor(v.value.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(v.value)


def _to_autograd(module: Any, v: Variable, owner: str) -> Any:
    if v.dtype.name == "bfloat16":
        raise TypeError(f'{owner}: {v!r} is bfloat16, which autograd does not know; use "jax" or "torch"')
    return v.value


LIBRARIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "autograd": (_to_autograd, _by_autograd),
    "jax": (_to_jax, _by_jax),
    "torch": (_to_torch, _by_torch),
}  # what makes an array of a variable, and what differentiates
