"""The same rules in optax: one compiled update that is given its arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastvar.benchmark.cases import Case
from fastvar.benchmark.contest import Contender, Prepared, arrays

_RULES: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda optax: optax.sgd(0.001),
    "momentum": lambda optax: optax.sgd(0.001, momentum=0.9),
    "adam": lambda optax: optax.adam(0.001),
    "lion": lambda optax: optax.lion(0.001, b1=0.9, b2=0.99, weight_decay=0),
    "adamw+clip+ema": lambda optax: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.001, weight_decay=0.004)
    ),
}


def _prepare(case: Case) -> Prepared:
    import jax
    import optax

    rule = _RULES[case.algorithm.name](optax)
    weights, gradients = ([jax.numpy.array(a) for a in given] for given in arrays(case))
    averages = [w.copy() for w in weights] if case.algorithm.clip_and_average else []

    def update(weights: Any, state: Any, averages: Any, gradients: Any) -> Any:
        changes, state = rule.update(gradients, state, weights)
        weights = optax.apply_updates(weights, changes)
        averages = [0.99 * a + 0.01 * w for a, w in zip(averages, weights, strict=False)]
        return weights, state, averages

    compiled = jax.jit(update, donate_argnums=(0, 1, 2))
    kept = [weights, rule.init(weights), averages]

    def step() -> None:
        kept[:] = jax.block_until_ready(compiled(*kept, gradients))

    return Prepared(step, lambda: [np.asarray(w) for w in kept[0]])


CONTENDER = Contender(
    "optax", "optax", lambda case: case.algorithm.name in _RULES and case.dtype == "float32", _prepare
)
