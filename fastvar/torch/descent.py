"""Gradient descent with PyTorch's meaning: with momentum, averaged, or by the sign of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from fastvar import kernels
from fastvar.hyper import Number, Real, Schedule, flag, number, pair
from fastvar.optimizer.options import OptionTypes
from fastvar.optimizers.shared import has_momentum
from fastvar.place import Place
from fastvar.torch.base import TorchOptimizer


class SGD(TorchOptimizer):
    r"""Gradient descent, optionally with (Nesterov) momentum, as in PyTorch.

    With :math:`g` the gradient plus :math:`\lambda w`: without momentum, :math:`w \leftarrow w - \eta g`. With
    momentum :math:`\mu` and dampening :math:`\tau`:

    .. math:: m \leftarrow \mu m + (1-\tau) g, \qquad w \leftarrow w - \eta m

    and with `nesterov`, :math:`w \leftarrow w - \eta (g + \mu m)` with the new :math:`m`. The first update sets
    :math:`m = g`, undamped. In `fastvar.optimizers.SGD`, the learning rate is inside the momentum (a difference
    when it changes), there is no dampening, and weight decay is decoupled.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.001.
    momentum : float
        :math:`\mu` in [0, 1], by default 0. Without momentum there is no state.
    dampening : float
        :math:`\tau`, by default 0; no effect where the momentum is 0.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0.
    nesterov : bool
        Whether to use Nesterov momentum. It requires a momentum > 0 and a dampening of 0.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slot "momentum_buffer" are float32 or float64 of one shape.

    References
    ----------
    Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013. PyTorch's
    learning rate stands elsewhere.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.SGD([w], lr=0.1, momentum=0.9)
    >>> for optimizer.lr in (0.1, 0.01):
    ...     optimizer.apply([[1.0, 0.0]])
    >>> w.value
    array([0.881, 2.   ])
    """

    lr: Number = number(default=1e-3, low=0)
    momentum: Number = number(default=0.0, low=0, high=1)
    dampening: Number = number(default=0.0)
    weight_decay: Number = number(default=0.0, low=0)
    nesterov: bool = flag(default=False)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            momentum: Real | Schedule = ...,
            dampening: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            nesterov: bool = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    def _validate(self) -> None:
        super()._validate()
        momentum, dampening = self._parameters["momentum"], self._parameters["dampening"]
        if self._parameters["nesterov"] and (momentum == 0 or dampening != 0):
            raise ValueError(f"{type(self).__name__}: nesterov needs a momentum > 0 and a dampening of 0")

    @property
    def slots(self) -> Sequence[str]:  # type: ignore[override]
        return ("momentum_buffer",) if has_momentum(self) else ()

    def rule(self) -> Any:
        return kernels.RULES["momentum" if has_momentum(self) else "gradient_descent"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate, keep = hyper.lr, hyper.momentum
        if not hyper.slots:
            return (rate,)
        take = 1.0 if t == 1 else 1 - hyper.dampening
        scale_m, scale_g = (-rate * keep, -rate) if hyper.nesterov else (-rate, 0.0)
        if keep == 0:  # only in this group: nothing is damped
            keep, take, scale_m, scale_g = 0.0, 0.0, 0.0, -rate
        return keep, take, scale_m, scale_g


class ASGD(TorchOptimizer):
    r"""Averaged gradient descent as in PyTorch: decaying steps, and a running average of the weights.

    With :math:`g` the gradient plus weight decay times :math:`w`, at update :math:`t` = 1, 2, ... with
    :math:`\eta_1 = \eta`:

    .. math::

        \mu_t &= 1 / \max(1, t - 1 - t_0) \\
        w &\leftarrow (1 - \lambda \eta_t) w - \eta_t g, \qquad a \leftarrow (1 - \mu_t) a + \mu_t w \\
        \eta_{t+1} &= \eta / (1 + \lambda \eta t)^\alpha

    A new learning rate takes effect one update later, as in PyTorch and unlike in `fastvar.optimizers.ASGD`.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.01.
    lambd : float
        :math:`\lambda` >= 0, how fast weights and step sizes decay, by default 1e-4.
    alpha : float
        :math:`\alpha` >= 0, by default 0.75.
    t0 : float
        :math:`t_0` >= 0, the update at which averaging begins, by default 1e6. Until then :math:`a` equals `w`.
    weight_decay : float
        >= 0, by default 0.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slot "ax", the average :math:`a`, are float32 or float64 of one shape.
    :math:`\eta_{t+1}` is kept in double precision; in PyTorch it is in single.

    References
    ----------
    Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim. 30, 1992.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0])
    >>> optimizer = fv.torch.ASGD([w], lr=0.5, lambd=0.0, t0=0)
    >>> for optimizer.lr in (0.5, 0.25, 0.25):
    ...     optimizer.apply([[1.0]])
    >>> w.value, optimizer.slot(w, "ax").value
    (array([-0.25]), array([-0.125]))
    """

    lr: Number = number(default=1e-2, low=0)
    lambd: Number = number(default=1e-4, low=0)
    alpha: Number = number(default=0.75, low=0)
    t0: Number = number(default=1e6, low=0)
    weight_decay: Number = number(default=0.0, low=0)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            lambd: Real | Schedule = ...,
            alpha: Real | Schedule = ...,
            t0: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("ax",)
    exact_slots: ClassVar[Sequence[str]] = ("ax",)

    def initial_numbers_per_variable(self) -> dict[str, float]:
        return self.carried("eta")

    def rule(self) -> Any:
        return kernels.RULES["asgd"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        following = hyper.lr / (1 + hyper.lambd * hyper.lr * t) ** hyper.alpha
        rate = self._carried("eta", hyper, t, hyper.lr, lambda _: following)
        take = 1 / max(1.0, t - 1 - hyper.t0)
        shrinkage, keep = 1 - hyper.lambd * rate, 1 - take
        return rate, shrinkage, keep, take


class Rprop(TorchOptimizer):
    r"""A step size for every element, which grows while the gradient keeps its sign, and shrinks when it changes.

    As in PyTorch, without weight decay. `fastvar.optimizers.Rprop` is the same with other names. It is meant for
    gradients of the whole data set, not of minibatches.

    .. math::

        \sigma &\leftarrow \operatorname{clip}(\sigma \cdot (\eta_+ \text{ if } g p > 0, \;
            \eta_- \text{ if } g p < 0, \; \text{else } 1), \; \sigma_{\min}, \; \sigma_{\max}) \\
        p &\leftarrow 0 \text{ if } g p < 0 \text{ else } g, \qquad
        w \leftarrow w - \operatorname{sign}(p) \sigma

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        Initial value of the step sizes :math:`\sigma`, >= 0, by default 0.01. Changes after the first update have
        no effect.
    etas : pair of float
        :math:`\eta_-` in (0, 1) and :math:`\eta_+` > 1, by default 0.5 and 1.2.
    step_sizes : pair of float
        Bounds of the step sizes, 0 <= :math:`\sigma_{\min} \le \sigma_{\max}`, by default 1e-6 and 50.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "prev" (:math:`p`) and "step_size" are float32 or float64 of one shape.

    References
    ----------
    Riedmiller and Braun, A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm, ICNN
    1993; without its step back: "iRprop-" in Igel and Hüsken, Improving the Rprop Learning Algorithm, 2000.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.Rprop([w], lr=0.1)
    >>> for gradient in ([1.0, 1.0], [2.0, -1.0]):
    ...     optimizer.apply([gradient])
    >>> w.value, optimizer.slot(w, "step_size").value
    (array([0.78, 1.9 ]), array([0.12, 0.05]))
    """

    weight_decay = None  # type: ignore[assignment]
    lr: Number = number(default=1e-2, low=0)
    etas: tuple[float, float] = pair(number(above=0, below=1), number(above=1), default=(0.5, 1.2))
    step_sizes: tuple[float, float] = pair(number(low=0), number(above=0), default=(1e-6, 50.0))

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            etas: tuple[float, float] = ...,
            step_sizes: tuple[float, float] = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    slots: ClassVar[Sequence[str]] = ("prev", "step_size")
    exact_slots: ClassVar[Sequence[str]] = (
        slots  # the sign of a small gradient is lost in 8 bits, and step sizes drift
    )

    def initial(self, slot: str, variable: Place, hyper: Any) -> Any:
        return hyper.lr if slot == "step_size" else 0

    def l2_rate(self, hyper: Any) -> float:
        return 0.0

    def rule(self) -> Any:
        return kernels.RULES["rprop"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        (down, up), (low, high) = hyper.etas, hyper.step_sizes
        if low > high:
            raise ValueError(f"{self._owner}: step_sizes[0] must be <= step_sizes[1], got {hyper.step_sizes!r}")
        if t == 1:  # step sizes begin at the learning rate of now, not of `build`
            low = high = min(max(hyper.lr, low), high)
        return down, up, low, high
