"""Errors of Adam's updates with slots in 16 and 8 bits: `python -m bench.formats_error`.

Adam in float32 trains a network on digits. At each step all others get the same gradients and start from the same
weights, so that only their slots differ. The errors are of the two matrices of 8,192 elements, with default
options, under which all libraries store these in 8 bits. bitsandbytes and torchao take part if they are installed.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

import fastvar as fv
from fastvar.formats import GROUP
from fastvar.kernels.numpy_formats import MOST_UNSIGNED
from tests.support.examples import mlp
from tests.support.nearest import nearest_rounding

STEPS, BATCH, RATE, EVERY = 1500, 64, 1e-3, 100
ADAM = {"beta_2": 0.999, "epsilon": 1e-8}
Arrays = list[np.ndarray[Any, Any]]
Shapes = Sequence[tuple[int, ...]]
LEAST = 0.125 / float(MOST_UNSIGNED)  # the number of the first code of a group in 8 bits, if that of the last is 1
SHAPES: Shapes = ((64, 128), (128, 64))  # of the matrices whose slots are compared


class Follower(Protocol):
    """Something that keeps Adam's moments."""

    def update(self, gradients: Arrays) -> Arrays:
        """Return the change of weights of 0."""

    def squares(self) -> Arrays:
        """Return the second moments, decoded."""


class Ours:
    """Adam of fastvar."""

    def __init__(self, slot_dtype: Any = None, nearest: bool = False, shapes: Shapes = SHAPES) -> None:
        self._variables = [fv.Variable(np.zeros(shape, np.float32)) for shape in shapes]
        self._optimizer = fv.optimizers.Adam(RATE, slot_dtype=slot_dtype, slot_dtype_min_size=0, **ADAM)
        self._rounding = nearest_rounding if nearest else nullcontext

    def update(self, gradients: Arrays) -> Arrays:
        for v in self._variables:
            v.assign(np.zeros(v.shape))
        with self._rounding():
            self._optimizer.apply(gradients, self._variables)
        return [v.numpy() for v in self._variables]

    def squares(self) -> Arrays:
        return [self._optimizer.slot(v, "velocity").numpy() for v in self._variables]


class Raised(Ours):
    """Adam in float32, whose second moments are raised to the least code in 8 bits of their group."""

    def update(self, gradients: Arrays) -> Arrays:
        changes = super().update(gradients)
        for v in self._variables:
            slot = self._optimizer.slot(v, "velocity")
            groups = slot.numpy().reshape(-1, GROUP)
            raised = np.maximum(groups, LEAST * groups.max(1, keepdims=True))
            slot.assign(np.where(groups > 0, raised, 0).reshape(v.shape))
        return changes


class Theirs:
    """An 8-bit Adam of another library, on tensors; `decoded` reads a second moment from the state of a tensor."""

    def __init__(self, kind: Any, decoded: Callable[[Any], Any]) -> None:
        import torch

        self._torch = torch
        self._tensors = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
        self._optimizer = kind(self._tensors, lr=RATE, betas=(0.9, ADAM["beta_2"]), eps=ADAM["epsilon"])
        self._decoded = decoded

    def update(self, gradients: Arrays) -> Arrays:
        for tensor, gradient in zip(self._tensors, gradients, strict=True):
            tensor.data.zero_()
            tensor.grad = self._torch.from_numpy(gradient.copy())
        self._optimizer.step()
        return [tensor.detach().numpy().copy() for tensor in self._tensors]

    def squares(self) -> Arrays:
        return [self._decoded(self._optimizer.state[tensor]).float().numpy() for tensor in self._tensors]


def bitsandbytes() -> Theirs:
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.optim import Adam8bit

    def decoded(state: Any) -> Any:
        return dequantize_blockwise(state["state2"], absmax=state["absmax2"], code=state["qmap2"], blocksize=256)

    return Theirs(Adam8bit, decoded)


def torchao() -> Theirs:
    from torchao.optim import Adam8bit

    return Theirs(Adam8bit, lambda state: state["exp_avg_sq"].dequantize())


OTHERS = {"bitsandbytes": bitsandbytes, "torchao": torchao}


