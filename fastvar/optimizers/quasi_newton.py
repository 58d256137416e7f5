"""L-BFGS, computed by SciPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.constraints import as_box
from fastvar.gradients import ONLY_LOSS, Library, as_number, differentiated, loss_and_gradients
from fastvar.hyper import integer, number
from fastvar.kernels.atomic import Atomic
from fastvar.module import penalty
from fastvar.optimizer import Optimizer
from fastvar.tables import Shown, Table, count
from fastvar.variable import Variable


@dataclass(frozen=True, repr=False)
class Result(Shown):
    """What SciPy says of a minimization.

    Attributes
    ----------
    converged : bool
        Whether a tolerance was reached. If not, `max_iter` or `max_evaluations` was, or the line search failed.
    message : str
        SciPy's reason for stopping.
    iterations, evaluations : int
        How many there were.
    """

    converged: bool
    message: str
    iterations: int
    evaluations: int

    def _table(self) -> Table:
        verb = "converged" if self.converged else "stopped"
        rows = [("message", self.message), ("evaluations", str(self.evaluations))]
        return Table(f"LBFGS {verb} after {count(self.iterations, 'iteration')}", ("", ""), rows)


class LBFGS(Optimizer, options=False):
    """The limited-memory BFGS method with a line search, for smooth losses of whole data sets.

    Each `minimize` runs SciPy's L-BFGS-B from the current weights, in double precision, and evaluates the loss as
    often as necessary. `apply` and `step` get a single gradient, so they raise TypeError. Frozen variables stay as
    they are, penalties are added to the loss, and `NonNeg` and `Box` become bounds.

    Parameters
    ----------
    max_iter : int
        Iterations of one `minimize`, >= 1, by default 20 (as PyTorch's `LBFGS.step`).
    max_evaluations : int, optional
        Evaluations of the loss in one `minimize`, >= 1, by default 1.25 times `max_iter`. SciPy may exceed
        it by one line search.
    history_size : int
        Number of updates that approximate the Hessian, >= 1, by default 10.
    tolerance_grad : float
        Stop when no element of the projected gradient is larger, >= 0, by default 1e-7.
    tolerance_change : float
        Stop when the loss falls by less than this fraction of itself, >= 0, by default 1e-9.
    name : str, optional
        Start of error messages, by default the class name.

    Attributes
    ----------
    result : Result or None
        Whether the last `minimize` converged, why it stopped, and its counts. None before; not in checkpoints.

    Notes
    -----
    Requires SciPy: `pip install "scipy>=1.13"`. Nothing is kept between calls, so a resumed run continues with
    the next call as if it had not stopped.

    References
    ----------
    Zhu et al., Algorithm 778: L-BFGS-B, ACM Transactions on Mathematical Software 23, 1997.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([4.0, -2.0])
    >>> optimizer = fv.optimizers.LBFGS()
    >>> loss = optimizer.minimize(lambda: ((w**2).sum(), [2 * w.value]), [w])
    >>> bool(loss < 1e-10), optimizer.result.converged, optimizer.result.evaluations
    (True, True, 3)
    """

    max_iter: int = integer(default=20, low=1)
    max_evaluations: int | None = integer(default=None, low=1, optional=True)
    history_size: int = integer(default=10, low=1)
    tolerance_grad: float = number(default=1e-7, low=0)
    tolerance_change: float = number(default=1e-9, low=0)
    schedulable = False

    if TYPE_CHECKING:

        def __init__(
            self,
            max_iter: int = ...,
            max_evaluations: int | None = ...,
            history_size: int = ...,
            tolerance_grad: float = ...,
            tolerance_change: float = ...,
            *,
            name: str | None = ...,
        ) -> None: ...

    _result: Result | None = None

    @property
    def result(self) -> Result | None:
        """What SciPy said of the last `minimize`; None before."""
        return self._result

    def _refreshed(self) -> Any:
        """Do nothing: there are no slots, and nothing to plan."""

    def _apply(self, grads: Any, variables: Any, zero: bool) -> None:
        raise TypeError(f"{self._owner}: evaluates the loss several times; call minimize(...)")

    def minimize(
        self,
        value_and_grad: Callable[..., Any],
        var_list: Any = None,
        gradients: Library | None = None,
    ) -> Any:
        """Minimize the loss; `value_and_grad()` returns it and the gradients of `var_list`.

        `gradients` is that of `Optimizer.minimize`.

        Returns
        -------
        float
            The loss, with penalties, at the new weights. After an error the weights are the old ones.
        """
        with self._turn:
            before = [] if self._state.variables else self._kept()
            with Atomic(before, [], self._state.count):  # if this fails, the optimizer stays unbuilt
                if var_list is not None:
                    self.build(var_list)
                if not self._state.variables:
                    raise ValueError(f"{self._owner}: call build(variables) first, or pass the variables")
                if gradients is not None:
                    variables = self._state.variables if var_list is None else var_list
                    value_and_grad = differentiated(self._owner, value_and_grad, variables, gradients)
                return self._minimize(value_and_grad)

    def _minimize(self, value_and_grad: Callable[[], tuple[Any, Any]]) -> float:
        try:
            from scipy.optimize import minimize
        except ImportError:
            raise ImportError(f"{self._owner}: needs SciPy; run `pip install 'scipy>=1.13'`") from None
        variables = [v for v in self._state.variables if v.trainable]
        before: list[tuple[Any, Any]] = [(v._array, v.numpy()) for v in variables]
        bounds = np.concatenate([np.zeros((0, 2)), *map(self._bounds, variables)])

        def evaluate(x: Any) -> tuple[float, Any]:
            _write(variables, x)
            loss, grads = loss_and_gradients(self._owner, value_and_grad, ONLY_LOSS)
            grads = self._arranged(grads, None)
            if len(grads) != len(self._state.variables):
                wanted = count(len(self._state.variables), "variable")
                raise ValueError(f"{self._owner}: got {count(len(grads), 'gradient')} for {wanted}")
            of_trainable = [g for g, v in zip(grads, self._state.variables, strict=True) if v.trainable]
            loss = as_number(self._owner, loss) + penalty(variables)
            return loss, np.concatenate([[], *map(self._gradient, of_trainable, variables)])

        options = {
            "maxiter": self.max_iter,
            "maxfun": self.max_evaluations or max(self.max_iter * 5 // 4, 1),
            "maxcor": self.history_size,
            "gtol": self.tolerance_grad,
            "ftol": self.tolerance_change,
        }
        before += [(self, {"_result": self._result}), (self._state.count, [*self._state.count])]
        with Atomic(before, []):
            start = np.concatenate([[], *(v.value.reshape(-1) for v in variables)])
            found = minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            if not np.isfinite(found.fun):
                raise ValueError(f"{self._owner}: loss must be finite, got {found.fun}")
            _write(variables, found.x)
            self._result = Result(found.success, found.message, found.nit, found.nfev)
            self._state.count[0] += 1
            return float(found.fun)

    def _bounds(self, variable: Variable) -> Array:
        """Return the bounds of all elements, as pairs."""
        box = as_box(variable.constraint)
        if box is None:
            raise ValueError(f"{self._owner}: constraint of {variable!r} must be Box, NonNeg or None")
        try:
            limits = box.limits(variable.shape, variable.dtype)
        except ValueError as error:
            raise ValueError(f"{self._owner}: constraint of {variable!r}: {error}") from None
        return np.stack([np.broadcast_to(side, variable.shape).reshape(-1) for side in limits], axis=1)

    def _gradient(self, gradient: Any, variable: Variable) -> Any:
        dense = buffers.dense(gradient, variable._array, f"{self._owner}: gradient of {variable!r}")
        if variable.regularizer:
            w = variable.value.astype(np.float64)
            dense += 2 * variable.regularizer.l2 * w + variable.regularizer.l1 * np.sign(w)
        return dense.reshape(-1)


def _write(variables: list[Variable], x: Any) -> None:
    """Assign the values of one vector to the variables."""
    ends = np.cumsum([v.size for v in variables])
    for v, part in zip(variables, np.split(x, ends[:-1]), strict=True):
        v.value[...] = part.reshape(v.shape)
