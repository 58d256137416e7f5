"""Follow the regularised leader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fastvar import kernels
from fastvar.hyper import Number, Parameter, number
from fastvar.kernels import reference
from fastvar.optimizer import Optimizer
from fastvar.place import Place

_FTRL = kernels.RULES["ftrl"]
_ANY_POWER = reference.Rule(reference.ftrl_of_any_power, _FTRL.slots, (*_FTRL.scalars, "power"), whole=True)


class Ftrl(Optimizer):
    r"""Follow the regularised leader: weights that minimise the sum of all past linearised losses and penalties.

    As in Keras, with :math:`p` = -`learning_rate_power`:

    .. math::

        n' &= n + g^2, \qquad z \leftarrow z + g + 2 \lambda_s w - \frac{n'^p - n^p}{\eta} w,
            \qquad n \leftarrow n' \\
        w &\leftarrow \frac{\operatorname{clip}(z, \pm\lambda_1) - z}{(n^p + \beta) / \eta + 2 \lambda_2}

    Parameters
    ----------
    learning_rate : float or callable
        :math:`\eta` > 0, by default 0.001.
    learning_rate_power : float
        :math:`-p` <= 0, by default -0.5; 0 is a constant learning rate. The same for all groups.
    initial_accumulator_value : float
        Initial value of :math:`n`, >= 0, by default 0.1.
    l1_regularization_strength, l2_regularization_strength : float
        :math:`\lambda_1, \lambda_2` >= 0, by default 0.
    l2_shrinkage_regularization_strength : float
        :math:`\lambda_s` >= 0, an L2 penalty on the gradient but not on :math:`n`, by default 0.
    beta : float
        :math:`\beta` >= 0, by default 0.
    **options
        Options of every optimizer, see `Optimizer`.

    Notes
    -----
    Variables, gradients and the slots "accumulator" (:math:`n`) and "linear" (:math:`z`) are float32 or
    float64 of one shape. PyTorch and optax have no such optimizer. The first update forgets most of the initial
    weights: only their product with :math:`n'^p - n^p` enters. A falling learning rate moves the weights towards
    0, since :math:`z` was summed with the earlier rates.

    If the square of a gradient overflows, the weight becomes NaN, as in Keras; `nonfinite="skip"` skips such
    steps.

    The update is one compiled pass if `learning_rate_power` is -0.5, and is computed in NumPy otherwise.

    References
    ----------
    McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, algorithm 1.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable([0.0, 0.0])
    >>> optimizer = fv.optimizers.Ftrl(0.1, l1_regularization_strength=0.1)
    >>> optimizer.apply([[0.5, -0.05]], [w])
    >>> w.value.round(4)
    array([-0.0676,  0.    ])
    """

    learning_rate: Number = number(default=0.001, above=0)
    learning_rate_power: Number = number(default=-0.5, high=0, per_group=False)
    initial_accumulator_value: Number = number(default=0.1, low=0)
    l1_regularization_strength: Number = number(default=0.0, low=0)
    l2_regularization_strength: Number = number(default=0.0, low=0)
    l2_shrinkage_regularization_strength: Number = number(default=0.0, low=0)
    beta: Number = number(default=0.0, low=0)

    slots: ClassVar[Sequence[str]] = ("accumulator", "linear")
    exact_slots: ClassVar[Sequence[str]] = ("linear",)

    def _compiled(self) -> bool:
        return bool(self._parameters["learning_rate_power"] == -0.5)

    def _set(self, parameter: Parameter, value: Any) -> None:
        before = self._compiled()
        super()._set(parameter, value)
        if self._compiled() != before:
            self._forget_plan()  # the other rule

    def initial(self, slot: str, variable: Place, hyper: Any) -> Any:
        return hyper.initial_accumulator_value if slot == "accumulator" else 0

    def rule(self) -> Any:
        return _FTRL if self._compiled() else _ANY_POWER

    def scalars(self, hyper: Any, t: int) -> tuple[float, ...]:
        inverse_rate, limit = 1 / hyper.learning_rate, hyper.l1_regularization_strength
        curvature = hyper.beta * inverse_rate + 2 * hyper.l2_regularization_strength
        shrinkage = 2 * hyper.l2_shrinkage_regularization_strength
        if self._compiled():
            return inverse_rate, limit, curvature, shrinkage
        power = -hyper.learning_rate_power
        return inverse_rate, limit, curvature, shrinkage, power
