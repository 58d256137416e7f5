"""Initial values of variables, with Keras's names and meaning.

An initializer is called with a shape: `HeNormal(seed=0)((64, 10))`. A variable calls it:
`Variable(HeNormal(seed=0), shape=(64, 10))`.
"""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastvar.buffers import Array
from fastvar.formats import dtype_of
from fastvar.hyper import Fixed, Parameter, choice, number
from fastvar.names import public as _public

__all__ = [
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Identity",
    "Initializer",
    "LecunNormal",
    "LecunUniform",
    "Ones",
    "Orthogonal",
    "RandomNormal",
    "RandomUniform",
    "TruncatedNormal",
    "VarianceScaling",
    "Zeros",
]

Seed = int | np.random.Generator | None
CUT = 0.87962566103423978  # the standard deviation of a standard normal distribution cut off at -2 and 2


class Initializer(Fixed):
    """Base of initializers. A subclass defines `values(shape)`, which returns an array, or a number for all."""

    def values(self, shape: tuple[int, ...]) -> Any:
        """Return the values of an array of this shape, in double precision."""
        raise NotImplementedError

    def __call__(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike | None = None) -> Array:
        """Return a new array. Its dtype is float32 by default, as in Keras."""
        dims = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(shape)
        array = np.empty(dims, dtype_of(np.float32 if dtype is None else dtype))
        array[...] = self.values(dims)
        return array


class Zeros(Initializer):
    """All values are 0.

    Examples
    --------
    >>> import fastvar as fv
    >>> fv.initializers.Zeros()(2)
    array([0., 0.], dtype=float32)
    """

    def values(self, shape: tuple[int, ...]) -> Any:
        return 0


class Ones(Initializer):
    """All values are 1.

    Examples
    --------
    >>> import fastvar as fv
    >>> fv.initializers.Ones()(2, "float64")
    array([1., 1.])
    """

    def values(self, shape: tuple[int, ...]) -> Any:
        return 1


class Constant(Initializer):
    """All values are `value`.

    Examples
    --------
    >>> import fastvar as fv
    >>> fv.initializers.Constant(0.5)(2)
    array([0.5, 0.5], dtype=float32)
    """

    value: float = number(default=0.0)

    def values(self, shape: tuple[int, ...]) -> Any:
        return self.value


class Identity(Initializer):
    """`gain` on the diagonal of a matrix, 0 elsewhere.

    Examples
    --------
    >>> import fastvar as fv
    >>> fv.initializers.Identity(2.0)((2, 3))
    array([[2., 0., 0.],
           [0., 2., 0.]], dtype=float32)
    """

    gain: float = number(default=1.0)

    def values(self, shape: tuple[int, ...]) -> Any:
        if len(shape) != 2:
            raise ValueError(f"Identity: shape must have two dimensions, got {shape}")
        return self.gain * np.eye(*shape)


def _seed() -> Any:
    """Declare the seed of random values."""

    def check(value: Any) -> Seed:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not (whole or value is None or isinstance(value, np.random.Generator)):
            raise TypeError(f"must be a whole number, a numpy.random.Generator or None, got {value!r}")
        if whole and value < 0:
            raise ValueError(f"must be >= 0, got {value!r}")
        return int(value) if whole else value

    return Parameter(None, check, kw_only=False, per_group=False, numeric=False)


class Random(Initializer):
    """Base of random initializers. Each declares a `seed` as its last argument.

    It is a whole number, with which every call gives the same values; a `numpy.random.Generator`, which every
    call advances; or None, with which every call gives other values.
    """

    def values(self, shape: tuple[int, ...]) -> Any:
        return self.draw(np.random.default_rng(self._parameters["seed"]), shape)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        """Return random values."""
        raise NotImplementedError


