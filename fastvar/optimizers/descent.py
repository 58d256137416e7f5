"""Gradient descent: plain, with momentum, and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fastvar import kernels
from fastvar.hyper import Number, flag, number
from fastvar.optimizer import Optimizer
from fastvar.optimizers.shared import has_momentum, momentum_of_keras


class SGD(Optimizer):
    r"""Gradient descent, optionally with (Nesterov) momentum.

    Without momentum, :math:`w \leftarrow w - \eta g`. With momentum :math:`\mu`:

    .. math:: m \leftarrow \mu m - \eta g, \qquad w \leftarrow w + m

    With `nesterov`, :math:`w \leftarrow w + \mu m - \eta g` with the new :math:`m`. As in Keras, the learning
    rate is inside the momentum; in PyTorch it is outside. The two differ when it changes.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.01 (PyTorch: 0.001).
    momentum : float
        :math:`\mu` in [0, 1]; 0 keeps no state.
    nesterov : bool
        Whether to use Nesterov momentum.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slot "momentum" are float32 or float64 of one shape.

    References
    ----------
    Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.SGD(0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     optimizer.apply([[1.0, 0.0]], [w])
    >>> w.value
    array([0.71, 2.  ])
    """

    learning_rate: Number = number(default=0.01, low=0)
    momentum: Number = number(default=0.0, low=0, high=1)
    nesterov: bool = flag(default=False)

    @property
    def slots(self) -> Sequence[str]:  # type: ignore[override]
        return ("momentum",) if has_momentum(self) else ()

    def rule(self) -> Any:
        return kernels.RULES["momentum" if has_momentum(self) else "gradient_descent"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate = hyper.learning_rate
        if not hyper.slots:
            return (rate,)
        return momentum_of_keras(rate, hyper.momentum, hyper.nesterov)


class ASGD(Optimizer):
    r"""Averaged gradient descent: steps of decaying size, and a running average of the weights.

    Meaning, names and defaults are PyTorch's. Keras and optax have no such optimizer. At update
    :math:`t` = 1, 2, ...:

    .. math::

        \eta_t &= \eta / (1 + \lambda \eta (t - 1))^\alpha, \qquad \mu_t = 1 / \max(1, t - 1 - t_0) \\
        w &\leftarrow (1 - \lambda \eta_t) w - \eta_t g, \qquad a \leftarrow (1 - \mu_t) a + \mu_t w

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.01.
    lambd : float
        :math:`\lambda` >= 0, how fast weights and step sizes decay, by default 1e-4.
    alpha : float
        :math:`\alpha` >= 0, by default 0.75.
    t0 : float
        :math:`t_0` >= 0, the update at which averaging begins, by default 1e6. Until then :math:`a` equals `w`.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slot "ax", the average :math:`a`, are float32 or float64 of one shape. When
    the learning rate changes, PyTorch uses the new value one update later.

    References
    ----------
    Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim. 30, 1992.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0])
    >>> optimizer = fv.optimizers.ASGD(0.5, lambd=0.0, t0=0)
    >>> for _ in range(3):
    ...     optimizer.apply([[1.0]], [w])
    >>> w.value, optimizer.slot(w, "ax").value
    (array([-0.5]), array([-0.25]))
    """

    learning_rate: Number = number(default=0.01, low=0)
    lambd: Number = number(default=1e-4, low=0)
    alpha: Number = number(default=0.75, low=0)
    t0: Number = number(default=1e6, low=0)

    slots: ClassVar[Sequence[str]] = ("ax",)
    exact_slots: ClassVar[Sequence[str]] = ("ax",)

    def rule(self) -> Any:
        return kernels.RULES["asgd"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate = hyper.learning_rate / (1 + hyper.lambd * hyper.learning_rate * (t - 1)) ** hyper.alpha
        take = 1 / max(1.0, t - 1 - hyper.t0)
        shrinkage, keep = 1 - hyper.lambd * rate, 1 - take
        return rate, shrinkage, keep, take
