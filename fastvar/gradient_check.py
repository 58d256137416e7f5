"""Checking gradients of one's own by finite differences."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.gradients import as_number, loss_and_gradients
from fastvar.kernels.atomic import Atomic
from fastvar.module import Tree, as_tree
from fastvar.tables import Shown, Table, count

OWNER = "check_gradients"
SHOWN = 5  # the most elements that an error lists
EPS = {4: 2.0**-23, 8: 2.0**-52}  # distance from 1 to the next number, by the size of a number in bytes


@dataclass(frozen=True)
class Derivative:
    """One derivative of the loss.

    Attributes
    ----------
    name : str
        The variable: its name, or its path.
    index : tuple of int or None
        The element; None is the derivative along a random direction in all elements.
    analytic, numeric : float
        The value by the gradient, and by a central difference.
    tolerance : float
        The difference that is allowed between them.
    """

    name: str
    index: tuple[int, ...] | None
    analytic: float
    numeric: float
    tolerance: float

    @property
    def excess(self) -> float:
        """The difference of the two, in units of the tolerance; above 1 it is too large."""
        difference = abs(self.analytic - self.numeric)
        if difference == 0:
            return 0.0
        return difference / self.tolerance if self.tolerance and math.isfinite(difference) else math.inf

    @property
    def where(self) -> str:
        """The element, such as `w[1, 0]`."""
        element = " along a random direction" if self.index is None else str([*self.index]) * bool(self.index)
        return f"{self.name}{element}"

    def __str__(self) -> str:
        return f"{self.where}: {self.analytic:.9g}, by differences {self.numeric:.9g}"


@dataclass(frozen=True, repr=False)
class GradientCheck(Shown):
    """What `check_gradients` has compared.

    Attributes
    ----------
    loss : float
        The loss at the weights.
    derivatives : tuple of Derivative
        Those that were compared, the worst first.
    """

    loss: float
    derivatives: tuple[Derivative, ...]

    @property
    def worst(self) -> Derivative:
        """The derivative that differs most, in units of its tolerance."""
        return self.derivatives[0]

    def _table(self) -> Table:
        columns = ("the worst", "gradient", "by differences", "of the tolerance")
        rows = [(d.where, d.analytic, d.numeric, f"{d.excess:.1%}") for d in self.derivatives[:SHOWN]]
        found = f"{count(len(self.derivatives), 'derivative')} agree{'s' * (len(self.derivatives) == 1)}"
        return Table(f"GradientCheck: {found}, loss {self.loss:.6g}", columns, rows)


def check_gradients(
    value_and_grad: Callable[[], tuple[Any, Any]],
    variables: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    max_elements: int = 100,
    seed: int = 0,
) -> GradientCheck:
    """Compare gradients of your own with central differences of the loss, and name the worst element.

    Parameters
    ----------
    value_and_grad : callable
        Returns the loss and the gradients of `variables`, as for `Optimizer.minimize`. It must read the values of
        the variables anew in every call, and return the same for the same values.
    variables : tree of Variable
        What the gradients belong to. Frozen variables are left out. A gradient of None counts as zeros.
    rtol, atol : float, optional
        A derivative may differ from the central difference by `rtol` times the larger of the two, plus `atol`.
        By default these are 1e-5 and 4e-9, and 1e-2 and 2e-3 if any gradient is float32 or shorter; a loss above 1
        multiplies `atol`.
    max_elements : int
        Of a variable with more elements, this many are compared, chosen at random, and the derivative along a
        random direction in all of them. If only that differs, bisection finds an element to name.
    seed : int
        Seed of these choices.

    Returns
    -------
    GradientCheck
        What was compared. It has the attribute `worst`.

    Raises
    ------
    AssertionError
        If a derivative differs by more than the tolerance.
    ValueError
        If the loss is not finite, or differs between two calls, or the gradients do not fit the variables.
    TypeError
        If a trainable variable is neither float32 nor float64.

    Notes
    -----
    During the check the variables hold copies, trained ones in float64, so that float32 weights are checked as
    sharply, unless the program rounds to float32. Afterwards they and their `grad` are what they were before, also
    after an error. Views that were taken before (`w.value`) do not see the copies. Where the loss has a kink, as
    ReLU has at 0, central differences are wrong.

    An element x moves by the cube root of the machine epsilon, times max(abs(x), 1). The error of a central
    difference is then about the epsilon to the power of 2/3; the default of `atol` is 100 times as large.

    References
    ----------
    Press et al., Numerical Recipes, section 5.7, Numerical Derivatives.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> w = fv.Variable([1.0, 2.0], name="w")
    >>> check = fv.check_gradients(lambda: ((w**3).sum(), [3 * w.value**2]), [w])
    >>> len(check.derivatives), check.worst.name
    (2, 'w')
    >>> fv.check_gradients(lambda: ((w**3).sum(), [2 * w.value**2]), [w])
    Traceback (most recent call last):
        ...
    AssertionError: check_gradients: 2 of 2 derivatives are wrong; the worst:
      w[1]: 8, by differences 12
      w[0]: 2, by differences 3
    """
    root = as_tree(variables, f"{OWNER}: variables")
    tree, every = Tree(root, counters=False), Tree(root).variables
    flat = [v for v in tree.variables if v.trainable]
    for v in flat:
        if v.dtype not in buffers.REAL:
            raise TypeError(f"{OWNER}: {v!r} must be float32 or float64")
    if not flat:
        raise ValueError(f"{OWNER}: there are no trainable variables")
    before: list[Any] = [(v, {"_array": v._array, "_master": v._master, "_grad": v._grad}) for v in every]
    with Atomic(before, before):
        for v in every:  # the program may change frozen ones, such as moving statistics
            v._array = v._array.astype(np.float64) if v.trainable and v.dtype in buffers.REAL else v._array.copy()
            v._master = copy.copy(v._master)
        differences = Differences(value_and_grad, tree, rtol, atol)
        rng = np.random.default_rng(seed)
        compared = [d for i in range(len(flat)) for d in differences.of_variable(i, max_elements, rng)]
    compared.sort(key=lambda d: (-d.excess, d.index is None))
    wrong = [d for d in compared if d.excess > 1]
    if wrong:
        named = [d for d in wrong if d.index is not None] or wrong
        verb = "is" if len(wrong) == 1 else "are"
        lines = [f"{OWNER}: {len(wrong):,} of {count(len(compared), 'derivative')} {verb} wrong; the worst:"]
        lines += [f"  {d}" for d in named[:SHOWN]]
        if all(d.numeric == 0 for d in named):
            lines.append("  (The loss does not change with these: does it read their values anew in every call?)")
        raise AssertionError("\n".join(lines))
    return GradientCheck(differences.loss, tuple(compared))


class Differences:
    """Derivatives of a loss by its gradients, and by central differences."""

    def __init__(
        self, value_and_grad: Callable[[], tuple[Any, Any]], tree: Tree, rtol: float | None, atol: float | None
    ) -> None:
        self._value_and_grad = value_and_grad
        pairs = [(v, path) for v, path in zip(tree.variables, tree.paths, strict=True) if v.trainable]
        self._variables = [v for v, _ in pairs]
        self._names = [v.name or path or "variable" for v, path in pairs]
        self.loss: float
        self.loss, grads = self._evaluate()
        arranged = zip(tree.arrange(grads, OWNER), tree.variables, strict=True)
        of_trained = [g for g, v in arranged if v.trainable]
        sizes = [getattr(getattr(g, "dtype", None), "itemsize", 8) for g in of_trained if g is not None]
        eps = EPS[4 if min(sizes, default=8) < 8 else 8]
        self._rounded = np.float32 if eps == EPS[4] else np.float64  # what the program computes in
        self._move = eps ** (1 / 3)
        self._rtol = (1e-5 if eps == EPS[8] else 1e-2) if rtol is None else rtol
        self._atol = 100 * eps ** (2 / 3) * max(abs(self.loss), 1) if atol is None else atol
        self._gradients = [
            buffers.dense(g, v._array, f"{OWNER}: gradient of {v!r}")
            for g, v in zip(of_trained, self._variables, strict=True)
        ]
        if (again := self._evaluate()[0]) != self.loss:
            raise ValueError(f"{OWNER}: the loss must be the same in every call, got {self.loss} and {again}")

    def of_variable(self, i: int, most: int, rng: np.random.Generator) -> list[Derivative]:
        """Compare the derivatives of a variable."""
        size = self._variables[i].size
        chosen = range(size) if size <= most else rng.choice(size, most, replace=False).tolist()
        compared = [self._along(i, np.array([k]), np.ones(1)) for k in chosen]
        if size > most:
            part, signs = np.arange(size), rng.choice([-1.0, 1.0], size)
            compared.append(whole := self._along(i, part, signs))
            if whole.excess > 1 and all(d.excess <= 1 for d in compared[:-1]):
                while part.size > 1:
                    halves = np.array_split(part, 2)
                    part = max(halves, key=lambda half: self._along(i, half, signs[half]).excess)
                compared.append(self._along(i, part, np.ones(1)))
        return compared

    def _evaluate(self) -> tuple[float, Any]:
        found, grads = loss_and_gradients(OWNER, self._value_and_grad)
        loss = as_number(OWNER, found)
        if not math.isfinite(loss):
            raise ValueError(f"{OWNER}: the loss must be finite, got {loss}")
        return loss, grads

    def _along(self, i: int, elements: Array, signs: Array) -> Derivative:
        """Return the derivative along a unit vector in some elements."""
        variable, unit = self._variables[i], signs / math.sqrt(signs.size)
        flat = variable._array.reshape(-1)
        values = flat[elements]
        move = self._move * max(np.abs(values).max(), 1)
        high, low = ((values + way * unit).astype(self._rounded) for way in (move, -move))
        flat[elements] = high
        upper = self._evaluate()[0]
        flat[elements] = low
        lower = self._evaluate()[0]
        flat[elements] = values
        numeric = (upper - lower) / float((high.astype(float) - low) @ unit)
        analytic = float(self._gradients[i].reshape(-1)[elements] @ unit)
        tolerance = self._rtol * max(abs(analytic), abs(numeric)) + self._atol
        one = tuple(int(k) for k in np.unravel_index(elements[0], variable.shape)) if elements.size == 1 else None
        return Derivative(self._names[i], one, analytic, numeric, tolerance)