class Errors:
    """The errors of a follower, summed over steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []  # the relative error of each update, in the Euclidean norm
        self.biases: list[tuple[float, float]] = []  # the means of log2(v / v in float32), see `biases`
        self.zeros = 0.0  # the part of v that is 0 at the end, though not in float32
        self._squares = np.zeros(2)

    def add(self, update: Any, right: Any) -> None:
        squares = np.array([np.sum((update - right) ** 2), np.sum(right**2)])
        self.steps.append(float(np.sqrt(squares[0] / squares[1])))
        self._squares += squares

    @property
    def whole(self) -> float:
        """The relative error of all updates together."""
        return float(np.sqrt(self._squares[0] / self._squares[1]))


def digits(steps: int) -> Iterator[Arrays]:
    """Train a network by Adam in float32, and yield the gradients of its matrices."""
    rng = np.random.default_rng(0)
    (x, y), _ = mlp().digits(rng)
    net = mlp().MLP([64, 128, 64], 10, rng)
    adam = fv.optimizers.Adam(RATE, **ADAM)
    batches = (rows for _ in range(steps) for rows in mlp().batches(len(y), BATCH, rng))
    for rows in islice(batches, steps):
        net.loss(x[rows], y[rows])
        yield [v.grad for v in net.variables if v.shape in SHAPES]
        adam.apply([v.grad for v in net.variables], net.variables)


def errors_of(followers: Sequence[Follower], stream: Iterable[Arrays], shapes: Shapes = SHAPES) -> list[Errors]:
    """Return the errors of each follower on a stream of gradients."""
    exact = Ours(shapes=shapes)
    found = [Errors() for _ in followers]
    for step, gradients in enumerate(stream, 1):
        right = _joined(exact.update(gradients))
        for follower, errors in zip(followers, found, strict=True):
            errors.add(_joined(follower.update(gradients)), right)
            if step % EVERY == 0:
                errors.biases.append(biases(follower, exact))
    for follower, errors in zip(followers, found, strict=True):
        v, right = _joined(follower.squares()), _joined(exact.squares())
        errors.zeros = float((v[right > 0] <= 0).mean())
    return found


def biases(follower: Follower, exact: Follower) -> tuple[float, float]:
    """Return the means of log2(v / v in float32) of all v, and of those that 8 bits can resolve.

    These are at least 1e-5 of the largest of their group, which has 256 elements in all libraries.
    """
    v, right = _joined(follower.squares()), _joined(exact.squares())
    largest = np.repeat(right.reshape(-1, GROUP).max(1), GROUP)
    positive = (v > 0) & (right > 0)
    logs = np.log2(v, where=positive, out=np.zeros_like(v)) - np.log2(right, where=positive, out=np.zeros_like(v))
    return float(logs[positive].mean()), float(logs[positive & (right >= 1e-5 * largest)].mean())


def _joined(arrays: Arrays) -> Any:
    return np.concatenate([array.ravel() for array in arrays]).astype(np.float64)


def main() -> None:
    warnings.simplefilter("ignore")  # of the other libraries
    fv.set_num_threads(1)
    console = Console(width=120)
    followers: dict[str, Follower] = {
        f"fastvar {kind}{', to nearest' * nearest}": Ours(kind, nearest)
        for nearest in (False, True)
        for kind in ("bfloat16", "8bit")
    }
    followers["fastvar float32, raised"] = Raised()
    for name, make in OTHERS.items():
        if importlib.util.find_spec(name):
            followers[f"{name} 8 bits"] = make()
        else:
            console.print(f"{name}: absent")
    table = Table("slots", "error", "mean of steps", "largest step", "bias of log2 v", "resolved", "v became 0")
    for name, errors in zip(followers, errors_of(list(followers.values()), digits(STEPS)), strict=True):
        steps = f"{errors.whole:.3f}", f"{np.mean(errors.steps):.3f}", f"{max(errors.steps):.3f}"
        largest = [f"{max(of, key=abs):+.3f}" for of in zip(*errors.biases, strict=True)]
        table.add_row(name, *steps, *largest, f"{errors.zeros:.2%}")
    console.print(table)


if __name__ == "__main__":
    main()
