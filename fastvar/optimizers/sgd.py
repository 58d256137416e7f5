"""Gradient descent, with and without momentum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastvar import kernels
from fastvar.hyper import flag, number
from fastvar.optimizer import Optimizer


class SGD(Optimizer):
    r"""Gradient descent, optionally with (Nesterov) momentum.

    Without momentum, :math:`w \leftarrow w - \eta g`. With momentum :math:`\mu`, as in Keras, where the
    learning rate is inside the momentum (it matters when it changes; PyTorch has it outside):

    .. math:: m \leftarrow \mu m - \eta g, \qquad w \leftarrow w + m

    and with `nesterov`, :math:`w \leftarrow w + \mu m - \eta g` with the new :math:`m`.

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` >= 0, by default 0.01 (PyTorch: 0.001).
    momentum : float
        :math:`\mu` in [0, 1]; 0 keeps no state.
    nesterov : bool
        Whether to look ahead.
    **options
        Those of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slot "momentum" are float32 or float64 of one shape. The momentum is set to
    0 where its magnitude falls below 1024 times the smallest normal number.

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

    learning_rate: float = number(default=0.01, low=0)
    momentum: float = number(default=0.0, low=0, high=1)
    nesterov: bool = flag(default=False)

    def _has_momentum(self) -> bool:
        return self.momentum != 0 or any(group.momentum != 0 for group in self.groups)

    @property
    def slots(self) -> Sequence[str]:  # type: ignore[override]
        return ("momentum",) if self._has_momentum() else ()

    def rule(self) -> Any:
        return kernels.RULES["momentum" if self._has_momentum() else "gradient_descent"]

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        rate, mu = hyper.learning_rate, hyper.momentum
        if not hyper.slots:
            return (rate,)
        return (mu, -rate, mu, -rate) if hyper.nesterov else (mu, -rate, 1.0, 0.0)
