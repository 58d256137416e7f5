"""Optimizers that use only the sign of the gradient: Lion, Signum, Rprop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fastvar import kernels
from fastvar.hyper import Number, number
from fastvar.optimizer import Optimizer
from fastvar.place import Place


class Lion(Optimizer):
    r"""Steps of constant size, with the sign of a mean of momentum and gradient.

    As in Keras and optax:

    .. math::

        w \leftarrow w - \eta \operatorname{sign}(\beta_1 m + (1-\beta_1) g), \qquad
        m \leftarrow \beta_2 m + (1-\beta_2) g

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001. Choose a third to a tenth of that for Adam.
    beta_1 : float
        Weight of the momentum in a step, in (0, 1], by default 0.9.
    beta_2 : float
        Decay of the momentum, in [0, 1], by default 0.99.
    **options
        Options of every optimizer, see `Optimizer`. `weight_decay` should be 3 to 10 times that of AdamW
        (optax's default is 1e-3).

    Notes
    -----
    Variables, gradients and the slot "momentum" are float32 or float64 of one shape. The sign of 0 is 0,
    that of NaN is NaN.

    References
    ----------
    Chen et al., Symbolic Discovery of Optimization Algorithms, 2023 (arXiv:2302.06675), algorithm 2.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0, 3.0])
    >>> optimizer = fv.optimizers.Lion(0.5)
    >>> optimizer.apply([[1e-3, -7.0, 0.0]], [w])
    >>> w.value
    array([0.5, 2.5, 3. ])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, above=0, high=1)
    beta_2: Number = number(default=0.99, low=0, high=1)

    slots: ClassVar[Sequence[str]] = ("momentum",)

    def rule(self) -> Any:
        return kernels.RULES["sign_momentum"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep_ahead, take_ahead = hyper.beta_1, 1 - hyper.beta_1
        keep, take, rate = hyper.beta_2, 1 - hyper.beta_2, hyper.learning_rate
        return keep_ahead, take_ahead, keep, take, rate


class Signum(Optimizer):
    r"""Steps of constant size, with the sign of the momentum.

    Meaning and default momentum are optax's. Keras and PyTorch have no such optimizer.

    .. math:: m \leftarrow \mu m + (1-\mu) g, \qquad w \leftarrow w - \eta \operatorname{sign}(m)

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001 (optax has no default).
    momentum : float
        :math:`\mu` in [0, 1), by default 0.9; 0 is signSGD.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slot "momentum" are float32 or float64 of one shape. The sign of 0 is 0,
    that of NaN is NaN.

    References
    ----------
    Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, 2018 (arXiv:1802.04434),
    algorithm 2.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0, 3.0])
    >>> optimizer = fv.optimizers.Signum(0.5)
    >>> optimizer.apply([[1e-3, -7.0, 0.0]], [w])
    >>> w.value
    array([0.5, 2.5, 3. ])
    """

    learning_rate: Number = number(default=0.001, low=0)
    momentum: Number = number(default=0.9, low=0, below=1)

    slots: ClassVar[Sequence[str]] = ("momentum",)
    exact_slots: ClassVar[Sequence[str]] = ("momentum",)  # in 8 bits, small numbers lose their signs

    def rule(self) -> Any:
        return kernels.RULES["sign_momentum"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep = keep_ahead = hyper.momentum
        take = take_ahead = 1 - keep
        rate = hyper.learning_rate
        return keep_ahead, take_ahead, keep, take, rate


class Rprop(Optimizer):
    r"""One step size per element, which grows while the gradient keeps its sign, and shrinks when it changes.

    Use it with gradients of the whole data set, not of samples. Meaning and defaults are PyTorch's, which has the
    pairs `etas` and `step_sizes`. Keras has no such optimizer. That of optax also takes a step back when the
    gradient changes its sign.

    .. math::

        \sigma &\leftarrow \operatorname{clip}(\sigma \cdot (\eta_+ \text{ if } g p > 0, \;
            \eta_- \text{ if } g p < 0, \; \text{else } 1), \; \sigma_{\min}, \; \sigma_{\max}) \\
        p &\leftarrow 0 \text{ if } g p < 0 \text{ else } g, \qquad
        w \leftarrow w - \operatorname{sign}(p) \sigma

    Parameters
    ----------
    learning_rate : float or callable
        Initial value of the step sizes :math:`\sigma`, >= 0, by default 0.01. Later changes affect
        `weight_decay` alone.
    eta_minus : float
        :math:`\eta_-` in (0, 1), by default 0.5.
    eta_plus : float
        :math:`\eta_+` > 1, by default 1.2.
    step_size_min, step_size_max : float
        Bounds of the step sizes, >= 0 and > 0, by default 1e-6 and 50.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "previous_gradient" (:math:`p`) and "step_size" are float32 or float64
    of one shape.

    References
    ----------
    Riedmiller and Braun, A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm,
    ICNN 1993. Igel and Hüsken, Improving the Rprop Learning Algorithm, 2000: "iRprop-", which does not step back.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Rprop(0.1)
    >>> for gradient in ([1.0, 1.0], [2.0, -1.0]):
    ...     optimizer.apply([gradient], [w])
    >>> w.value, optimizer.slot(w, "step_size").value
    (array([0.78, 1.9 ]), array([0.12, 0.05]))
    """

    learning_rate: Number = number(default=0.01, low=0)
    eta_minus: Number = number(default=0.5, above=0, below=1)
    eta_plus: Number = number(default=1.2, above=1)
    step_size_min: Number = number(default=1e-6, low=0)
    step_size_max: Number = number(default=50.0, above=0)

    slots: ClassVar[Sequence[str]] = ("previous_gradient", "step_size")
    exact_slots: ClassVar[Sequence[str]] = (
        slots  # the sign of a small gradient is lost in 8 bits, and step sizes drift
    )

    def initial(self, slot: str, variable: Place, hyper: Any) -> Any:
        return hyper.learning_rate if slot == "step_size" else 0

    def rule(self) -> Any:
        return kernels.RULES["rprop"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        down, up, low, high = hyper.eta_minus, hyper.eta_plus, hyper.step_size_min, hyper.step_size_max
        if low > high:
            raise ValueError(f"{self._owner}: step_size_min must be <= step_size_max, {high:g}, got {low:g}")
        return down, up, low, high
