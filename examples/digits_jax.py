"""Train on handwritten digits with gradients of JAX, first with optax's Adam, then with fastvar's.

python examples/digits_jax.py [--epochs 20]
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mlp import batches, digits

import fastvar as fv

RATE, BATCH, SIZES = 2e-3, 32, (64, 128, 64, 10)


def start():
    """Return the weights of a network as NumPy's arrays."""
    rng = np.random.default_rng(0)
    return [
        {"kernel": rng.normal(0, (2 / n) ** 0.5, (n, m)).astype("f4"), "bias": np.zeros(m, "f4")}
        for n, m in pairwise(SIZES)
    ]


def logits(net, x):
    for layer in net[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ net[-1]["kernel"] + net[-1]["bias"]


@jax.jit
def loss(net, x, labels):
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(net, x), labels).mean()


gradient = jax.jit(jax.value_and_grad(loss))
OPTAX = optax.adam(RATE)


@jax.jit
def update(grads, state, net):
    """Return the network and the state of optax after a step."""
    updates, state = OPTAX.update(grads, state)
    return optax.apply_updates(net, updates), state


class Timed:
    """A function that adds up the seconds of its calls."""

    def __init__(self, function) -> None:
        self.seconds, self.function = 0.0, function

    def __call__(self, *args):
        begin = time.perf_counter()
        found = jax.block_until_ready(self.function(*args))
        self.seconds += time.perf_counter() - begin
        return found


def with_optax(net, steps):
    """Return the trained network, and the seconds of the training and of the optimizer in it."""
    net, step = jax.tree.map(jnp.array, net), Timed(update)
    state = OPTAX.init(net)
    begin = time.perf_counter()
    for x, labels in steps:
        _, grads = jax.block_until_ready(gradient(net, x, labels))
        net, state = step(grads, state, net)
    return net, time.perf_counter() - begin, step.seconds


def with_fastvar(net, steps):
    """Return the same. As `loss` is compiled, `minimize` compiles its gradients, once."""
    net = [{name: fv.Variable(value) for name, value in layer.items()} for layer in net]
    optimizer = fv.optimizers.Adam(RATE)
    optimizer.apply = Timed(optimizer.apply)  # `minimize` calls it
    begin = time.perf_counter()
    for x, labels in steps:
        optimizer.minimize(partial(loss, x=x, labels=labels), net, gradients="jax")
    seconds = time.perf_counter() - begin
    return [{name: v.value for name, v in layer.items()} for layer in net], seconds, optimizer.apply.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    rng = np.random.default_rng(0)
    (x, y), (held_out, labels) = digits(rng)
    steps = [(x[rows], y[rows]) for _ in range(epochs) for rows in batches(len(y), BATCH, rng)]
    for name, train in (("optax's Adam", with_optax), ("fastvar's Adam", with_fastvar)):
        train(start(), steps[:1] + steps[-1:])  # compiles, for both sizes of batches
        net, seconds, in_optimizer = train(start(), steps)
        accuracy = np.mean(np.argmax(logits(net, held_out), axis=1) == labels)
        share = in_optimizer / seconds
        print(f"{name:14} held-out accuracy {accuracy:.2%}; {seconds:.2f} s, {share:.0%} of it in the optimizer")


if __name__ == "__main__":
    main()
