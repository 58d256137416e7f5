"""Variants of Adam with PyTorch's meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from fastvar import kernels
from fastvar.hyper import Number, Real, Schedule, number
from fastvar.optimizer.options import OptionTypes
from fastvar.optimizers.shared import rectified, unbiased_root
from fastvar.torch.base import TorchOptimizer
from fastvar.torch.moments import decays


class NAdam(TorchOptimizer):
    r"""Adam with Nesterov momentum that warms up, as in PyTorch.

    With :math:`g` the gradient plus :math:`\lambda w`, at update :math:`t` = 1, 2, ..., with
    :math:`\mu_t = \beta_1 (1 - 0.96^{\psi t} / 2)`:

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
        w &\leftarrow w - \eta \left(\frac{\mu_{t+1} m}{1 - \prod_{i \le t+1} \mu_i}
            + \frac{(1 - \mu_t) g}{1 - \prod_{i \le t} \mu_i}\right)
            \Big/ \left(\sqrt{v / (1-\beta_2^t)} + \epsilon\right)

    `fastvar.optimizers.Nadam` has :math:`\psi = 1`, and so warms up 250 times as fast. In optax there is no
    warmup.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.002.
    betas : pair of float
        :math:`\beta_1` and :math:`\beta_2`, decay of the moments, in [0, 1), by default 0.9 and 0.999.
    eps : float
        :math:`\epsilon` >= 0, by default 1e-8.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0. There is no flag to decouple it.
    momentum_decay : float
        :math:`\psi` >= 0, by default 0.004.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "exp_avg" and "exp_avg_sq" are float32 or float64 of one shape. The product
    of the :math:`\mu_i` is kept in double precision; in PyTorch it is in single.

    References
    ----------
    Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop 2016, algorithm 8.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.NAdam([w], lr=0.1)
    >>> optimizer.apply([[0.5, -0.5]])
    >>> w.value.round(4)
    array([0.8944, 2.1056])
    """

    lr: Number = number(default=2e-3, low=0)
    betas: tuple[float, float] = decays()
    eps: Number = number(default=1e-8, low=0)
    weight_decay: Number = number(default=0.0, low=0)
    momentum_decay: Number = number(default=4e-3, low=0)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            betas: tuple[float, float] = ...,
            eps: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            momentum_decay: Real | Schedule = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("exp_avg", "exp_avg_sq")

    def initial_numbers_per_variable(self) -> dict[str, float]:
        return self.carried("mu_product")

    def rule(self) -> Any:
        return kernels.RULES["adam"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.betas
        mu, following = (beta_1 * (1 - 0.5 * 0.96 ** (i * hyper.momentum_decay)) for i in (t, t + 1))
        product = mu * self._carried("mu_product", hyper, t, 1.0, lambda before: before * mu)
        scale_m = hyper.lr * following / (1 - product * following)
        scale_g = hyper.lr * (1 - mu) / (1 - product)
        take_1, keep_2, take_2 = 1 - beta_1, beta_2, 1 - beta_2
        scale_root, epsilon = unbiased_root(beta_2, t), hyper.eps
        return take_1, keep_2, take_2, scale_m, scale_g, scale_root, epsilon


class RAdam(TorchOptimizer):
    r"""Rectified Adam as in PyTorch: momentum alone until the second moment is reliable.

    With :math:`g` the gradient plus :math:`\lambda w`, at update :math:`t` = 1, 2, ..., with
    :math:`\rho_\infty = 2/(1-\beta_2) - 1` and
    :math:`\rho = \rho_\infty - 2 t \beta_2^t/(1-\beta_2^t)`:

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
        w &\leftarrow w - \frac{\eta}{1-\beta_1^t} \begin{cases}
            m & \rho \le 5 \\
            \sqrt{\frac{(\rho-4)(\rho-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho}}
            \sqrt{1-\beta_2^t} \frac{m}{\sqrt{v} + \epsilon} & \rho > 5 \end{cases}

    `fastvar.optimizers.RAdam` is the same with other names and decoupled weight decay.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.001.
    betas : pair of float
        :math:`\beta_1` and :math:`\beta_2`, decay of the moments, in [0, 1), by default 0.9 and 0.999.
    eps : float
        :math:`\epsilon` >= 0, by default 1e-8, outside the uncorrected root.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0. There is no flag to decouple it.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "exp_avg" and "exp_avg_sq" are float32 or float64 of one shape.

    References
    ----------
    Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020 (arXiv:1908.03265), algorithm 2,
    which rectifies where :math:`\rho > 4`.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.RAdam([w], lr=0.1)
    >>> optimizer.apply([[0.5, -0.25]])
    >>> w.value.round(4)
    array([0.95 , 2.025])
    """

    lr: Number = number(default=1e-3, low=0)
    betas: tuple[float, float] = decays()
    eps: Number = number(default=1e-8, low=0)
    weight_decay: Number = number(default=0.0, low=0)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            betas: tuple[float, float] = ...,
            eps: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("exp_avg", "exp_avg_sq")

    def rule(self) -> Any:
        return kernels.RULES["radam"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.betas
        return rectified(hyper.lr, beta_1, beta_2, hyper.eps, t)


class Adamax(TorchOptimizer):
    r"""Adam with the maximum of past gradients instead of their root mean square, as in PyTorch.

    With :math:`g` the gradient plus :math:`\lambda w`, at update :math:`t` = 1, 2, ...:

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad u \leftarrow \max(\beta_2 u, |g| + \epsilon) \\
        w &\leftarrow w - \frac{\eta}{1-\beta_1^t} \frac{m}{u}

    `fastvar.optimizers.Adamax` adds its epsilon after the maximum, and its weight decay is decoupled.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.002.
    betas : pair of float
        :math:`\beta_1` and :math:`\beta_2`, decay of the momentum and of the maximum, in [0, 1), by default 0.9
        and 0.999.
    eps : float
        :math:`\epsilon` >= 0, by default 1e-8; with 0, a gradient that has always been 0 is divided by 0.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "exp_avg" and "exp_inf" are float32 or float64 of one shape.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015 (arXiv:1412.6980), algorithm 2.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.Adamax([w], lr=0.1)
    >>> optimizer.apply([[0.5, -0.5]])
    >>> w.value.round(4)
    array([0.9, 2.1])
    """

    lr: Number = number(default=2e-3, low=0)
    betas: tuple[float, float] = decays()
    eps: Number = number(default=1e-8, low=0)
    weight_decay: Number = number(default=0.0, low=0)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            betas: tuple[float, float] = ...,
            eps: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("exp_avg", "exp_inf")

    def rule(self) -> Any:
        return kernels.RULES["adamax"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.betas
        take_1, keep, rate = 1 - beta_1, beta_2, hyper.lr / (1 - beta_1**t)
        epsilon_g, epsilon = hyper.eps, 0.0
        return take_1, keep, rate, epsilon_g, epsilon
