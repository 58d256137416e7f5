"""Successors of Adam: AdEMAMix, Adan, Adopt, and the schedule-free AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, ClassVar

from fastvar import kernels
from fastvar.hyper import Number, OptionalNumber, number
from fastvar.optimizer import Optimizer
from fastvar.optimizers.shared import unbiased_root


class AdEMAMix(Optimizer):
    r"""Adam with two running means of the gradient, a fast one and a slow one.

    Meaning and defaults are optax's, which has no default learning rate. Keras and PyTorch have no such
    optimizer. At update :math:`t` = 1, 2, ...:

    .. math::

        m &\leftarrow \beta_1 m + (1-\beta_1) g, \quad s \leftarrow \beta_3 s + (1-\beta_3) g, \quad
        v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
        w &\leftarrow w - \eta \left(\frac{m}{1-\beta_1^t} + \alpha s\right)
            \Big/ \left(\sqrt{v / (1-\beta_2^t)} + \epsilon\right)

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    beta_1, beta_2, beta_3 : float
        Decay of the fast mean, of the second moment and of the slow mean, in [0, 1), by default 0.9, 0.999
        and 0.9999. In the paper :math:`\beta_3` rises from :math:`\beta_1`: pass a callable of the iteration.
    alpha : float
        :math:`\alpha` >= 0, the weight of the slow mean, by default 5. In the paper it rises from 0.
    epsilon : float
        :math:`\epsilon` >= 0, outside the corrected root, by default 1e-8.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum", "slow_momentum" and "velocity" are float32 or float64 of one
    shape.

    References
    ----------
    Pagliardini et al., The AdEMAMix Optimizer: Better, Faster, Older, 2024 (arXiv:2409.03137), algorithm 1.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.AdEMAMix(0.1, beta_3=lambda step: min(0.9 + step / 1e5, 0.9999))
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.85, 2.15])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    beta_3: Number = number(default=0.9999, low=0, below=1)
    alpha: Number = number(default=5.0, low=0)
    epsilon: Number = number(default=1e-8, low=0)

    slots: ClassVar[Sequence[str]] = ("momentum", "slow_momentum", "velocity")

    def rule(self) -> Any:
        return kernels.RULES["ademamix"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate, beta_1, beta_2, beta_3 = hyper.learning_rate, hyper.beta_1, hyper.beta_2, hyper.beta_3
        keep_1, take_1, keep_slow, take_slow = beta_1, 1 - beta_1, beta_3, 1 - beta_3
        keep_2, take_2, scale_root = beta_2, 1 - beta_2, unbiased_root(beta_2, t)
        scale_m, scale_slow, epsilon = rate / (1 - beta_1**t), rate * hyper.alpha, hyper.epsilon
        return keep_1, take_1, keep_slow, take_slow, keep_2, take_2, scale_m, scale_slow, scale_root, epsilon


class Adan(Optimizer):
    r"""Adaptive Nesterov momentum: Adam with a running mean of the changes of the gradient.

    Meaning and defaults are optax's, which has no default learning rate. Keras and PyTorch have no such
    optimizer. At update :math:`t` = 1, 2, ..., with :math:`\Delta = g - g_{t-1}` (0 at first):

    .. math::

        m &\leftarrow \beta_1 m + (1-\beta_1) g, \qquad d \leftarrow \beta_2 d + (1-\beta_2) \Delta \\
        v &\leftarrow \beta_3 v + (1-\beta_3) (g + (1-\beta_2)\Delta)^2 \\
        w &\leftarrow w - \eta \left(\frac{m}{1-\beta_1^t} + (1-\beta_2)\frac{d}{1-\beta_2^t}\right)
            \Big/ \left(\sqrt{v / (1-\beta_3^t) + \epsilon_r} + \epsilon\right)

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    beta_1, beta_2, beta_3 : float
        Decay of the means of the gradient, of its change, and of the square, in [0, 1), by default 0.98, 0.92
        and 0.99.
    epsilon, epsilon_root : float
        >= 0, outside and inside the corrected root, by default 1e-8 both.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum", "drift", "velocity" and "previous_gradient" are float32 or
    float64 of one shape.

    The betas of the paper are one minus the betas here. The paper multiplies changes by 0.92, which is
    :math:`\beta_2` here; this class follows optax and multiplies them by :math:`1-\beta_2` = 0.08. The weight
    decay of the paper divides by :math:`1 + \eta\lambda`; `weight_decay` is that of optax.

    References
    ----------
    Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, 2022
    (arXiv:2208.06677), algorithm 1.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Adan(0.1)
    >>> optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.9, 2.1])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.98, low=0, below=1)
    beta_2: Number = number(default=0.92, low=0, below=1)
    beta_3: Number = number(default=0.99, low=0, below=1)
    epsilon: Number = number(default=1e-8, low=0)
    epsilon_root: Number = number(default=1e-8, low=0)

    slots: ClassVar[Sequence[str]] = ("momentum", "drift", "velocity", "previous_gradient")

    def rule(self) -> Any:
        return kernels.RULES["adan"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate, beta_1, beta_2, beta_3 = hyper.learning_rate, hyper.beta_1, hyper.beta_2, hyper.beta_3
        keep_1, take_1, keep_d, take_d = beta_1, 1 - beta_1, beta_2, 1 - beta_2
        keep_2, take_2, scale_root = beta_3, 1 - beta_3, unbiased_root(beta_3, t)
        scale_change, lookahead = float(t > 1), 1 - beta_2  # the first update has no previous gradient
        scale_m, scale_d = rate / (1 - beta_1**t), rate * (1 - beta_2) / (1 - beta_2**t)
        epsilon, epsilon_root = hyper.epsilon, hyper.epsilon_root * (1 - beta_3**t)  # before the correction
        return (
            *(keep_1, take_1, keep_d, take_d, keep_2, take_2, scale_change, lookahead),
            *(scale_m, scale_d, scale_root, epsilon, epsilon_root),
        )


class Adopt(Optimizer):
    r"""Adam that scales each gradient by past gradients alone, before it enters the momentum.

    Meaning and defaults are optax's, which has no default learning rate. Keras and PyTorch have no such
    optimizer. The first update only sets :math:`v \leftarrow g^2`; then, at :math:`t` = 2, 3, ...:

    .. math::

        m &\leftarrow \beta_1 m + (1-\beta_1) \operatorname{clip}\left(\frac{g}{\max(\sqrt{v}, \epsilon)},
            \pm (t-1)^p\right) \\
        w &\leftarrow w - \eta m, \qquad v \leftarrow \beta_2 v + (1-\beta_2) g^2

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.001.
    beta_1, beta_2 : float
        Decay of the moments, in [0, 1), by default 0.9 and 0.9999.
    epsilon : float
        :math:`\epsilon` > 0, the least divisor, by default 1e-6.
    clip_power : float, optional
        :math:`p` >= 0, by default 0.25; None does not clip.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "momentum" and "velocity" are float32 or float64 of one shape.

    References
    ----------
    Taniguchi et al., ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate, NeurIPS 2024
    (arXiv:2411.02853), algorithm 2, and the clipping of its authors' code.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.Adopt(0.1)
    >>> for _ in range(2):
    ...     optimizer.apply([[0.5, -0.25]], [w])
    >>> w.value.round(4)
    array([0.99, 2.01])
    """

    learning_rate: Number = number(default=0.001, low=0)
    beta_1: Number = number(default=0.9, low=0, below=1)
    beta_2: Number = number(default=0.9999, low=0, below=1)
    epsilon: Number = number(default=1e-6, above=0)
    clip_power: OptionalNumber = number(default=0.25, low=0, optional=True)

    slots: ClassVar[Sequence[str]] = ("momentum", "velocity")

    def rule(self) -> Any:
        return kernels.RULES["adopt"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate = hyper.learning_rate
        keep_1, take_1, keep_2, take_2 = hyper.beta_1, 1 - hyper.beta_1, hyper.beta_2, 1 - hyper.beta_2
        limit = inf if hyper.clip_power is None else (t - 1) ** hyper.clip_power
        if t == 1:  # set the second moment alone
            keep_1, take_1, keep_2, take_2, limit = 0.0, 0.0, 0.0, 1.0, 0.0
        return keep_1, take_1, keep_2, take_2, rate, hyper.epsilon, limit


class ScheduleFreeAdamW(Optimizer):
    r"""Adam that averages its weights instead of following a learning rate schedule.

    As in Keras. :math:`z` begins as a copy of the weights at the first gradient of a variable (in Keras: at
    `build`). :math:`x = (w - (1-\beta_1) z) / \beta_1` is the mean of all :math:`z` so far and is not stored. At
    update :math:`t` = 1, 2, ...:

    .. math::

        v &\leftarrow v + (1-\beta_2)(g^2 - v), \qquad
        z \leftarrow z - \eta_t g \Big/ \left(\sqrt{v / (1-\beta_2^t)} + \epsilon\right) \\
        x &\leftarrow (1 - 1/t) x + z / t, \qquad w \leftarrow (1-\beta_1) z + \beta_1 x

    Here :math:`\eta_t = \eta \min(t / T, 1)`, and :math:`T` is `warmup_steps`.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.0025.
    beta_1 : float
        Where the weights lie between :math:`z` (0) and :math:`x` (1), in [0, 1], by default 0.9.
    beta_2 : float
        Decay of the second moment, in [0, 1), by default 0.999.
    epsilon : float
        :math:`\epsilon` >= 0, outside the corrected root, by default 1e-8.
    warmup_steps : float
        :math:`T` >= 0, by default 0.
    **options
        Options of every optimizer, see `Optimizer`. `weight_decay` is None by default.

    Notes
    -----
    Variables, gradients and the slots "momentum" (:math:`z`) and "velocity" are float32 or float64 of one
    shape.

    Compute gradients at the weights. The paper evaluates a model at :math:`x`. In optax, the mean is weighted by
    the learning rate, and `eps` is also inside the root.

    References
    ----------
    Defazio et al., The Road Less Scheduled, 2024 (arXiv:2405.15682), algorithm 1, with equal weights.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = fv.optimizers.ScheduleFreeAdamW(0.1)
    >>> for _ in range(2):
    ...     optimizer.apply([[0.5, -0.5]], [w])
    >>> w.value.round(4)
    array([0.845, 2.155])
    """

    learning_rate: Number = number(default=0.0025, low=0)
    beta_1: Number = number(default=0.9, low=0, high=1)
    beta_2: Number = number(default=0.999, low=0, below=1)
    epsilon: Number = number(default=1e-8, low=0)
    warmup_steps: Number = number(default=0.0, low=0)

    slots: ClassVar[Sequence[str]] = ("momentum", "velocity")
    weight_copies: ClassVar[Sequence[str]] = ("momentum",)

    def rule(self) -> Any:
        return kernels.RULES["schedule_free"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        beta_1, beta_2 = hyper.beta_1, hyper.beta_2
        rate = hyper.learning_rate * (min(t / hyper.warmup_steps, 1.0) if hyper.warmup_steps else 1.0)
        keep_2, take_2, scale_root = beta_2, 1 - beta_2, unbiased_root(beta_2, t)
        keep, share_z, take = 1 - 1 / t, 1 - beta_1, 1 - beta_1 + beta_1 / t
        return keep_2, take_2, rate, scale_root, hyper.epsilon, keep, share_z, take
