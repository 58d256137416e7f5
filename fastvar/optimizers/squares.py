"""Steps scaled by the root of a sum or mean of squared gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fastvar import kernels
from fastvar.hyper import Number, flag, number
from fastvar.optimizer import Optimizer
from fastvar.optimizers.shared import has_momentum
from fastvar.place import Place


class Adagrad(Optimizer):
    r"""Steps scaled by the root of the sum of all squared gradients.

    As in Keras, with epsilon inside the root (PyTorch: outside):

    .. math:: v \leftarrow v + g^2, \qquad w \leftarrow w - \eta \frac{g}{\sqrt{v + \epsilon}}

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001 (PyTorch: 0.01, and it has `lr_decay`).
    initial_accumulator_value : float
        Initial value of :math:`v`, >= 0, by default 0.1 (PyTorch: 0).
    epsilon : float
        :math:`\epsilon` >= 0, by default 1e-7 (PyTorch: 1e-10).
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slot "accumulator" are float32 or float64 of one shape. The slot is flushed like
    slots that decay, see `fastvar.optimizers`. If the initial value and epsilon are 0, a gradient of 0 is divided
    by 0.

    References
    ----------
    Duchi et al., Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, JMLR 12, 2011.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Adagrad(0.1, initial_accumulator_value=0.0)
    >>> for _ in range(2):
    ...     optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.8293, 2.1707])
    """

    learning_rate: Number = number(default=0.001, low=0)
    initial_accumulator_value: Number = number(default=0.1, low=0)
    epsilon: Number = number(default=1e-7, low=0)

    slots: ClassVar[Sequence[str]] = ("accumulator",)

    def initial(self, slot: str, variable: Place, hyper: Any) -> Any:
        return hyper.initial_accumulator_value

    def rule(self) -> Any:
        return kernels.RULES["rmsprop"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep = take = 1.0
        rate, epsilon_root, epsilon = hyper.learning_rate, hyper.epsilon, 0.0
        return keep, take, rate, epsilon_root, epsilon


class RMSprop(Optimizer):
    r"""Steps scaled by the root of a running mean of squared gradients.

    As in Keras, with epsilon inside the root (optax too; PyTorch: outside):

    .. math:: v \leftarrow \rho v + (1-\rho) g^2, \qquad w \leftarrow w - \eta \frac{g}{\sqrt{v + \epsilon}}

    With `centered`, :math:`v - a^2` replaces :math:`v` in the root, where
    :math:`a \leftarrow \rho a + (1-\rho) g`. With momentum :math:`\mu`:

    .. math:: m \leftarrow \mu m + \eta \frac{g}{\sqrt{v + \epsilon}}, \qquad w \leftarrow w - m

    As in optax, the learning rate is inside the momentum; in PyTorch it is outside. The two differ when it
    changes.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001 (PyTorch: 0.01).
    rho : float
        :math:`\rho` in [0, 1), by default 0.9 (PyTorch calls it alpha, 0.99).
    momentum : float
        :math:`\mu` in [0, 1], by default 0.
    epsilon : float
        :math:`\epsilon` >= 0, by default 1e-7 (PyTorch and optax: 1e-8).
    centered : bool
        Whether to use the variance instead of the mean square.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "velocity", "momentum" (if `momentum` is not 0, or with `centered`) and
    "average_gradient" (with `centered`) are float32 or float64 of one shape.

    Rounding can make :math:`v - a^2` negative. It is then replaced by 0; in Keras and PyTorch the step is NaN.

    References
    ----------
    Tieleman and Hinton, Lecture 6.5: RMSProp, Coursera 2012. Graves, Generating Sequences with Recurrent Neural
    Networks, 2013 (arXiv:1308.0850), equations 38 to 41, for `centered`.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.RMSprop(0.1, momentum=0.5)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.6838, 2.3162])
    """

    learning_rate: Number = number(default=0.001, low=0)
    rho: Number = number(default=0.9, low=0, below=1)
    momentum: Number = number(default=0.0, low=0, high=1)
    epsilon: Number = number(default=1e-7, low=0)
    centered: bool = flag(default=False)

    @property
    def slots(self) -> Sequence[str]:  # type: ignore[override]
        if self.centered:  # one rule for both, with and without momentum
            return "velocity", "momentum", "average_gradient"
        return ("velocity", "momentum") if has_momentum(self) else ("velocity",)

    @property
    def exact_slots(self) -> Sequence[str]:  # type: ignore[override]
        return self.slots[::2] if self.centered else ()  # rounded, their difference would be too small

    def rule(self) -> Any:
        name = "rmsprop_centered" if self.centered else "rmsprop_momentum" if has_momentum(self) else "rmsprop"
        return kernels.RULES[name]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep, take = hyper.rho, 1 - hyper.rho
        rate, epsilon_root, epsilon = hyper.learning_rate, hyper.epsilon, 0.0
        if len(hyper.slots) == 1:
            return keep, take, rate, epsilon_root, epsilon
        keep_m, scale_m = hyper.momentum, 1.0
        return keep, take, rate, epsilon_root, epsilon, keep_m, scale_m


class Adadelta(Optimizer):
    r"""Steps scaled by the ratio of the sizes of past steps and past gradients.

    As in Keras, and in PyTorch and optax with other defaults:

    .. math::

        v &\leftarrow \rho v + (1-\rho) g^2, \qquad s = \frac{\sqrt{d + \epsilon}}{\sqrt{v + \epsilon}} g \\
        d &\leftarrow \rho d + (1-\rho) s^2, \qquad w \leftarrow w - \eta s

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001 (PyTorch and the paper: 1).
    rho : float
        :math:`\rho` in [0, 1), by default 0.95 (PyTorch and optax: 0.9).
    epsilon : float
        :math:`\epsilon` > 0, by default 1e-7 (PyTorch and optax: 1e-6). It sets the size of the first steps.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "accumulated_grad" and "accumulated_delta_var" are float32 or float64 of
    one shape.

    References
    ----------
    Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012 (arXiv:1212.5701), algorithm 1.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Adadelta(1.0, epsilon=1e-2)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.6667, 2.3333])
    """

    learning_rate: Number = number(default=0.001, low=0)
    rho: Number = number(default=0.95, low=0, below=1)
    epsilon: Number = number(default=1e-7, above=0)

    slots: ClassVar[Sequence[str]] = ("accumulated_grad", "accumulated_delta_var")

    def rule(self) -> Any:
        return kernels.RULES["adadelta"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        keep, take, rate = hyper.rho, 1 - hyper.rho, hyper.learning_rate
        return keep, take, rate, hyper.epsilon
