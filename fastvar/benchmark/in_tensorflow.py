"""The same rules in TensorFlow: its fused kernels on variables, in one graph for all of them."""

from __future__ import annotations

from typing import Any

from fastvar.benchmark.cases import Case
from fastvar.benchmark.contest import Contender, Prepared, arrays

_SLOTS = {"sgd": 0, "momentum": 1, "adam": 2}


def _prepare(case: Case) -> Prepared:
    import tensorflow as tf

    weights, gradients = arrays(case)
    variables = [tf.Variable(w) for w in weights]
    slots = [[tf.Variable(0 * w) for w in weights] for _ in range(_SLOTS[case.algorithm.name])]
    given = [tf.constant(g) for g in gradients]
    powers = [tf.Variable(tf.constant(beta, case.dtype)) for beta in (0.9, 0.999)]
    number = {name: tf.constant(value, case.dtype) for name, value in (("lr", 0.001), ("momentum", 0.9))}

    def update(k: int) -> Any:
        var, grad, kept = variables[k].handle, given[k], [of[k].handle for of in slots]
        if case.algorithm.name == "sgd":
            return tf.raw_ops.ResourceApplyGradientDescent(var=var, alpha=number["lr"], delta=grad)
        if case.algorithm.name == "momentum":
            return tf.raw_ops.ResourceApplyKerasMomentum(var=var, accum=kept[0], grad=grad, **number)
        betas = {f"beta{i}": tf.constant(beta, case.dtype) for i, beta in ((1, 0.9), (2, 0.999))}
        betas |= {"beta1_power": powers[0], "beta2_power": powers[1], "epsilon": tf.constant(1e-8, case.dtype)}
        return tf.raw_ops.ResourceApplyAdam(var=var, m=kept[0], v=kept[1], grad=grad, lr=number["lr"], **betas)

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> None:
        for k in range(len(variables)):
            update(k)
        for power, beta in zip(powers, (0.9, 0.999), strict=True):
            power.assign(power * beta)

    return Prepared(step, lambda: [v.numpy() for v in variables])


CONTENDER = Contender("TensorFlow", "tensorflow", lambda case: case.algorithm.name in _SLOTS, _prepare)
