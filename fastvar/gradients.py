"""Gradients of a loss by autograd, JAX or PyTorch, each imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fastvar.module import Tree, as_tree, children, is_sequence
from fastvar.variable import Variable

Library = Literal["autograd", "jax", "torch"]


def differentiated(
    owner: str, loss: Callable[[Any], Any], variables: Any, library: Library
) -> Callable[[], tuple[Any, Any]]:
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

        def of_trained(arrays: Any) -> Any:
            return loss(_filled(root, given | dict(zip(map(id, trained), arrays, strict=True))))

        given = {id(v): convert(module, v, owner) for v in flat}
        value, grads = differentiate(module, of_trained, [given[id(v)] for v in trained])
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


def _by_autograd(module: Any, loss: Callable[[Any], Any], arrays: list[Any]) -> Any:
    return module.value_and_grad(loss)(arrays)


def _to_jax(jax: Any, v: Variable, owner: str) -> Any:
    """Return a copy: JAX may share memory, which the step then changes."""
    if v.dtype == np.float64 and not jax.config.jax_enable_x64:
        raise TypeError(
            f"{owner}: {v!r} is float64, which JAX would cast to float32; make it float32, "
            'or call jax.config.update("jax_enable_x64", True) first'
        )
    return jax.numpy.array(v.numpy(), copy=True)


def _by_jax(jax: Any, loss: Callable[[Any], Any], arrays: list[Any]) -> Any:
    value, grads = jax.value_and_grad(loss)(arrays)
    return float(value), [np.asarray(g) for g in grads]


def _by_torch(torch: Any, loss: Callable[[Any], Any], arrays: list[Any]) -> Any:
    value = loss([tensor.requires_grad_() for tensor in arrays])
    grads = torch.autograd.grad(value, arrays, allow_unused=True)
    return value.item(), [None if g is None else g.numpy() for g in grads]


LIBRARIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "autograd": (lambda module, v, owner: v.value, _by_autograd),
    "jax": (_to_jax, _by_jax),
    "torch": (lambda torch, v, owner: torch.tensor(v.value), _by_torch),  # a copy: the loss may keep it
}  # what makes an array of a variable, and what differentiates
