"""Keras on PyTorch: training with `fit`, and tensors of every kind."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import fastvar as fv
import fastvar.keras.optimizers as ours
from tests.support.keras_steps import (
    BACKEND,
    NAMES,
    SHAPES,
    STEPS,
    apply,
    as_array,
    assert_close,
    assert_same,
    everything,
    gradients,
    make,
    pair,
    values,
    variables,
)

if BACKEND == "torch":
    import torch

    from fastvar.keras.optimizers.on_torch import READER
    from fastvar.kernels.tensors import Places

pytestmark = [
    pytest.mark.skipif(BACKEND != "torch", reason="of the torch backend; test_backends.py runs it"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def trained(optimizer: Any, **options: Any) -> Any:
    """Return a model with weights in several orders in memory, after training."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((6, 8)),
            keras.layers.LSTM(5, return_sequences=True),
            keras.layers.Conv1D(4, 3, kernel_initializer="orthogonal"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, kernel_initializer="orthogonal", kernel_regularizer="l2"),
        ]
    )
    model.compile(optimizer=optimizer, loss="mse", **options)
    rng = np.random.default_rng(0)
    model.fit(
        rng.standard_normal((24, 6, 8)).astype("float32"),
        rng.standard_normal((24, 3)).astype("float32"),
        batch_size=8,
        epochs=3,
        verbose=0,
    )
    return model


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ScheduleFreeAdamW"])
def test_fit(name: str) -> None:
    options = {"learning_rate": 0.01, "use_ema": True, "clipnorm": 1.0}
    mine = trained(make(ours, name, **options))
    theirs = trained(make(keras.optimizers, name, **options))
    assert any(not v._value.is_contiguous() for v in mine.trainable_variables)
    for v, w in zip(mine.trainable_variables, theirs.trainable_variables, strict=True):
        np.testing.assert_allclose(as_array(v), as_array(w), atol=2e-3)
    if name == "Adafactor":  # which has slots of rows and columns
        assert mine.optimizer.keras_reason.endswith("belongs to a matrix that is transposed in memory")
    else:
        assert (mine.optimizer.kernel_steps, mine.optimizer.keras_steps) == (9, 0)


def test_fit_with_a_loss_scale() -> None:
    model = trained(ours.LossScaleOptimizer(ours.Adam(0.01), initial_scale=8.0, dynamic_growth_steps=2))
    assert (model.optimizer.inner_optimizer.kernel_steps, model.optimizer.inner_optimizer.keras_steps) == (9, 0)


def test_fit_in_mixed_precision() -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = trained(ours.Adam(0.01))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert (model.optimizer.kernel_steps, model.optimizer.keras_steps) == (9, 0)


@pytest.mark.skipif("ScheduleFreeAdamW" not in NAMES, reason="since Keras 3.14")
def test_schedule_free_follows_fastvars() -> None:
    """Keras's reads the new momentum as the old one on torch, where both are one tensor."""
    of = variables()
    mine = make(ours, "ScheduleFreeAdamW")
    mine.build(of)
    its = [fv.Variable(value.astype("float32"), name=name) for name, value in zip(SHAPES, values(), strict=True)]
    other = fv.optimizers.ScheduleFreeAdamW(0.0625)
    for t in range(STEPS):
        apply(mine, gradients(t), of)
        other.apply([g.numpy() for g in gradients(t)], its)
    for v, w in zip(of, its, strict=True):
        assert_close(v, keras.Variable(w.value), str(w.name))
    assert (mine.kernel_steps, mine.keras_steps) == (STEPS, 0)


@pytest.mark.parametrize(
    "kind", ["bfloat16", "float16", "float64", "requires_grad", "strided", "conjugate-free view"]
)
def test_gradients_of_every_kind(kind: str) -> None:
    change = {
        "bfloat16": lambda g: g.bfloat16(),
        "float16": lambda g: g.half(),
        "float64": lambda g: g.double(),
        "requires_grad": lambda g: g.clone().requires_grad_(),
        "strided": lambda g: torch.stack([g, g], -1)[..., 0],
        "conjugate-free view": lambda g: torch.complex(g, g).conj().real,
    }[kind]
    of, its = variables(), variables()
    mine, other = make(ours, "Adam"), make(ours, "Adam")
    mine.build(of)
    other.build(its)
    for t in range(3):
        grads = [change(g) for g in gradients(t)]
        apply(mine, grads, of)
        apply(other, [g.detach().float().clone() for g in grads], its)
    assert everything(mine, of) == everything(other, its)
    assert (mine.kernel_steps, mine.keras_steps) == (3, 0)


