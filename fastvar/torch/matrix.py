"""Adafactor and Muon with PyTorch's meaning: steps that depend on rows, columns or whole matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import numpy as np

from fastvar import buffers, kernels
from fastvar.buffers import Array
from fastvar.hyper import Number, Real, Schedule, choice, flag, integer, number, pair, sequence
from fastvar.optimizer.options import OptionTypes
from fastvar.optimizer.passes import Measured, Pass
from fastvar.optimizers.matrix import orthogonalize, relative_sizes, saturated
from fastvar.place import Place
from fastvar.torch.base import TorchOptimizer

Adjustment = Literal["original", "match_rms_adamw"]
BLOCK = 8192  # elements of a vector that are computed together: temporary arrays stay in the cache


class Adafactor(TorchOptimizer):
    r"""Steps scaled by second moments that are kept as means of rows and columns alone, as in PyTorch.

    Let :math:`\beta = t^\tau` at update :math:`t` = 1, 2, ... For a variable with two or more dimensions, rows and
    columns are those of the last two:

    .. math::

        R &\leftarrow R + \beta (\operatorname{mean}_{columns} g^2 - R), \qquad
        C \leftarrow C + \beta (\operatorname{mean}_{rows} g^2 - C), \qquad
        V = \frac{R C}{\max(\operatorname{mean} R, \epsilon_1)} \\
        U &= \frac{g}{\max(\sqrt V, \epsilon_1)}, \qquad
        w \leftarrow w - \eta \lambda w - \min(\eta, 1/\sqrt t) \max(\epsilon_2, \operatorname{rms} w)
        \frac{U}{\max(1, \operatorname{rms}(U) / d)}

    Other variables keep the full :math:`V \leftarrow V + \beta (g^2 - V)`. `fastvar.optimizers.Adafactor` adds its
    epsilon to the means, and takes the norm of the weights after their decay.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.01: the largest relative step, and a factor of the decay.
    beta2_decay : float
        :math:`\tau` <= 0, by default -0.8.
    eps : pair of float
        :math:`\epsilon_1` and :math:`\epsilon_2`, >= 0. By default None and 1e-3; None means the epsilon of the
        variable's dtype, of float32 for 16 bits.
    d : float
        :math:`d` >= 1, by default 1.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0, decoupled.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables are float32 or float64. A matrix has the slots "row_var" and "col_var", in the shape of the matrix
    but with one column, or one row. Other variables have the slot "variance". Gradients must be dense.

    References
    ----------
    Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018 (arXiv:1804.04235).

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([[1.0, 2.0], [3.0, 4.0]])
    >>> optimizer = fv.torch.Adafactor([w], lr=0.1)
    >>> optimizer.apply([[[0.5, -0.5], [0.5, 0.5]]])
    >>> w.value.round(3)
    array([[0.726, 2.274],
           [2.726, 3.726]])
    """

    lr: Number = number(default=1e-2, low=0)
    beta2_decay: Number = number(default=-0.8, high=0)
    eps: tuple[float | None, float] = pair(number(low=0, optional=True), number(low=0), default=(None, 1e-3))
    d: Number = number(default=1.0, low=1)
    weight_decay: Number = number(default=0.0, low=0)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            beta2_decay: Real | Schedule = ...,
            eps: tuple[float | None, float] = ...,
            d: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("variance", "row_var", "col_var")

    def has_slot(self, slot: str, variable: Place) -> bool:
        return (slot == "variance") == (variable.ndim < 2)

    def slot_shape(self, slot: str, variable: Place) -> tuple[int, ...]:
        shape = tuple(variable.shape)
        return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, *shape[-1:])}.get(slot, shape)

    def rule(self) -> Any:
        return kernels.RULES["gradient_descent"]

    def pass_of(self, kind: str) -> Pass:
        sums = [("weights", "weights"), ("gradient", "gradient")]
        return Pass(self.rule(), (), self.scalars, sums, matrices=True)

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate = 1.0
        return (rate,)

    def decay_rate(self, hyper: Any) -> float:
        return float(hyper.lr * hyper.weight_decay)

    def l2_rate(self, hyper: Any) -> float:
        return 0.0

    def scale_matrices(self, step: Measured) -> None:
        units, counts = step.units, step.counts.tolist()
        for i, variable in enumerate(step.variables):
            if step.present[i] and variable.size:
                hyper = step.groups[step.group_of[i]]
                least = np.finfo(buffers.arithmetic(variable.dtype)).eps
                floor = np.float64(least if hyper.eps[0] is None else hyper.eps[0])
                take = counts[i] ** hyper.beta2_decay
                units.most[i] = 1 / floor
                columns = units.columns_of(step.column_sums, i)
                if variable.ndim < 2:
                    self._scale_vector(step, variable, columns, take, units.columns_of(units.by_column, i))
                    continue
                n_rows, n_columns = variable.shape[-2:]
                of_rows = units.rows_of(step.row_sums, i) / n_columns
                row = self._moved(step, variable, "row_var", of_rows, take)
                column = self._moved(step, variable, "col_var", columns / n_rows, take)
                mean = np.cumsum(row / n_rows, axis=-2)[..., -1:, :]  # in order: the same on every processor
                by_row = np.sqrt(np.maximum(mean, floor)) / np.sqrt(row)
                units.rows_of(units.by_row, i)[:] = by_row.reshape(-1)
                units.columns_of(units.by_column, i)[:] = 1 / np.sqrt(column.reshape(-1))

    def _scale_vector(self, step: Measured, variable: Place, squares: Array, take: float, factors: Array) -> None:
        """Commit what the second moments become, and set the factors of elements, block by block in the cache."""
        place = self.slot(variable, "variance").value
        step.commits.append((place, np.empty_like(place)))
        old, new = (array.reshape(-1) for array in step.commits[-1])
        for start in range(0, place.size, BLOCK):
            part = slice(start, start + BLOCK)
            new[part] = moved(old[part], squares[part], take)
            factors[part] = 1 / np.sqrt(new[part], dtype=np.float64)

    def _moved(self, step: Measured, variable: Place, slot: str, means: Array, take: float) -> Array:
        """Return what a slot becomes, in float64, and commit it."""
        place = self.slot(variable, slot).value
        new = moved(place, means.reshape(place.shape), take)
        step.commits.append((place, new))
        return new.astype(np.float64)

    def adjust(self, step: Measured) -> None:
        smallest = np.array([hyper.eps[1] for hyper in step.groups])[step.group_of]
        rate, threshold = step.of_variables("lr"), step.of_variables("d")
        step.sizes[:] = relative_sizes(step, rate, smallest, step.norms(0), threshold)


def moved(means: Array, squares: Array, take: float) -> Array:
    """Return moving means, moved towards new ones."""
    return saturated(means + (squares - means) * take, means.dtype)


class Muon(TorchOptimizer):
    r"""Momentum with nearly orthogonal steps, for matrices alone, as in PyTorch.

    With :math:`O`, `ns_steps` steps of a Newton-Schulz iteration:

    .. math::

        m &\leftarrow m + (1-\mu)(g - m), \qquad
        w \leftarrow w - \eta \lambda w - \eta \kappa\; O((1-\mu) g + \mu m) \\
        O(x) &: \quad x \leftarrow x / \max(\lVert x \rVert, \epsilon), \quad A = x x^\top, \quad
        x \leftarrow a x + (b A + c A^2) x

    Without `nesterov`, :math:`O(m)`. `fastvar.optimizers.Muon` updates other variables, too, with Adam, and does
    not damp the momentum. PyTorch iterates in bfloat16, fastvar in the dtype of the variable.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.001.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0.1, decoupled.
    momentum : float
        :math:`\mu` >= 0, by default 0.95.
    nesterov : bool
        Whether to use Nesterov momentum, by default True.
    ns_coefficients : sequence of float
        :math:`a`, :math:`b` and :math:`c`, by default 3.4445, -4.775 and 2.0315.
    eps : float
        :math:`\epsilon`, by default 1e-7.
    ns_steps : int
        Steps of the iteration, by default 5.
    adjust_lr_fn : {"original", "match_rms_adamw"}, optional
        :math:`\kappa`: :math:`\sqrt{\max(1, \text{rows} / \text{columns})}` or
        :math:`0.2 \sqrt{\max(\text{rows}, \text{columns})}`, by default the first.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables and the slot "momentum_buffer" are float32 or float64 of one shape. Gradients must be dense. NumPy
    multiplies the matrices with BLAS, so results may differ in the last bits between processors.

    References
    ----------
    Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024. Liu et al., Muon is Scalable for
    LLM Training, 2025 (arXiv:2502.16982), for "match_rms_adamw".

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch, numpy as np
    >>> w = fv.Variable(np.eye(2))
    >>> optimizer = fv.torch.Muon([w], lr=0.1, weight_decay=0.0)
    >>> optimizer.apply([[[0.5, 0.0], [0.0, -0.5]]])
    >>> w.value.round(2)
    array([[0.89, 0.  ],
           [0.  , 1.11]])
    """

    lr: Number = number(default=1e-3, low=0)
    weight_decay: Number = number(default=0.1, low=0)
    momentum: Number = number(default=0.95, low=0)
    nesterov: bool = flag(default=True)
    ns_coefficients: tuple[float, ...] = sequence(number(), default=(3.4445, -4.7750, 2.0315))
    eps: Number = number(default=1e-7)
    ns_steps: int = integer(default=5, low=0)
    adjust_lr_fn: Adjustment | None = choice("original", "match_rms_adamw", default=None, optional=True)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            momentum: Real | Schedule = ...,
            nesterov: bool = ...,
            ns_coefficients: tuple[float, ...] = ...,
            eps: Real | Schedule = ...,
            ns_steps: int = ...,
            adjust_lr_fn: Adjustment | None = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("momentum_buffer",)
    exact_slots: ClassVar[Sequence[str]] = ("momentum_buffer",)  # orthogonal steps amplify the noise of 8 bits

    def _validate(self) -> None:
        super()._validate()
        if len(self._parameters["ns_coefficients"]) != 3:
            raise ValueError(f"{self._owner}: ns_coefficients must be three numbers")

    def kind_of(self, variable: Place) -> str:
        if variable.ndim != 2:
            raise ValueError(f"{self._owner}: {variable.name!r} must have two axes, got {variable.ndim}")
        return ""

    def rule(self) -> Any:
        return kernels.RULES["momentum"]

    def pass_of(self, kind: str) -> Pass:
        return Pass(
            self.rule(),
            self.slots,
            self.scalars,
            sums=[("direction", "direction")],
            step=lambda hyper: -hyper.lr,
            keeps_directions=True,
        )

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep, take = hyper.momentum, 1 - hyper.momentum
        scale_m, scale_g = (keep, take) if hyper.nesterov else (1.0, 0.0)
        return keep, take, scale_m, scale_g

    def decay_rate(self, hyper: Any) -> float:
        return float(hyper.lr * hyper.weight_decay)

    def l2_rate(self, hyper: Any) -> float:
        return 0.0

    def adjust(self, step: Measured) -> None:
        norms = step.norms(0)
        for i, direction in enumerate(step.directions):
            if step.present[i] and direction.size:
                hyper, (rows, columns) = step.groups[step.group_of[i]], direction.shape
                divisor = max(float(norms[i]), hyper.eps)
                orthogonalize(direction, divisor, hyper.ns_coefficients, hyper.ns_steps)
                original = hyper.adjust_lr_fn != "match_rms_adamw"
                step.sizes[i] = sqrt(max(1, rows / columns)) if original else 0.2 * sqrt(max(rows, columns))
