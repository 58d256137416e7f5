"""The sum of penalties beside Keras's `model.losses`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import fastvar as fv

# Keras reads its own variables in a way that NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Net(fv.Module):
    def __init__(self, model: Any) -> None:
        penalties = [None, fv.regularizers.L1(0.25), fv.regularizers.L2(0.5), fv.regularizers.L1L2(0.125, 0.0625)]
        self.layers = [
            {"kernel": fv.Variable(layer.kernel.numpy(), regularizer=p), "bias": fv.Variable(layer.bias.numpy())}
            for layer, p in zip(model.layers, penalties, strict=True)
        ]


def pair() -> tuple[Any, Net]:
    keras.utils.set_random_seed(0)
    theirs = [
        None,
        keras.regularizers.L1(0.25),
        keras.regularizers.L2(0.5),
        keras.regularizers.L1L2(0.125, 0.0625),
    ]
    model = keras.Sequential([keras.layers.Dense(5, kernel_regularizer=p) for p in theirs])
    model.build((2, 3))
    return model, Net(model)


def test_it_is_the_sum_of_keras_losses() -> None:
    model, net = pair()
    assert net.penalty() == pytest.approx(float(sum(model.losses)), rel=1e-6)
    assert fv.penalty(net) == fv.penalty(net.variables) == fv.penalty(net.layers) == net.penalty()
    model.layers[1].trainable = False
    net.layers[1]["kernel"].trainable = False
    assert net.penalty() == pytest.approx(float(sum(model.losses)), rel=1e-6)
    assert len(model.losses) == 2


def test_shared_variables_count_once_and_none_is_zero() -> None:
    w = fv.Variable(np.ones(3), regularizer=fv.regularizers.L2(1.0))
    assert fv.penalty({"a": w, "b": [w]}) == fv.penalty(w) == fv.penalty([w]) == 3
    assert fv.penalty([]) == fv.penalty([fv.Variable(1.0)]) == 0
    assert isinstance(fv.penalty([]), float)
    with pytest.raises(TypeError, match="penalty: variables must be a list, a dict, a module"):
        fv.penalty(3)


def test_its_gradient_is_what_optimizers_add() -> None:
    _, net = pair()
    before = {name: v.numpy() for name, v in net.named_variables().items()}
    zeros = [np.zeros(v.shape) for v in net.variables]
    fv.optimizers.SGD(1.0).apply(zeros, net.variables)
    added = {name: before[name] - v.value for name, v in net.named_variables().items()}
    for name, v in net.named_variables().items():
        v.assign(before[name])
    fv.check_gradients(lambda: (net.penalty(), [added[name] for name in net.named_variables()]), net.variables)