def _truncated(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return standard normal values. Those beyond -2 and 2 are drawn again."""
    values = rng.standard_normal(math.prod(shape))
    while (beyond := np.flatnonzero(np.abs(values) > 2)).size:
        values[beyond] = rng.standard_normal(beyond.size)
    return values.reshape(shape)


class RandomNormal(Random):
    """Normal values with a mean and a standard deviation.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.initializers.RandomNormal(stddev=0.1, seed=0)((100, 100))
    >>> round(float(w.std()), 3)
    0.1
    """

    mean: float = number(default=0.0)
    stddev: float = number(default=0.05, low=0)
    seed: Seed = _seed()

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return rng.normal(self.mean, self.stddev, shape)


class TruncatedNormal(Random):
    """Normal values; those beyond two standard deviations from the mean are drawn again.

    Their standard deviation is therefore 0.88 `stddev`.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.initializers.TruncatedNormal(stddev=1.0, seed=0)((100, 100))
    >>> bool(abs(w).max() <= 2), round(float(w.std()), 2)
    (True, 0.88)
    """

    mean: float = number(default=0.0)
    stddev: float = number(default=0.05, low=0)
    seed: Seed = _seed()

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return self.mean + self.stddev * _truncated(rng, shape)


class RandomUniform(Random):
    """Values uniform in [`minval`, `maxval`).

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.initializers.RandomUniform(-1, 1, seed=0)((100, 100))
    >>> bool(-1 <= w.min() < -0.99), bool(0.99 < w.max() <= 1)
    (True, True)
    """

    minval: float = number(default=-0.05)
    maxval: float = number(default=0.05)
    seed: Seed = _seed()

    def _validate(self) -> None:
        if self.minval > self.maxval:
            raise ValueError(
                f"{type(self).__name__}: minval must be <= maxval, got {self.minval} and {self.maxval}"
            )

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return rng.uniform(self.minval, self.maxval, shape)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many inputs an output of a layer depends on, and how many outputs on an input.

    `shape` is that of its kernel: (inputs, outputs), for convolutions (..., inputs, outputs).
    """
    if len(shape) < 2:
        return (shape[0],) * 2 if shape else (1, 1)
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]


def scaled(rng: np.random.Generator, shape: tuple[int, ...], scale: float, mode: str, distribution: str) -> Any:
    """Return values of the variance `scale / n`; see `VarianceScaling`."""
    inputs, outputs = fans(shape)
    n = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2}[mode]
    stddev = math.sqrt(scale / max(1, n))
    if distribution == "truncated_normal":
        return stddev / CUT * _truncated(rng, shape)
    if distribution == "untruncated_normal":
        return rng.normal(0, stddev, shape)
    return rng.uniform(-math.sqrt(3) * stddev, math.sqrt(3) * stddev, shape)


class VarianceScaling(Random):
    """Values with mean 0 and a variance of `scale / n`, which keeps signals and gradients of one size over layers.

    Parameters
    ----------
    scale : float
        Above 0, by default 1.
    mode : {"fan_in", "fan_out", "fan_avg"}
        Whether n is the number of inputs (the default), that of outputs, or their mean; at least 1.
    distribution : {"truncated_normal", "untruncated_normal", "uniform"}
        Normal values cut off at two standard deviations (the default), normal, or uniform ones.
    seed : int, numpy.random.Generator or None
        With a whole number, every call gives the same values. A generator is advanced. None gives other values.

    Notes
    -----
    The number of inputs is the product of all axes of the shape but the last, and that of outputs of all but the
    last but one. A vector has its length for both.

    References
    ----------
    He et al., Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852, 2015.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.initializers.VarianceScaling(2.0, "fan_out", "uniform", seed=0)((300, 200))
    >>> round(float(w.std()), 3)  # the root of 2 / 200
    0.1
    """

    scale: float = number(default=1.0, above=0)
    mode: str = choice("fan_in", "fan_out", "fan_avg", default="fan_in")
    distribution: str = choice("truncated_normal", "untruncated_normal", "uniform", default="truncated_normal")
    seed: Seed = _seed()

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return scaled(rng, shape, self.scale, self.mode, self.distribution)


class Scaled(Random):
    """Base of the classes that are `VarianceScaling` with a scale, mode and distribution of their own."""

    scale: ClassVar[float]
    mode: ClassVar[str]
    distribution: ClassVar[str]
    seed: Seed = _seed()

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return scaled(rng, shape, self.scale, self.mode, self.distribution)


