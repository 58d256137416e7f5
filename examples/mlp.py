"""A multilayer perceptron in NumPy: forward pass, backward pass and loss. The other examples use it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from sklearn.datasets import load_digits

import fastvar as fv


class Dense(fv.Module):
    """`x @ kernel + bias`, optionally followed by a ReLU."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator, relu: bool, l2: float = 0.0):
        scale = np.sqrt(2 / inputs)
        penalty = fv.regularizers.L2(l2) if l2 else None
        self.kernel = fv.Variable(rng.normal(0, scale, (inputs, outputs)).astype(np.float32), regularizer=penalty)
        self.bias = fv.Variable(np.zeros(outputs, np.float32))
        self.relu = relu

    def forward(self, x):
        self.x = x
        self.y = x @ self.kernel.value + self.bias.value
        if self.relu:
            np.maximum(self.y, 0, out=self.y)
        return self.y

    def backward(self, dy):
        """Set the gradients of kernel and bias, and return the gradient of the input."""
        if self.relu:
            dy = dy * (self.y > 0)
        self.kernel.grad = self.x.T @ dy
        self.bias.grad = dy.sum(axis=0)
        return dy @ self.kernel.value.T


class MLP(fv.Module):
    """A `body` of ReLU layers and a linear `head`."""

    def __init__(self, sizes: list[int], classes: int, rng: np.random.Generator, l2: float = 0.0):
        self.body = [Dense(n, m, rng, relu=True, l2=l2) for n, m in pairwise(sizes)]
        self.head = Dense(sizes[-1], classes, rng, relu=False, l2=l2)

    def forward(self, x):
        for layer in [*self.body, self.head]:
            x = layer.forward(x)
        return x

    def loss(self, x, labels) -> float:
        """Return the mean cross-entropy, and set the gradient of every variable."""
        logits = self.forward(x)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = float(-np.log(p[rows, labels] + 1e-12).mean())
        p[rows, labels] -= 1
        dy = p / np.float32(len(labels))
        for layer in [self.head, *reversed(self.body)]:
            dy = layer.backward(dy)
        return loss

    def accuracy(self, x, labels) -> float:
        return float((self.forward(x).argmax(axis=1) == labels).mean())


def digits(rng: np.random.Generator):
    """Return scikit-learn's 1,797 handwritten digits as (train x, train y), (held-out x, held-out y)."""
    x, y = load_digits(return_X_y=True)
    x, order = (x / 16).astype(np.float32), rng.permutation(len(y))
    train, held_out = order[:1437], order[1437:]
    return (x[train], y[train]), (x[held_out], y[held_out])


def batches(n: int, size: int, rng: np.random.Generator):
    """Yield the indices of an epoch's batches, shuffled."""
    order = rng.permutation(n)
    for start in range(0, n, size):
        yield order[start : start + size]