def test_weights_in_any_order_of_memory() -> None:
    mine, of, other, theirs = pair("Adam", use_ema=True)
    with torch.no_grad():
        for k in (0, 2, 4):
            turned = of[k]._value.data.permute(*range(of[k].ndim)[::-1]).contiguous()
            of[k]._value.data = turned.permute(*range(of[k].ndim)[::-1])
    assert not of[0]._value.is_contiguous()
    for t in range(4):
        given = [torch.empty_like(v._value).copy_(g).detach() for v, g in zip(of, gradients(t), strict=True)]
        apply(mine, given if t % 2 else gradients(t), of)
        apply(other, gradients(t), theirs)
        assert_same(mine, of, other, theirs, f"step {t}")
    assert (mine.kernel_steps, mine.keras_steps) == (4, 0)
    assert mine._momentums[0]._value.stride() == of[0]._value.stride()


def test_sparse_gradients_are_keras_s() -> None:
    mine, of, other, theirs = pair("SGD")
    for optimizer, its in ((mine, of), (other, theirs)):
        grads = gradients(0)
        apply(optimizer, [grads[0].to_sparse(), *grads[1:]], its)
    assert_same(mine, of, other, theirs, "sparse")
    assert (mine.kernel_steps, mine.keras_steps) == (0, 1)
    assert "a gradient must be a dense tensor on the CPU" in mine.keras_reason


def test_shared_memory_is_keras_s() -> None:
    of = variables()
    of[1]._value.data = of[0]._value.data[0]
    mine = make(ours, "SGD")
    mine.build(of)
    apply(mine, gradients(0), of)
    assert (mine.kernel_steps, mine.keras_steps) == (0, 1)
    assert "must not share memory" in mine.keras_reason


def test_autograd_notices_the_change() -> None:
    of = variables()
    mine = make(ours, "SGD")
    mine.build(of)
    loss = (of[0].value ** 2).sum()
    apply(mine, gradients(0), of)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_unknown_variables_are_keras_s_error() -> None:
    mine, of, *_ = pair("SGD")
    apply(mine, gradients(0), of)
    with pytest.raises(ValueError, match="Unknown variable"):
        mine.apply(gradients(1), [*of[:4], keras.Variable(np.ones((6, 6), np.float32))])
    apply(mine, gradients(1), of)
    assert mine.kernel_steps == 2


def changed(memory: str, tensor: Any) -> Any:
    """Return a tensor that differs from a (7, 5) one in where, or what, it is."""
    other = torch.ones(7, 5)
    other.copy_(tensor.detach())
    return {
        "elsewhere": lambda: other,
        "smaller": lambda: tensor.data[:5],
        "of another dtype": lambda: tensor.data.view(torch.int32),
    }[memory]()


@pytest.mark.parametrize("memory", ["elsewhere", "smaller", "of another dtype"])
def test_places_notice_a_change(memory: str) -> None:
    tensor = torch.ones(7, 5)
    places = Places(READER, [tensor])
    assert places.hold([tensor])
    assert not places.hold([])
    assert not places.hold([tensor.clone()])
    tensor.data = changed(memory, tensor)
    assert not places.hold([tensor])
    with pytest.raises(ValueError, match="must be given tensors that can be read"):
        Places(READER, [torch.ones(2, dtype=torch.int32)])


def test_only_gradients_that_lie_as_the_weights_are_read_as_records() -> None:
    weight = torch.ones(6, 6)
    (record,) = READER.records([torch.ones(6, 6, dtype=torch.float16)], [weight])
    assert (record["size"], record["writable"]) == (36, 1)
    for gradient in (
        None,
        weight,
        torch.ones(6, 6).T,
        torch.ones(36),
        torch.ones(6, 6, dtype=torch.int32),
        np.ones((6, 6)),
    ):
        assert READER.records([gradient], [weight]) is None
    assert READER.records([], [weight]) is None
