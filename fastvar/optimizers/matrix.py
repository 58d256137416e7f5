"""Optimizers with a rule of their own for matrices: Adafactor, Muon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from fastvar import kernels
from fastvar.buffers import Array
from fastvar.hyper import Number, OptionalNumber, flag, integer, number, sequence, text
from fastvar.optimizer import Optimizer
from fastvar.optimizer.passes import Measured, Pass
from fastvar.place import Place

MATRIX, OTHER = "matrix", "other"


class Adafactor(Optimizer):
    r"""Steps scaled by second moments that are kept as means of rows and columns alone.

    Let :math:`\hat\beta = 1 - t^{\text{beta\_2\_decay}}`. For a variable with two or more dimensions, rows and
    columns are those of the last two:

    .. math::

        r &\leftarrow \hat\beta r + (1-\hat\beta)(\operatorname{mean}_{columns} g^2 + \epsilon_1), \qquad
        c \leftarrow \hat\beta c + (1-\hat\beta)(\operatorname{mean}_{rows} g^2 + \epsilon_1), \qquad
        v = \frac{r c^\top}{\operatorname{mean} r} \\
        u &= g / \sqrt v, \qquad
        w \leftarrow w - \min(\eta, 1/\sqrt t) \max(\epsilon_2, \operatorname{rms} w)
        \frac{u}{\max(1, \operatorname{rms}(u) / d)}

    Other variables keep the full :math:`v \leftarrow \hat\beta v + (1-\hat\beta)(g^2 + \epsilon_1)`.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001 (PyTorch: 0.01).
    beta_2_decay : float
        At most 0, by default -0.8.
    epsilon_1, epsilon_2 : float
        >= 0, by default 1e-30 and 1e-3.
    clip_threshold : float
        :math:`d` > 0, by default 1.
    relative_step : bool
        Without effect, as in Keras 3.15: the rate is at most :math:`1/\sqrt t` either way.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables are float32 or float64. A matrix has the slots "row" and "column"; "row" has the shape of the matrix
    without its last dimension, "column" without its last but one. Other variables have the slot "velocity".
    Gradients must be dense.

    References
    ----------
    Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018 (arXiv:1804.04235),
    algorithms 4 and 5.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([[1.0, 2.0], [3.0, 4.0]])
    >>> optimizer = fv.optimizers.Adafactor(0.1)
    >>> optimizer.apply([[[0.5, -0.5], [0.5, 0.5]]], [w])
    >>> w.value.round(3)
    array([[0.726, 2.274],
           [2.726, 3.726]])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_2_decay: Number = number(default=-0.8, high=0)
    epsilon_1: Number = number(default=1e-30, low=0)
    epsilon_2: Number = number(default=1e-3, low=0)
    clip_threshold: Number = number(default=1.0, above=0)
    relative_step: bool = flag(default=True)
    slots: ClassVar[Sequence[str]] = ("velocity", "row", "column")

    def kind_of(self, variable: Place) -> str:
        return MATRIX if variable.ndim >= 2 else OTHER

    def has_slot(self, slot: str, variable: Place) -> bool:
        return (slot == "velocity") == (self.kind_of(variable) == OTHER)

    def slot_shape(self, slot: str, variable: Place) -> tuple[int, ...]:
        shape = variable.shape
        return {"row": shape[:-1], "column": shape[:-2] + shape[-1:]}.get(slot, shape)

    def rule(self) -> Any:
        return kernels.RULES["rmsprop"]

    def pass_of(self, kind: str) -> Pass:
        if kind == MATRIX:
            sums = [("weights", "weights"), ("gradient", "gradient")]
            return Pass(kernels.RULES["gradient_descent"], (), self._descent, sums, matrices=True)
        sums = [("weights", "weights"), ("direction", "direction")]
        return Pass(self.rule(), ("velocity",), self.scalars, sums, self._step)

    @staticmethod
    def _step(hyper: Any) -> float:
        return 1.0

    @staticmethod
    def _descent(hyper: Any, t: int) -> tuple[float, ...]:
        rate = 1.0
        return (rate,)

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep = 1 - t**hyper.beta_2_decay
        take, rate = 1 - keep, 1.0
        epsilon_root, epsilon = hyper.epsilon_1, 0.0
        return keep, take, rate, epsilon_root, epsilon

    def scale_matrices(self, step: Measured) -> None:
        units = step.units
        for i, variable in enumerate(step.variables):
            if step.present[i] and units.shapes[i] and variable.size:
                hyper = step.groups[step.group_of[i]]
                rows, columns = units.rows_of(step.row_sums, i), units.columns_of(step.column_sums, i)
                by_row, by_column = self._scaling(step, hyper, variable, rows, columns)
                units.rows_of(units.by_row, i)[:] = by_row.reshape(-1)
                units.columns_of(units.by_column, i)[:] = by_column.reshape(-1)

    def _scaling(
        self, step: Measured, hyper: Any, variable: Place, of_rows: Array, of_columns: Array
    ) -> tuple[Array, Array]:
        """Return the factors of rows and columns, and commit the means that they come from."""
        keep = 1 - step.t**hyper.beta_2_decay
        rows, columns = variable.shape[-2:]
        new = {}
        for slot, means in (("row", of_rows / columns), ("column", of_columns / rows)):
            place = self.slot(variable, slot).value
            moved = keep * place + (1 - keep) * (means.reshape(place.shape) + hyper.epsilon_1)
            new[slot] = saturated(moved, place.dtype)
            step.commits.append((place, new[slot]))
        row, column = (new[slot].astype(np.float64) for slot in ("row", "column"))
        mean = np.cumsum(row / rows, axis=-1)[..., -1:]  # in order: the same on every processor
        return np.sqrt(mean) / np.sqrt(row), 1 / np.sqrt(column)

    def adjust(self, step: Measured) -> None:
        smallest, threshold = step.of_variables("epsilon_2"), step.of_variables("clip_threshold")
        rate = step.of_variables("learning_rate")
        step.sizes[:] = relative_sizes(step, rate, smallest, step.weight_norms(0), threshold)


