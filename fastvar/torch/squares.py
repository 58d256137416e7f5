"""Steps scaled by the root of a sum or mean of squared gradients, with PyTorch's meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from fastvar import kernels
from fastvar.hyper import Number, Real, Schedule, flag, number
from fastvar.optimizer.options import OptionTypes
from fastvar.optimizers.shared import has_momentum
from fastvar.place import Place
from fastvar.torch.base import TorchOptimizer


class Adagrad(TorchOptimizer):
    r"""Steps scaled by the root of the sum of all squared gradients, as in PyTorch.

    With :math:`g` the gradient plus :math:`\lambda w`, at update :math:`t` = 1, 2, ...:

    .. math::

        v \leftarrow v + g^2, \qquad
        w \leftarrow w - \frac{\eta}{1 + \delta (t - 1)} \frac{g}{\sqrt{v} + \epsilon}

    `fastvar.optimizers.Adagrad` adds its epsilon inside the root, begins at 0.1, and its weight decay is
    decoupled.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.01.
    lr_decay : float
        :math:`\delta` >= 0, by default 0.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0.
    initial_accumulator_value : float
        Initial value of :math:`v`, >= 0, by default 0.
    eps : float
        :math:`\epsilon` >= 0, by default 1e-10; with 0 and no initial value, a gradient of 0 is divided by 0.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slot "sum" are float32 or float64 of one shape. It is flushed like slots that
    decay, see `fastvar.optimizers`.

    References
    ----------
    Duchi et al., Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, JMLR 12, 2011.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.Adagrad([w], lr=0.1, lr_decay=1.0)
    >>> for _ in range(2):
    ...     optimizer.apply([[0.5, -0.5]])
    >>> w.value.round(4)
    array([0.8646, 2.1354])
    """

    lr: Number = number(default=1e-2, low=0)
    lr_decay: Number = number(default=0.0, low=0)
    weight_decay: Number = number(default=0.0, low=0)
    initial_accumulator_value: Number = number(default=0.0, low=0)
    eps: Number = number(default=1e-10, low=0)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            lr_decay: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            initial_accumulator_value: Real | Schedule = ...,
            eps: Real | Schedule = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("sum",)

    def initial(self, slot: str, variable: Place, hyper: Any) -> Any:
        return hyper.initial_accumulator_value

    def rule(self) -> Any:
        return kernels.RULES["rmsprop"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep = take = 1.0
        rate = hyper.lr / (1 + (t - 1) * hyper.lr_decay)
        epsilon_root, epsilon = 0.0, hyper.eps
        return keep, take, rate, epsilon_root, epsilon


class RMSprop(TorchOptimizer):
    r"""Steps scaled by the root of a running mean of squared gradients, as in PyTorch.

    With :math:`g` the gradient plus :math:`\lambda w`:

    .. math:: v \leftarrow \alpha v + (1-\alpha) g^2, \qquad w \leftarrow w - \eta \frac{g}{\sqrt{v} + \epsilon}

    With `centered`, :math:`v - a^2` replaces :math:`v` in the root, where
    :math:`a \leftarrow \alpha a + (1-\alpha) g`. With momentum :math:`\mu`:

    .. math:: m \leftarrow \mu m + \frac{g}{\sqrt{v} + \epsilon}, \qquad w \leftarrow w - \eta m

    In `fastvar.optimizers.RMSprop`, epsilon is inside the root, the learning rate is inside the momentum (a
    difference when it changes), and weight decay is decoupled.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.01.
    alpha : float
        :math:`\alpha` in [0, 1], by default 0.99.
    eps : float
        :math:`\epsilon` >= 0, by default 1e-8.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0.
    momentum : float
        :math:`\mu` in [0, 1], by default 0.
    centered : bool
        Whether to use the variance instead of the mean square.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "square_avg", "momentum_buffer" (if that is not 0, or `centered`) and
    "grad_avg" (if `centered`) are float32 or float64 of one shape.

    Rounding can make :math:`v - a^2` negative. Then it is 0 here; PyTorch takes its root and gets NaN.

    References
    ----------
    Tieleman and Hinton, Lecture 6.5: RMSProp, Coursera 2012. Graves, Generating Sequences with Recurrent Neural
    Networks, 2013 (arXiv:1308.0850), equations 38 to 41, for `centered`.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.RMSprop([w], lr=0.1, alpha=0.75)
    >>> optimizer.apply([[0.5, -0.5]])
    >>> w.value.round(4)
    array([0.8, 2.2])
    """

    lr: Number = number(default=1e-2, low=0)
    alpha: Number = number(default=0.99, low=0, high=1)
    eps: Number = number(default=1e-8, low=0)
    weight_decay: Number = number(default=0.0, low=0)
    momentum: Number = number(default=0.0, low=0, high=1)
    centered: bool = flag(default=False)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            alpha: Real | Schedule = ...,
            eps: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            momentum: Real | Schedule = ...,
            centered: bool = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    @property
    def slots(self) -> Sequence[str]:  # type: ignore[override]
        if self.centered:  # one rule for both, with and without momentum
            return "square_avg", "momentum_buffer", "grad_avg"
        return ("square_avg", "momentum_buffer") if has_momentum(self) else ("square_avg",)

    @property
    def exact_slots(self) -> Sequence[str]:  # type: ignore[override]
        return self.slots[::2] if self.centered else ()  # rounded, their difference would be too small

    def rule(self) -> Any:
        name = "rmsprop_centered" if self.centered else "rmsprop_momentum" if has_momentum(self) else "rmsprop"
        return kernels.RULES[name]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep, take = hyper.alpha, 1 - hyper.alpha
        rate, epsilon_root, epsilon = hyper.lr, 0.0, hyper.eps
        if len(hyper.slots) == 1:
            return keep, take, rate, epsilon_root, epsilon
        rate, keep_m, scale_m = 1.0, hyper.momentum, hyper.lr  # the learning rate is outside the momentum
        return keep, take, rate, epsilon_root, epsilon, keep_m, scale_m


class Adadelta(TorchOptimizer):
    r"""Steps of the size of past steps, relative to that of past gradients, as in PyTorch.

    With :math:`g` the gradient plus :math:`\lambda w`:

    .. math::

        v &\leftarrow \rho v + (1-\rho) g^2, \qquad s = \frac{\sqrt{d + \epsilon}}{\sqrt{v + \epsilon}} g \\
        d &\leftarrow \rho d + (1-\rho) s^2, \qquad w \leftarrow w - \eta s

    `fastvar.optimizers.Adadelta` has other defaults and decoupled weight decay.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 1.
    rho : float
        :math:`\rho` in [0, 1], by default 0.9.
    eps : float
        :math:`\epsilon` >= 0, by default 1e-6. The first steps have the size of its root; with 0 there are none.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "square_avg" and "acc_delta" are float32 or float64 of one shape.

    References
    ----------
    Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012 (arXiv:1212.5701), algorithm 1.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.Adadelta([w], eps=1e-2)
    >>> optimizer.apply([[0.5, -0.5]])
    >>> w.value.round(4)
    array([0.7327, 2.2673])
    """

    lr: Number = number(default=1.0, low=0)
    rho: Number = number(default=0.9, low=0, high=1)
    eps: Number = number(default=1e-6, low=0)
    weight_decay: Number = number(default=0.0, low=0)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            rho: Real | Schedule = ...,
            eps: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("square_avg", "acc_delta")

    def rule(self) -> Any:
        return kernels.RULES["adadelta"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep, take, rate, epsilon = hyper.rho, 1 - hyper.rho, hyper.lr, hyper.eps
        return keep, take, rate, epsilon
