"""Two small jobs that depend on what an optimizer keeps: an MLP on digits, and an embedding with a Zipf tail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import fastvar as fv
from tests.support.examples import mlp

BATCH = 64
TOKENS, WIDTH, CLASSES = 2000, 16, 32


class Digits:
    """A network of 64, 64 and 10 units on scikit-learn's digits. Each seed has its own split, start and order."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        (self._x, self._y), _ = mlp().digits(rng)
        self._net = mlp().MLP([64, 64], 10, rng)
        self._rows = self._batches(rng)
        self.variables: list[fv.Variable] = self._net.variables

    def _batches(self, rng: np.random.Generator) -> Iterator[Any]:
        while True:
            yield from mlp().batches(len(self._y), BATCH, rng)

    def gradients(self) -> list[Any]:
        """Return the gradients of the next batch."""
        rows = next(self._rows)
        self._net.loss(self._x[rows], self._y[rows])
        return [v.grad for v in self.variables]

    def loss(self) -> float:
        """Return the loss on all training data."""
        return float(self._net.loss(self._x, self._y))


class Zipf:
    """An embedding of 2,000 tokens, of which most are rare, that predicts one of 32 classes by a linear layer.

    A token has the probability 1 / rank, up to a factor. So half of the rows have a gradient in less than
    one of 100 batches, and zeros in the others. Frequent and rare tokens are mixed.
    """

    def __init__(self, seed: int) -> None:
        self._rng = rng = np.random.default_rng(seed)
        often = rng.permutation(1 / np.arange(1, TOKENS + 1))
        self._often = often / often.sum()
        self._bounds = np.cumsum(self._often)[:-1]
        logits = 2 * rng.normal(size=(TOKENS, WIDTH)) @ rng.normal(size=(WIDTH, CLASSES)) / np.sqrt(WIDTH)
        self._chances = _softmax(logits).astype(np.float32)
        self._table = fv.Variable(rng.normal(0, 0.1, (TOKENS, WIDTH)).astype(np.float32))
        self._kernel = fv.Variable(rng.normal(0, 0.25, (WIDTH, CLASSES)).astype(np.float32))
        self._bias = fv.Variable(np.zeros(CLASSES, np.float32))
        self.variables = [self._table, self._kernel, self._bias]

    def _predicted(self, tokens: Any) -> Any:
        return _softmax(self._table.value[tokens] @ self._kernel.value + self._bias.value)

    def gradients(self) -> list[Any]:
        """Return dense gradients: rows of tokens that are not in the batch are zeros."""
        tokens = np.searchsorted(self._bounds, self._rng.random(BATCH))
        errors = self._predicted(tokens)
        drawn = self._rng.random((BATCH, 1)) < np.cumsum(self._chances[tokens], 1)
        errors[np.arange(BATCH), drawn.argmax(1)] -= 1
        errors /= np.float32(BATCH)
        of_table = np.zeros_like(self._table.value)
        np.add.at(of_table, tokens, errors @ self._kernel.value.T)
        return [of_table, self._table.value[tokens].T @ errors, errors.sum(0)]

    def loss(self) -> float:
        """Return the expected cross-entropy above its least value."""
        predicted = self._predicted(np.arange(TOKENS)).astype(np.float64)
        return float(self._often @ (self._chances * np.log(self._chances / predicted)).sum(1))


def _softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