def relative_sizes(step: Measured, rate: Array, smallest: Array, norms: Array, threshold: Array) -> Array:
    """Return the sizes of steps relative to the weights, of which `norms` are the norms.

    Sum number 1 of the step must be that of the squares of what is added.
    """
    size = 1 / np.sqrt(np.maximum([v.size for v in step.variables], 1))
    rate = np.minimum(rate, 1 / np.sqrt(step.counts)) * np.maximum(smallest, norms * size)
    excess = step.norms(1) * size / threshold
    sizes: Array = np.where(excess <= 1, rate, rate / excess)  # NaN passes
    return sizes


def saturated(means: Array, dtype: Any) -> Array:
    """Return positive numbers in a dtype, at most half its largest: their mean is finite. NaN passes."""
    numbers: Array = np.asarray(np.minimum(means, np.finfo(dtype).max / 2), dtype)
    return numbers


class Muon(Optimizer):
    r"""Momentum with nearly orthogonal steps for matrices; Adam for everything else.

    For matrices, :math:`O` is `ns_steps` steps of a Newton-Schulz iteration, which approximates :math:`U V^\top`
    of the singular value decomposition:

    .. math::

        m &\leftarrow \mu m + g, \qquad
        w \leftarrow w - \eta\, \kappa \sqrt{\max(\text{rows}, \text{columns})}\; O(g + \mu m) \\
        O(x) &: \quad x \leftarrow x / \lVert x \rVert, \quad A = x x^\top, \quad
        x \leftarrow a x + (b A + c A^2) x

    Without `nesterov`, :math:`O(m)`. Variables that are not matrices, embeddings and excluded variables follow
    `AdamW` with the learning rate times `adam_lr_ratio`.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    adam_beta_1, adam_beta_2, epsilon : float
        Parameters of Adam, by default 0.9, 0.999 and 1e-7.
    adam_weight_decay, weight_decay : float, optional
        Decoupled decay of the variables that follow Adam, and of matrices, by default 0.004 (PyTorch: 0.1).
    exclude_layers : list of str, optional
        Regular expressions. Variables whose name matches one follow Adam.
    exclude_embeddings : bool
        Whether variables with "embedding" in their name follow Adam, by default True.
    muon_a, muon_b, muon_c : float
        Coefficients of the iteration, by default 3.4445, -4.775, 2.0315.
    adam_lr_ratio : float
        Factor of the learning rate for the variables that follow Adam, by default 1.
    momentum : float
        :math:`\mu` in [0, 1], by default 0.95.
    ns_steps : int
        Steps of the iteration, by default 5.
    nesterov : bool
        Whether to use Nesterov momentum, by default True.
    rms_rate : float, optional
        :math:`\kappa`, by default 0.2, with which learning rates of Adam fit. None omits
        :math:`\kappa \sqrt{\max(\text{rows}, \text{columns})}`.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables and slots are float32 or float64 of one shape. All variables have the slot "momentum"; those that
    follow Adam also have "velocity". Gradients must be dense. NumPy multiplies the matrices with BLAS. So results
    of Muon, unlike those of all other optimizers of fastvar, may differ in the last bits between processors and
    between numbers of BLAS threads.

    References
    ----------
    Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024. Liu et al., Muon is Scalable for
    LLM Training, 2025 (arXiv:2502.16982), for :math:`\kappa`.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> w = fv.Variable(np.eye(2))
    >>> optimizer = fv.optimizers.Muon(0.1, weight_decay=0.0)
    >>> optimizer.apply([[[0.5, 0.0], [0.0, -0.5]]], [w])
    >>> w.value.round(2)
    array([[0.97, 0.  ],
           [0.  , 1.03]])
    """

    learning_rate: Number = number(default=0.001, low=0)
    adam_beta_1: Number = number(default=0.9, low=0, below=1)
    adam_beta_2: Number = number(default=0.999, low=0, below=1)
    adam_weight_decay: OptionalNumber = number(default=0.004, low=0, optional=True)
    epsilon: Number = number(default=1e-7, low=0)
    weight_decay: OptionalNumber = number(default=0.004, low=0, optional=True, kw_only=True)
    exclude_layers: tuple[str, ...] = sequence(text(default=None), default=(), kw_only=True)
    exclude_embeddings: bool = flag(default=True, kw_only=True)
    muon_a: Number = number(default=3.4445, kw_only=True)
    muon_b: Number = number(default=-4.7750, kw_only=True)
    muon_c: Number = number(default=2.0315, kw_only=True)
    adam_lr_ratio: Number = number(default=1.0, low=0, kw_only=True)
    momentum: Number = number(default=0.95, low=0, high=1, kw_only=True)
    ns_steps: int = integer(default=5, low=1, kw_only=True)
    nesterov: bool = flag(default=True, kw_only=True)
    rms_rate: OptionalNumber = number(default=0.2, low=0, optional=True, kw_only=True)
    slots: ClassVar[Sequence[str]] = ("momentum", "velocity")
    exact_slots: ClassVar[Sequence[str]] = ("momentum",)  # orthogonal steps amplify the noise of 8 bits

    def kind_of(self, variable: Place) -> str:
        name = self._name_of(variable)
        embeds = self.exclude_embeddings and "embedding" in name.lower()
        excluded = embeds or any(re.search(pattern, name) for pattern in self.exclude_layers)
        return MATRIX if variable.ndim == 2 and not excluded else OTHER

    def has_slot(self, slot: str, variable: Place) -> bool:
        return slot == "momentum" or self.kind_of(variable) == OTHER

    def rule(self) -> Any:
        return kernels.RULES["adam"]

    def pass_of(self, kind: str) -> Pass:
        if kind != MATRIX:
            return Pass(self.rule(), self.slots, self.scalars)
        return Pass(
            kernels.RULES["momentum"],
            ("momentum",),
            self._momentum,
            sums=[("direction", "direction")],
            step=lambda hyper: -hyper.learning_rate,
            keeps_directions=True,
        )

    def decay_rate(self, hyper: Any) -> float:
        rate = hyper.weight_decay if hyper.kind == MATRIX else hyper.adam_weight_decay
        return hyper.learning_rate * (rate or 0.0)  # type: ignore[no-any-return]

    def _momentum(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep, take = hyper.momentum, 1.0
        scale_m, scale_g = (keep, 1.0) if self.nesterov else (1.0, 0.0)
        return keep, take, scale_m, scale_g

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.adam_beta_1, hyper.adam_beta_2
        take_1, keep_2, take_2 = 1 - beta_1, beta_2, 1 - beta_2
        scale_m = hyper.learning_rate * hyper.adam_lr_ratio * sqrt(1 - beta_2**t) / (1 - beta_1**t)
        scale_g, scale_root = 0.0, 1.0
        return take_1, keep_2, take_2, scale_m, scale_g, scale_root, hyper.epsilon

    def adjust(self, step: Measured) -> None:
        norms = step.norms(0)
        for i, direction in enumerate(step.directions):
            if direction is None or not step.present[i] or not direction.size:
                continue
            hyper = step.groups[step.group_of[i]]
            coefficients = hyper.muon_a, hyper.muon_b, hyper.muon_c
            orthogonalize(direction, float(norms[i]) + 1e-7, coefficients, self.ns_steps)
            if hyper.rms_rate is not None:
                step.sizes[i] = sqrt(max(direction.shape)) * hyper.rms_rate


def orthogonalize(x: Array, divisor: float, coefficients: Sequence[float], steps: int) -> None:
    """Write into `x` what a Newton-Schulz iteration makes of it, divided by `divisor`."""
    short = x.T if x.shape[0] > x.shape[1] else x
    out, (a, b, c) = short, coefficients
    short = np.ascontiguousarray(short / x.dtype.type(divisor))
    for _ in range(steps):
        square = short @ short.T  # NumPy computes half of a symmetric product
        cube = square @ square.T
        cube *= x.dtype.type(c)
        square *= x.dtype.type(b)
        square += cube
        following = square @ short
        short *= x.dtype.type(a)
        short += following
    out[...] = short