class GlorotNormal(Scaled):
    """Truncated normal values of variance 1 / n; n is the mean of the numbers of inputs and outputs.

    References
    ----------
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.Variable(fv.initializers.GlorotNormal(seed=0), shape=(150, 50))
    >>> round(float(w.std()), 2), w.dtype
    (0.1, dtype('float32'))
    """

    scale: ClassVar[float] = 1.0
    mode: ClassVar[str] = "fan_avg"
    distribution: ClassVar[str] = "truncated_normal"


class GlorotUniform(Scaled):
    """Uniform values of variance 1 / n; n is the mean of the numbers of inputs and outputs.

    References
    ----------
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010.

    Examples
    --------
    >>> import fastvar as fv
    >>> round(float(fv.initializers.GlorotUniform(seed=0)((150, 50)).std()), 2)
    0.1
    """

    scale: ClassVar[float] = 1.0
    mode: ClassVar[str] = "fan_avg"
    distribution: ClassVar[str] = "uniform"


class HeNormal(Scaled):
    """Truncated normal values of variance 2 / inputs, for layers that a ReLU follows.

    References
    ----------
    He et al., Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852, 2015.

    Examples
    --------
    >>> import fastvar as fv
    >>> round(float(fv.initializers.HeNormal(seed=0)((200, 50)).std()), 2)
    0.1
    """

    scale: ClassVar[float] = 2.0
    mode: ClassVar[str] = "fan_in"
    distribution: ClassVar[str] = "truncated_normal"


class HeUniform(Scaled):
    """Uniform values of variance 2 / inputs, for layers that a ReLU follows.

    References
    ----------
    He et al., Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852, 2015.

    Examples
    --------
    >>> import fastvar as fv
    >>> round(float(fv.initializers.HeUniform(seed=0)((200, 50)).std()), 2)
    0.1
    """

    scale: ClassVar[float] = 2.0
    mode: ClassVar[str] = "fan_in"
    distribution: ClassVar[str] = "uniform"


class LecunNormal(Scaled):
    """Truncated normal values of variance 1 / inputs.

    References
    ----------
    LeCun et al., Efficient BackProp, in Neural Networks: Tricks of the Trade, 1998.

    Examples
    --------
    >>> import fastvar as fv
    >>> round(float(fv.initializers.LecunNormal(seed=0)((100, 50)).std()), 2)
    0.1
    """

    scale: ClassVar[float] = 1.0
    mode: ClassVar[str] = "fan_in"
    distribution: ClassVar[str] = "truncated_normal"


class LecunUniform(Scaled):
    """Uniform values of variance 1 / inputs.

    References
    ----------
    LeCun et al., Efficient BackProp, in Neural Networks: Tricks of the Trade, 1998.

    Examples
    --------
    >>> import fastvar as fv
    >>> round(float(fv.initializers.LecunUniform(seed=0)((100, 50)).std()), 2)
    0.1
    """

    scale: ClassVar[float] = 1.0
    mode: ClassVar[str] = "fan_in"
    distribution: ClassVar[str] = "uniform"


class Orthogonal(Random):
    """`gain` times a random matrix with orthonormal rows or columns, whichever are fewer.

    All axes but the last make the rows. All such matrices are equally likely.

    References
    ----------
    Saxe et al., Exact solutions to the nonlinear dynamics of learning in deep linear neural networks,
    https://arxiv.org/abs/1312.6120, 2013. Mezzadri, How to generate random matrices from the classical compact
    groups, Notices of the AMS 54, 2007.

    Examples
    --------
    >>> import fastvar as fv
    >>> w = fv.initializers.Orthogonal(seed=0)((5, 2), "float64")
    >>> abs(w.T @ w).round(6)
    array([[1., 0.],
           [0., 1.]])
    """

    gain: float = number(default=1.0)
    seed: Seed = _seed()

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        if len(shape) < 2:
            raise ValueError(f"Orthogonal: shape must have two dimensions or more, got {shape}")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.where(np.diag(r) < 0, -1, 1)  # without this, QR prefers some matrices
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name
    __getattr__, __dir__ = _public("fastvar.initializers", __all__)
