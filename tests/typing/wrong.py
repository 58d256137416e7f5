"""Mistakes that type checkers must report. Each is on a line that ends with "wrong"."""

from __future__ import annotations

import numpy as np

import fastvar as fv


def variables(w: fv.Variable) -> None:
    fv.Variable([1.0], "w")  # wrong
    fv.Variable([1.0], regularizer=0.01)  # wrong
    w.trainable = "no"  # wrong
    w.trainible = False  # wrong
    w.shape = (3,)  # wrong
    w.assing(np.ones(3))  # wrong
    total: str = w + 1  # wrong
    mask: list[float] = w > 0  # wrong
    print(total, mask)


def optimizers(w: fv.Variable, adam: fv.optimizers.Adam) -> None:
    fv.optimizers.AdamOptimizer(0.1)  # wrong
    fv.optimizers.Adam("fast")  # wrong
    fv.optimizers.Adam(0.1, lr=0.1)  # wrong
    fv.optimizers.Adam(fv.schedules.CosineDecay)  # wrong
    fv.optimizers.Adam(lambda: 0.1)  # wrong
    fv.optimizers.Adam(nonfinite="ignored")  # wrong
    fv.optimizers.SGD(0.1, clipnorm="1")  # wrong
    fv.optimizers.LBFGS(clipnorm=1.0)  # wrong
    fv.optimizers.LossScaleOptimizer(0.1)  # wrong
    fv.torch.SGD([w], learning_rate=0.1)  # wrong
    fv.torch.Adam([w], betas=0.9)  # wrong
    fv.torch.Adam([w], clip_norm=1.0)  # wrong
    fv.schedules.CosineDecay(0.1, decay_steps="10")  # wrong
    fv.regularizers.L2(1e-5, 1e-5)  # wrong
    fv.initializers.GlorotNormal(scale=2.0)  # wrong
    fv.initializers.xavier_normal()  # wrong
    fv.torch.adam([w])  # wrong
    adam.learning_rate = None  # wrong
    adam.learning_rte = 0.1  # wrong
    adam.minimize(lambda: 1.0, [w])  # wrong
    adam.minimize(lambda p: 1.0, [w], gradients="tensorflow")  # wrong
    adam.build()  # wrong


def checkpoints(w: fv.Variable, net: fv.Module) -> None:
    net.encodr = w  # wrong
    fv.Checkpoint(w).save()  # wrong
    fv.Checkpoint(w).restore("a.h5", hyperparameters="mine")  # wrong
    fv.Saver([w]).save(None, "model")  # wrong
    fv.CheckpointManager(w, "folder")  # wrong
    manager = fv.CheckpointManager(fv.Checkpoint(w), "folder", mode="lowest")  # wrong
    manager.save(metrics={"loss": "low"})  # wrong
    fv.load_variable(manager.latest_checkpoint, "w")  # wrong
    fv.list_variable("a.h5")  # wrong
