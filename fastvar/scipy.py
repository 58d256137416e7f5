"""Optimizers as methods of `scipy.optimize.minimize`; see docs/scipy.md.

scipy.optimize.minimize(fun, x0, jac=True, method=fastvar.scipy.method(fastvar.optimizers.Adam(0.01)))
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastvar import optimizers
from fastvar.buffers import Array
from fastvar.constraints import Box
from fastvar.hyper import Fixed, integer, number
from fastvar.names import public as _public
from fastvar.optimizer import Optimizer
from fastvar.tables import count
from fastvar.variable import Variable

try:
    from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning
except ImportError:
    raise ImportError("fastvar.scipy: needs SciPy; run `pip install 'scipy>=1.13'`") from None

__all__ = ["method"]

Outcome = tuple[int, str]  # status and message of an OptimizeResult
MAXITER: Outcome = (1, "Maximum number of iterations has been exceeded.")
NONFINITE: Outcome = (3, "fun, its gradient or x is not finite.")
STOPPED: Outcome = (99, "`callback` raised `StopIteration`.")  # SciPy's status


def method(optimizer: Optimizer) -> Callable[..., Any]:
    """Return a method for `scipy.optimize.minimize` that takes the steps of an optimizer.

    Every call of `minimize` begins with a new copy of `optimizer` as it is now.

    Parameters
    ----------
    optimizer : Optimizer
        Any of `fastvar.optimizers` except `LBFGS`, or one with a rule of your own. It is not built yet.

    Returns
    -------
    callable
        The argument `method` of `scipy.optimize.minimize`, which then requires `jac=True` or a function. It takes
        `bounds`, and the following `options`:

        maxiter : int
            Number of steps, by default 15000.
        gtol : float
            Stop when no element of the projected gradient is larger, by default 1e-5. `tol` also sets it.
        ftol : float, optional
            Stop when a step changes `fun` by at most `ftol * max(|fun before|, |fun after|, 1)`.
        xtol : float, optional
            Stop when a step changes no element of `x` by more than this.
        disp : bool
            Print the message and the counts at the end, by default False.

    Raises
    ------
    TypeError
        If it is not an optimizer, or `LBFGS`.
    ValueError
        If it is built on variables, or accumulates gradients.

    Notes
    -----
    The result is the point that reached a tolerance. If none did, it is the one with the lowest `fun` of all that
    were evaluated: steps may also rise.

    Examples
    --------
    >>> import fastvar as fv, fastvar.scipy
    >>> from scipy.optimize import minimize
    >>> adam = fastvar.scipy.method(fv.optimizers.Adam(0.1))
    >>> found = minimize(lambda x: (((x - 3) ** 2).sum(), 2 * (x - 3)), [0.0, 5.0], jac=True, method=adam)
    >>> found.success, found.x.round(3)
    (True, array([3., 3.]))
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"fastvar.scipy.method: needs an optimizer of fastvar, got {optimizer!r}")
    owner, updating = optimizer._owner, optimizer._updating
    if isinstance(updating, optimizers.LBFGS):
        raise TypeError(f'{owner}: runs SciPy itself; pass method="L-BFGS-B" to minimize')
    if updating._state.variables or updating._steps:
        raise ValueError(f"{owner}: is built on variables; pass a new optimizer")
    if updating.gradient_accumulation_steps:
        raise ValueError(f"{owner}: gradient_accumulation_steps must be None: every step needs its own gradient")
    return partial(_minimize, copy.deepcopy(optimizer))


class Point(NamedTuple):
    """A point that was evaluated."""

    x: Array
    fun: float
    jac: Array

    def is_finite(self) -> bool:
        """Return whether all its numbers are finite."""
        return bool(np.isfinite(self.fun) and np.isfinite(self.jac).all() and np.isfinite(self.x).all())


