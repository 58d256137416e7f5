"""Variants of Adam: Nadam, RAdam, Adamax, AdaBelief, Yogi."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

from fastvar import kernels
from fastvar.hyper import Number, number
from fastvar.optimizer import Optimizer
from fastvar.optimizers.shared import rectified, unbiased_root
from fastvar.place import Place


@cache
def _warm_products() -> tuple[float, ...]:
    """Return the products of `_warm` up to 0, 1, 2, ..., as far as they still change (about 900)."""
    products, t = [1.0], 1
    while (factor := _warm(t)) < 1:
        products.append(products[-1] * factor)
        t += 1
    return tuple(products)


def _warm(t: int) -> float:
    return 1 - 0.5 * 0.96**t


class Nadam(Optimizer):
    r"""Adam with Nesterov momentum that warms up.

    As in Keras, with :math:`\mu_t = \beta_1 (1 - 0.96^t / 2)`. At update :math:`t` = 1, 2, ...:

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
        w &\leftarrow w - \eta \left(\frac{\mu_{t+1} m}{1 - \prod_{i \le t+1} \mu_i}
            + \frac{(1 - \mu_t) g}{1 - \prod_{i \le t} \mu_i}\right)
            \Big/ \left(\sqrt{v / (1-\beta_2^t)} + \epsilon\right)

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001 (PyTorch: 0.002).
    beta_1, beta_2 : float
        Decay of the moments, in [0, 1), by default 0.9 and 0.999.
    epsilon : float
        :math:`\epsilon` >= 0, by default 1e-7 (PyTorch and optax: 1e-8), outside the corrected root in all.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum" and "velocity" are float32 or float64 of one shape.

    PyTorch warms up 250 times as slowly, with :math:`0.96^{0.004 t}`. optax does not warm up. The products are
    computed from the current :math:`\beta_1`; Keras multiplies the :math:`\mu_t` of past updates, which differs
    while :math:`\beta_1` changes.

    References
    ----------
    Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop 2016, algorithm 8.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Nadam(0.1)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.8937, 2.1063])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    epsilon: Number = number(default=1e-7, low=0)

    slots: ClassVar[Sequence[str]] = ("momentum", "velocity")

    def rule(self) -> Any:
        return kernels.RULES["adam"]

    @staticmethod
    def product(beta_1: float, t: int) -> float:
        r"""Return the product of :math:`\mu_1` to :math:`\mu_t`."""
        products = _warm_products()
        return beta_1**t * products[min(t, len(products) - 1)]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate, beta_1, beta_2 = hyper.learning_rate, hyper.beta_1, hyper.beta_2
        product, following = self.product(beta_1, t), self.product(beta_1, t + 1)
        scale_m = rate * beta_1 * _warm(t + 1) / (1 - following)
        scale_g = rate * (1 - beta_1 * _warm(t)) / (1 - product)
        take_1, keep_2, take_2, scale_root = 1 - beta_1, beta_2, 1 - beta_2, unbiased_root(beta_2, t)
        return take_1, keep_2, take_2, scale_m, scale_g, scale_root, hyper.epsilon


