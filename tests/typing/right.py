"""What type checkers must say about the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import fastvar as fv
from fastvar.optimizer.quantized import Quantized
from fastvar.tables import Table

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool]


def variables(w: fv.Variable, x: npt.NDArray[np.float32]) -> None:
    for operand in (1, 2.5, np.float32(1)):
        assert_type(w + operand, Array)
        assert_type(operand * w, Array)
    assert_type(w - x, Array)
    assert_type(w @ x, Array)
    assert_type(w / w, Array)
    assert_type(w**2, Array)
    assert_type(-w, Array)
    assert_type(abs(w), Array)
    assert_type(w < 1, Mask)
    assert_type(w == x, Mask)
    assert_type(w != x, Mask)
    assert_type(w[1:], Array)
    assert_type(w[..., None], Array)
    assert_type(w[0, 1:], Array)
    assert_type(w.value, Array)
    assert_type(w.numpy(), Array)
    assert_type(w.T, Array)
    assert_type(w.reshape(2, 2), Array)
    assert_type(w.astype(np.float64), Array)
    assert_type(np.asarray(w), Array)
    assert_type(w.shape, tuple[int, ...])
    assert_type(w.trainable, bool)
    assert_type(w.name, str | None)
    assert_type(w.assign(x), fv.Variable)
    w += 1
    w @= x
    assert_type(w, fv.Variable)
    w.trainable = False
    w.grad = x
    w.value += x


def optimizers(w: fv.Variable, x: npt.NDArray[np.float32]) -> None:
    adam = fv.optimizers.Adam(fv.schedules.CosineDecay(0.1, decay_steps=10), beta_1=lambda step: 0.9, clipnorm=1)
    assert_type(adam.learning_rate, float)
    assert_type(adam.clipnorm, float | None)
    assert_type(adam.schedules, dict[str, Callable[[int], float]])
    adam.learning_rate = fv.schedules.Warmup(0.1, warmup_steps=5)
    adam.learning_rate = np.float32(0.1)
    adam.clipnorm = None
    assert_type(adam.minimize(lambda: (2.5, [x]), [w]), float)
    adam.minimize(lambda tree: tree[0].sum(), [w], gradients="jax")
    assert_type(adam.iterations, int)
    slot = adam.slot(w, "momentum")
    assert_type(slot, fv.Variable | Quantized)
    assert_type(slot.value, Array)
    assert_type(slot * x, Array)
    slot.assign(x)
    assert_type(adam.memory(), Table)
    adam.slot_dtype = "8bit"
    fv.optimizers.Lion(slot_dtype="bfloat16", slot_dtype_min_size=0, seed=1)
    assert_type(adam.groups[0].variables, list[fv.Variable])
    assert_type(fv.optimizers.Adam.from_config(adam.get_config()), fv.optimizers.Adam)
    fv.optimizers.LossScaleOptimizer(adam).minimize(lambda: (1.0, [x]), [w])
    sgd = fv.torch.SGD([{"params": [w], "lr": 0.1}], 0.1, 0.9, nesterov=True, clipnorm=1.0)
    sgd.param_groups[0]["lr"] *= 0.5
    assert_type(fv.torch.AdamW([w], lr=1e-3, betas=(0.9, 0.99)).lr, float)
    any_of_them: list[fv.Optimizer] = [adam, sgd, fv.optimizers.LBFGS(5)]
    any_of_them[0].step(zero_grad=True)


def modules_and_checkpoints() -> None:
    class Net(fv.Module):
        def __init__(self) -> None:
            self.head = fv.Variable(np.zeros(3))
            self.body = [fv.Variable(np.zeros(3))]

    net = Net()
    assert_type(net.head, fv.Variable)
    assert_type(net.body, list[fv.Variable])
    assert_type(net.variables, list[fv.Variable])
    assert_type(net.named_variables(), dict[str, fv.Variable])
    checkpoint = fv.Checkpoint(net)
    path = checkpoint.save("model.h5", overwrite=True)
    assert_type(path, str)
    assert_type(checkpoint.restore(path, name_map={"head": None}), fv.checkpoint.Restored)
    assert_type(fv.Saver(net.variables).save("model", global_step=3), str)
    with fv.CheckpointManager(checkpoint, "folder", monitor="loss", mode="max") as manager:
        assert_type(manager, fv.CheckpointManager)
        assert_type(manager.save(3, metrics={"loss": np.float32(1)}), str | None)
        assert_type(manager.save(check_interval=False), str)
        assert_type(manager.latest_checkpoint, str | None)
        assert_type(manager.history().metrics, dict[str, Array])
    assert_type(path, str)
    assert_type(fv.list_variables(path), list[tuple[str, tuple[int, ...]]])
    assert_type(fv.load_variable(path, "head"), Array)
