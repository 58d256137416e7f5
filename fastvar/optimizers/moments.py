"""Adam and AdamW, both with or without AMSGrad."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from fastvar import kernels
from fastvar.hyper import Number, OptionalNumber, flag, number
from fastvar.optimizer import Optimizer


class Adam(Optimizer):
    r"""Adam: steps scaled by running moments of the gradient; with `amsgrad`, by the largest second moment.

    As in Keras, epsilon is added to the uncorrected root; PyTorch adds it to the corrected one. At update
    :math:`t` = 1, 2, ...:

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
        w &\leftarrow w - \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \frac{m}{\sqrt{v} + \epsilon}

    With `amsgrad`, the root is that of :math:`\hat v \leftarrow \max(\hat v, v)`.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    beta_1, beta_2 : float
        Decay of the moments, in [0, 1), by default 0.9 and 0.999.
    epsilon : float
        :math:`\epsilon` >= 0, by default 1e-7 (PyTorch: 1e-8).
    amsgrad : bool
        Whether to keep the largest second moment.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum", "velocity" (and "velocity_hat" with `amsgrad`) are float32 or
    float64 of one shape.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015 (arXiv:1412.6980), the formulation before
    section 2.1. Reddi et al., On the Convergence of Adam and Beyond, 2018, for `amsgrad`.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Adam(0.1)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.9, 2.1])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    epsilon: Number = number(default=1e-7, low=0)
    amsgrad: bool = flag(default=False)

    @property
    def slots(self) -> Sequence[str]:  # type: ignore[override]
        return ("momentum", "velocity", "velocity_hat") if self.amsgrad else ("momentum", "velocity")

    @property
    def exact_slots(self) -> Sequence[str]:  # type: ignore[override]
        return self.slots[1:] if self.amsgrad else ()  # the largest of numbers rounded at random is too large

    def rule(self) -> Any:
        return kernels.RULES["amsgrad" if self.amsgrad else "adam"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, keep_2 = hyper.beta_1, hyper.beta_2
        take_1, take_2 = 1.0 - beta_1, 1.0 - keep_2  # Python subtracts from 1.0 twice as fast as from 1
        scale_m = hyper.learning_rate * sqrt(1.0 - keep_2**t) / (1.0 - beta_1**t)
        scale_g, scale_root = 0.0, 1.0
        return take_1, keep_2, take_2, scale_m, scale_g, scale_root, hyper.epsilon


class AdamW(Adam):
    r"""Adam with decoupled weight decay, by default 0.004 (PyTorch: 0.01, optax: 1e-4).

    First the decay, and then the update of `Adam`:

    .. math:: w \leftarrow w - \eta \lambda w

    Parameters
    ----------
    weight_decay : float
        :math:`\lambda` >= 0.
    **options
        Parameters of `Adam`, and options of every optimizer, see `Optimizer`.

    References
    ----------
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019 (arXiv:1711.05101).

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0])
    >>> optimizer = fv.optimizers.AdamW(0.1, weight_decay=0.5)
    >>> optimizer.apply([[0.0]], [w])
    >>> w.value
    array([0.95])
    """

    weight_decay: OptionalNumber = number(default=0.004, low=0, kw_only=True)
