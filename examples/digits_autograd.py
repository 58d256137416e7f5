"""Train on handwritten digits with gradients of autograd, first with autograd's own Adam, then with fastvar's.

python examples/digits_autograd.py [--epochs 20]
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import autograd.numpy as np
from autograd import grad
from autograd.misc.optimizers import adam
from mlp import batches, digits

import fastvar as fv

RATE, BATCH, SIZES = 2e-3, 32, (64, 128, 64, 10)


def start():
    """Return the weights of a network as arrays."""
    rng = np.random.RandomState(0)
    return [
        {"kernel": rng.normal(0, (2 / n) ** 0.5, (n, m)).astype("f4"), "bias": np.zeros(m, "f4")}
        for n, m in pairwise(SIZES)
    ]


def logits(net, x):
    for layer in net[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ net[-1]["kernel"] + net[-1]["bias"]


def loss(net, x, labels):
    """Return the mean cross-entropy."""
    z = logits(net, x)
    z = z - np.max(z, axis=1, keepdims=True)
    return np.mean(np.log(np.sum(np.exp(z), axis=1)) - z[np.arange(len(labels)), labels])


def with_autograd(net, steps):
    """Return the trained network, and the seconds of the training and of the optimizer in it."""
    in_gradients, gradient = 0.0, grad(loss)

    def timed(params, i):
        nonlocal in_gradients
        begin = time.perf_counter()
        found = gradient(params, *steps[i])
        in_gradients += time.perf_counter() - begin
        return found

    begin = time.perf_counter()
    net = adam(timed, net, num_iters=len(steps), step_size=RATE)
    seconds = time.perf_counter() - begin
    return net, seconds, seconds - in_gradients


def with_fastvar(net, steps):
    """Return the same."""
    net = [{name: fv.Variable(value) for name, value in layer.items()} for layer in net]
    optimizer = fv.optimizers.Adam(RATE)
    apply, in_optimizer = optimizer.apply, 0.0

    def timed(*args):
        nonlocal in_optimizer
        begin = time.perf_counter()
        apply(*args)
        in_optimizer += time.perf_counter() - begin

    optimizer.apply = timed  # `minimize` calls it
    begin = time.perf_counter()
    for x, labels in steps:
        optimizer.minimize(lambda p, x=x, labels=labels: loss(p, x, labels), net, gradients="autograd")
    seconds = time.perf_counter() - begin
    return [{name: v.value for name, v in layer.items()} for layer in net], seconds, in_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    rng = np.random.RandomState(0)
    (x, y), (held_out, labels) = digits(rng)
    steps = [(x[rows], y[rows]) for _ in range(epochs) for rows in batches(len(y), BATCH, rng)]
    for name, train in (("autograd's Adam", with_autograd), ("fastvar's Adam", with_fastvar)):
        net, seconds, in_optimizer = train(start(), steps)
        accuracy = np.mean(np.argmax(logits(net, held_out), axis=1) == labels)
        share = in_optimizer / seconds
        print(f"{name:16} held-out accuracy {accuracy:.2%}; {seconds:.2f} s, {share:.0%} of it in the optimizer")


if __name__ == "__main__":
    main()