class Evaluations:
    """The function to minimize, and what its evaluations have given.

    Attributes
    ----------
    count : int
        The number of evaluations.
    best : Point
        The one with the lowest value of all finite ones, otherwise the first. Of equal ones, the last.
    """

    best: Point

    def __init__(
        self, owner: str, fun: Callable[..., Any], jac: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self._owner, self._fun, self._jac, self._args = owner, fun, jac, args
        self.count: int = 0

    def __call__(self, x: Array) -> Point:
        value = _real(self._owner, "fun", self._fun(x.copy(), *self._args))
        gradient = _real(self._owner, "the gradient", self._jac(x.copy(), *self._args))
        gradient = np.atleast_1d(np.array(gradient, np.float64))
        if value.size != 1:
            raise ValueError(f"{self._owner}: fun must return a scalar, got the shape {value.shape}")
        if gradient.shape != x.shape:
            raise ValueError(f"{self._owner}: the gradient must have the shape {x.shape}, got {gradient.shape}")
        point = Point(x.copy(), float(value.item()), gradient)
        self.count += 1
        if self.count == 1 or (point.is_finite() and not point.fun > self.best.fun):
            self.best = point
        return point


def _real(owner: str, what: str, given: Any) -> Array:
    """Return an array. Raise TypeError if it is complex: NumPy would drop the imaginary part."""
    array = np.asarray(given)
    if np.iscomplexobj(array):
        raise TypeError(f"{owner}: {what} must be real, got {array.dtype}")
    return array


class Stopping(Fixed):
    """The options of a method: when to stop."""

    maxiter: int = integer(default=15000, low=0)
    gtol: float = number(default=1e-5, low=0)
    ftol: float | None = number(default=None, low=0, optional=True)
    xtol: float | None = number(default=None, low=0, optional=True)

    def reason(self, before: Point | None, here: Point, limits: tuple[Array, Array], steps: int) -> Outcome | None:
        """Return why to stop after a step from `before`, or None."""
        if not here.is_finite():
            return NONFINITE
        low, high = limits
        if self.gtol >= np.abs(np.clip(here.jac, here.x - high, here.x - low)).max(initial=0):
            return 0, "The projected gradient is at most gtol."
        if before is not None:
            size = max(abs(before.fun), abs(here.fun), 1)
            if self.ftol is not None and abs(before.fun - here.fun) <= self.ftol * size:
                return 0, "A step has changed fun by at most ftol."
            if self.xtol is not None and np.abs(here.x - before.x).max(initial=0) <= self.xtol:
                return 0, "A step has changed x by at most xtol."
        return MAXITER if steps >= self.maxiter else None


def _minimize(
    optimizer: Optimizer,
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    disp: bool = False,
    **options: Any,
) -> Any:
    """Minimize as `scipy.optimize.minimize` asks its custom methods to."""
    owner = optimizer._owner
    if not callable(jac):  # `minimize` makes a function of True, and None of the names of finite differences
        raise ValueError(
            f"{owner}: needs the gradient: pass jac=True if fun returns (value, gradient), or a function as jac"
        )
    stopping = _stopping(owner, options)
    ignored = {"Hessians (hess)": hess, "Hessians (hessp)": hessp, "constraints": constraints}
    for what, given in ignored.items():
        if np.any(given):
            warnings.warn(f"{owner}: does not use {what}", RuntimeWarning, stacklevel=3)
    x0 = np.atleast_1d(_real(owner, "x0", x0))
    box, limits = _box(owner, bounds, x0.shape)
    x = Variable(x0, dtype=np.float64, constraint=None if bounds is None else box)
    x.assign(box(x.value))
    optimizer = copy.deepcopy(optimizer)
    optimizer.build([x])
    evaluate, tell = Evaluations(owner, fun, jac, args), _telling(callback)
    before, here, steps = None, evaluate(x.value), 0
    while (outcome := stopping.reason(before, here, limits, steps)) is None:
        optimizer.apply([optimizer.scale_loss(here.jac)])
        before, here, steps = here, evaluate(x.value), steps + 1
        try:
            tell(OptimizeResult(x=here.x.copy(), fun=here.fun))
        except StopIteration:
            outcome = STOPPED
            break
    if outcome[0]:  # no tolerance is reached
        optimizer.finalize_variable_values()
        if not np.array_equal(x.value, here.x, equal_nan=True):  # the average of `use_ema`
            evaluate(x.value)
        here = evaluate.best
    return _result(here, evaluate.count, steps, outcome, disp)


def _stopping(owner: str, options: dict[str, Any]) -> Stopping:
    """Return the options. Warn of unknown ones, as SciPy's methods do."""
    tol = options.pop("tol", None)
    given = {"gtol": tol} | options if tol is not None else options
    unknown = [name for name in given if name not in Stopping.parameters]
    if unknown:
        warnings.warn(f"{owner}: unknown options: {', '.join(unknown)}", OptimizeWarning, stacklevel=4)
    try:
        return Stopping(**{name: value for name, value in given.items() if name not in unknown})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{owner}: {error}") from None


def _box(owner: str, bounds: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[Array, Array]]:
    """Return bounds as a constraint and as arrays; None in a pair means none."""
    low: Any = -np.inf
    high: Any = np.inf
    if isinstance(bounds, Bounds):
        low, high = bounds.lb, bounds.ub
    elif bounds is not None:
        pairs = [*bounds]
        if len(pairs) != shape[0]:
            raise ValueError(
                f"{owner}: got {count(len(pairs), 'pair')} of bounds for {count(shape[0], 'element')} of x0"
            )
        low = [-np.inf if first is None else first for first, _ in pairs]
        high = [np.inf if second is None else second for _, second in pairs]
    try:
        box = Box(low, high)
        return box, box.limits(shape, np.float64)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{owner}: bounds: {error}") from None


def _telling(callback: Callable[..., Any] | None) -> Callable[[Any], Any]:
    """Return a function that passes a result to the callback in the way that its signature asks for."""
    if callback is None:
        return lambda result: None
    if {*inspect.signature(callback).parameters} == {"intermediate_result"}:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)


def _result(point: Point, evaluations: int, steps: int, outcome: Outcome, disp: bool) -> Any:
    status, message = outcome
    counts = {"nit": steps, "nfev": evaluations, "njev": evaluations}
    found = OptimizeResult(**point._asdict(), **counts, success=status == 0, status=status, message=message)
    if disp:
        print(message, f"fun: {point.fun:g}", *(f"{name}: {count}" for name, count in counts.items()))
    return found


if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name
    __getattr__, __dir__ = _public("fastvar.scipy", __all__, {"fv.optimizers.": optimizers.__all__})