class RAdam(Optimizer):
    r"""Rectified Adam: momentum alone while the second moment has seen few gradients, then rectified steps.

    Meaning and defaults are PyTorch's. Keras has no such optimizer. Let :math:`\rho_\infty = 2/(1-\beta_2) - 1`
    and :math:`\rho = \rho_\infty - 2 t \beta_2^t/(1-\beta_2^t)`. At update :math:`t` = 1, 2, ...:

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
        w &\leftarrow w - \frac{\eta}{1-\beta_1^t} \begin{cases}
            m & \rho \le 5 \\
            \sqrt{\frac{(\rho-4)(\rho-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho}}
            \sqrt{1-\beta_2^t} \frac{m}{\sqrt{v} + \epsilon} & \rho > 5 \end{cases}

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    beta_1, beta_2 : float
        Decay of the moments, in [0, 1), by default 0.9 and 0.999.
    epsilon : float
        :math:`\epsilon` >= 0, by default 1e-8, outside the uncorrected root (optax: outside the corrected one).
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum" and "velocity" are float32 or float64 of one shape.

    References
    ----------
    Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020 (arXiv:1908.03265), algorithm 2.
    It rectifies if :math:`\rho > 4`.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.RAdam(0.1)
    >>> optimizer.apply([[0.5, -0.25]], [w])
    >>> w.value.round(4)
    array([0.95 , 2.025])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    epsilon: Number = number(default=1e-8, low=0)

    slots: ClassVar[Sequence[str]] = ("momentum", "velocity")

    def rule(self) -> Any:
        return kernels.RULES["radam"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        return rectified(hyper.learning_rate, hyper.beta_1, hyper.beta_2, hyper.epsilon, t)


class Adamax(Optimizer):
    r"""Adam with the maximum of past gradients instead of their root mean square.

    At update :math:`t` = 1, 2, ..., as in Keras:

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad u \leftarrow \max(\beta_2 u, |g|) \\
        w &\leftarrow w - \frac{\eta}{1-\beta_1^t} \frac{m}{u + \epsilon}

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001 (PyTorch: 0.002).
    beta_1, beta_2 : float
        Decay of the momentum and of the maximum, in [0, 1), by default 0.9 and 0.999.
    epsilon : float
        :math:`\epsilon` >= 0, by default 1e-7 (PyTorch and optax: 1e-8, added to :math:`|g|` inside the maximum).
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum" and "norm" are float32 or float64 of one shape.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015 (arXiv:1412.6980), algorithm 2.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Adamax(0.1)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.9, 2.1])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    epsilon: Number = number(default=1e-7, low=0)

    slots: ClassVar[Sequence[str]] = ("momentum", "norm")

    def rule(self) -> Any:
        return kernels.RULES["adamax"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        take_1, keep, rate = 1 - hyper.beta_1, hyper.beta_2, hyper.learning_rate / (1 - hyper.beta_1**t)
        epsilon_g = 0.0
        return take_1, keep, rate, epsilon_g, hyper.epsilon


class AdaBelief(Optimizer):
    r"""Adam whose second moment is that of the difference between the gradient and its running mean.

    Meaning and defaults are optax's, which has no default learning rate. Keras and PyTorch have no such
    optimizer. At update :math:`t` = 1, 2, ...:

    .. math::

        m &\leftarrow \beta_1 m + (1-\beta_1) g, \qquad
        s \leftarrow \beta_2 s + (1-\beta_2) (g - m)^2 + \epsilon_r \\
        w &\leftarrow w - \frac{\eta}{1-\beta_1^t} m \Big/ \left(\sqrt{s / (1-\beta_2^t)} + \epsilon\right)

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    beta_1, beta_2 : float
        Decay of the moments, in [0, 1), by default 0.9 and 0.999.
    epsilon : float
        :math:`\epsilon` >= 0, outside the corrected root, by default 1e-16 (the paper: 1e-8).
    epsilon_root : float
        :math:`\epsilon_r` >= 0, added to the second moment at every update, by default 1e-16.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum" and "velocity" are float32 or float64 of one shape.

    References
    ----------
    Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, 2020
    (arXiv:2010.07468), algorithm 2.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.AdaBelief(0.09)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.9, 2.1])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    epsilon: Number = number(default=1e-16, low=0)
    epsilon_root: Number = number(default=1e-16, low=0)

    slots: ClassVar[Sequence[str]] = ("momentum", "velocity")

    def rule(self) -> Any:
        return kernels.RULES["adabelief"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.beta_1, hyper.beta_2
        rate, scale_root = hyper.learning_rate / (1 - beta_1**t), unbiased_root(beta_2, t)
        keep_1, take_1, keep_2, take_2 = beta_1, 1 - beta_1, beta_2, 1 - beta_2
        return keep_1, take_1, keep_2, take_2, rate, scale_root, hyper.epsilon, hyper.epsilon_root


class Yogi(Optimizer):
    r"""Adam whose second moment changes by steps that do not depend on its own size.

    Meaning and defaults are optax's, which has no default learning rate (the paper: 0.01). Keras and PyTorch have
    no such optimizer. At update :math:`t` = 1, 2, ...:

    .. math::

        m &\leftarrow \beta_1 m + (1-\beta_1) g, \qquad
        v \leftarrow v - (1-\beta_2) \operatorname{sign}(v - g^2) g^2 \\
        w &\leftarrow w - \frac{\eta}{1-\beta_1^t} m \Big/ \left(\sqrt{v / (1-\beta_2^t)} + \epsilon\right)

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    beta_1, beta_2 : float
        Decay of the moments, in [0, 1), by default 0.9 and 0.999.
    epsilon : float
        :math:`\epsilon` >= 0, outside the corrected root, by default 1e-3.
    initial_accumulator_value : float
        Initial value of both moments, >= 0, by default 1e-6.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum" and "velocity" are float32 or float64 of one shape.

    References
    ----------
    Zaheer et al., Adaptive Methods for Nonconvex Optimization, NeurIPS 2018, algorithm 2.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Yogi(0.1)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.9004, 2.0996])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    epsilon: Number = number(default=1e-3, low=0)
    initial_accumulator_value: Number = number(default=1e-6, low=0)

    slots: ClassVar[Sequence[str]] = ("momentum", "velocity")

    def initial(self, slot: str, variable: Place, hyper: Any) -> Any:
        return hyper.initial_accumulator_value

    def rule(self) -> Any:
        return kernels.RULES["yogi"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.beta_1, hyper.beta_2
        rate, scale_root = hyper.learning_rate / (1 - beta_1**t), unbiased_root(beta_2, t)
        keep_1, take_1, take_2 = beta_1, 1 - beta_1, 1 - beta_2
        return keep_1, take_1, take_2, rate, scale_root, hyper.epsilon
