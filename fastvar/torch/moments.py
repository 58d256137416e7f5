"""Adam and AdamW with PyTorch's meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from fastvar import kernels
from fastvar.hyper import Number, Real, Schedule, flag, number, pair
from fastvar.optimizer.options import OptionTypes
from fastvar.optimizers.shared import unbiased_root
from fastvar.torch.base import TorchOptimizer


def decays() -> Any:
    """Declare the decay rates of two moments."""
    return pair(number(low=0, below=1), number(low=0, below=1), default=(0.9, 0.999))


class Adam(TorchOptimizer):
    r"""Adam as in PyTorch: epsilon is added to the corrected root, and weight decay to the gradient.

    With :math:`g` the gradient plus :math:`\lambda w`, at update :math:`t` = 1, 2, ...:

    .. math::

        m &\leftarrow m + (1-\beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
        w &\leftarrow w - \frac{\eta}{1-\beta_1^t} m \Big/ \left(\sqrt{v / (1-\beta_2^t)} + \epsilon\right)

    With `amsgrad`, :math:`\hat v \leftarrow \max(\hat v, v)` replaces :math:`v` in the root.
    `fastvar.optimizers.Adam` adds its epsilon, 1e-7, to the uncorrected root, and its weight decay is decoupled.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update, see `TorchOptimizer`.
    lr : float or callable
        :math:`\eta` >= 0, by default 0.001.
    betas : pair of float
        :math:`\beta_1` and :math:`\beta_2`, decay of the moments, in [0, 1), by default 0.9 and 0.999.
    eps : float
        :math:`\epsilon` >= 0, by default 1e-8.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0. For decoupled decay (PyTorch has a flag), use `AdamW`.
    amsgrad : bool
        Whether to keep the largest second moment.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "exp_avg", "exp_avg_sq" (and "max_exp_avg_sq" with `amsgrad`) are float32 or
    float64 of one shape.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015 (arXiv:1412.6980), algorithm 1. Reddi et al.,
    On the Convergence of Adam and Beyond, 2018, for `amsgrad`.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.torch.Adam([w], lr=0.1, betas=(0.9, 0.99))
    >>> optimizer.apply([[0.5, -0.5]])
    >>> w.value.round(4)
    array([0.9, 2.1])
    """

    lr: Number = number(default=1e-3, low=0)
    betas: tuple[float, float] = decays()
    eps: Number = number(default=1e-8, low=0)
    weight_decay: Number = number(default=0.0, low=0)
    amsgrad: bool = flag(default=False)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            betas: tuple[float, float] = ...,
            eps: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            amsgrad: bool = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    @property
    def slots(self) -> Sequence[str]:  # type: ignore[override]
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if self.amsgrad else ("exp_avg", "exp_avg_sq")

    @property
    def exact_slots(self) -> Sequence[str]:  # type: ignore[override]
        return self.slots[1:] if self.amsgrad else ()  # the largest of numbers rounded at random is too large

    def rule(self) -> Any:
        return kernels.RULES["amsgrad" if self.amsgrad else "adam"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.betas
        take_1, keep_2, take_2, epsilon = 1 - beta_1, beta_2, 1 - beta_2, hyper.eps
        scale_m, scale_g, scale_root = hyper.lr / (1 - beta_1**t), 0.0, unbiased_root(beta_2, t)
        return take_1, keep_2, take_2, scale_m, scale_g, scale_root, epsilon


class AdamW(Adam):
    r"""Adam with decoupled weight decay as in PyTorch, by default 0.01 (Keras: 0.004, optax: 1e-4).

    First the decay, and then the update of `Adam` from the gradient alone:

    .. math:: w \leftarrow w - \eta \lambda w

    `fastvar.optimizers.AdamW` differs by its epsilon and its default.

    Parameters
    ----------
    params, lr, betas, eps
        As in `Adam`.
    weight_decay : float
        :math:`\lambda` >= 0, by default 0.01.
    amsgrad, maximize, **options
        As in `Adam`.

    References
    ----------
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019 (arXiv:1711.05101).

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w = fv.Variable([1.0])
    >>> optimizer = fv.torch.AdamW([w], lr=0.1, weight_decay=0.5)
    >>> optimizer.apply([[0.0]])
    >>> w.value
    array([0.95])
    """

    weight_decay: Number = number(default=1e-2, low=0)
    amsgrad: bool = flag(default=False)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: Any = None,
            lr: Real | Schedule = ...,
            betas: tuple[float, float] = ...,
            eps: Real | Schedule = ...,
            weight_decay: Real | Schedule = ...,
            amsgrad: bool = ...,
            *,
            maximize: bool = ...,
            **options: Unpack[OptionTypes],
        ) -> None: ...

    def decay_rate(self, hyper: Any) -> float:
        return float(hyper.lr * hyper.weight_decay)

    def l2_rate(self, hyper: Any) -> float:
        return 0.0
