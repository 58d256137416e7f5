"""Initializers beside Keras's: fans, moments, ranges and defaults; seeds, orthogonality, use in variables."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.initializers.random_initializers import compute_fans

import fastvar as fv
from fastvar import initializers
from fastvar.initializers import fans

# Keras reads its own variables in a way that NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPES = [(), (5,), (300, 200), (3, 40, 500), (2, 5, 60, 100), (0, 3)]
EXACT = ["Zeros", "Ones", "Constant", "Identity"]
SCALED = [
    "VarianceScaling",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "LecunNormal",
    "LecunUniform",
]
RANDOM = ["RandomNormal", "RandomUniform", "TruncatedNormal", "Orthogonal", *SCALED]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Constant": [{"value": 0.25}],
    "Identity": [{"gain": 3.0}],
    "RandomNormal": [{"mean": 1.0, "stddev": 0.5}],
    "TruncatedNormal": [{"mean": 1.0, "stddev": 0.5}],
    "RandomUniform": [{"minval": -1.0, "maxval": 3.0}],
    "Orthogonal": [{"gain": 2.0}],
    "VarianceScaling": [
        {"scale": 3.0, "mode": mode, "distribution": distribution}
        for mode in ("fan_in", "fan_out", "fan_avg")
        for distribution in ("truncated_normal", "untruncated_normal", "uniform")
    ],
}
CASES = [(name, options) for name in RANDOM for options in [{}, *OPTIONS.get(name, [])]]
every_random = pytest.mark.parametrize("name", RANDOM)


def ours(name: str, *values: Any, **options: Any) -> Any:
    return getattr(initializers, name)(*values, **options)


def theirs(name: str, shape: tuple[int, ...], **options: Any) -> Any:
    return np.asarray(getattr(keras.initializers, name)(**options)(shape, "float32"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fans_are_keras_fans(shape: tuple[int, ...]) -> None:
    assert fans(shape) == compute_fans(shape)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (4, 4)], ids=str)
def test_values_without_chance_are_keras_values(name: str, shape: tuple[int, ...]) -> None:
    for options in [{}, *OPTIONS.get(name, [])]:
        found = ours(name, **options)(shape)
        np.testing.assert_array_equal(found, theirs(name, shape, **options))
        assert found.dtype == np.float32


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_distributions_are_keras_distributions(name: str, options: dict[str, Any]) -> None:
    """60,000 values: the tolerances are some ten standard errors, and options change the moments by more."""
    shape = (300, 200)
    found, expected = ours(name, seed=1, **options)(shape), theirs(name, shape, seed=1, **options)
    spread = float(expected.std())
    assert found.mean() == pytest.approx(expected.mean(), abs=0.05 * spread)
    assert found.std() == pytest.approx(spread, rel=0.03)
    assert np.abs(found - found.mean()).max() == pytest.approx(np.abs(expected - expected.mean()).max(), rel=0.25)
    levels = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(found, levels), np.quantile(expected, levels), atol=0.05 * spread)


@every_random
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) > 1], ids=str)
def test_standard_deviations_of_other_shapes(name: str, shape: tuple[int, ...]) -> None:
    found, expected = ours(name, seed=2)(shape), theirs(name, shape, seed=2)
    assert found.shape == expected.shape == shape
    if found.size:
        assert found.std() == pytest.approx(expected.std(), rel=0.05)


@pytest.mark.parametrize("name", ["TruncatedNormal", "RandomUniform"])
def test_ranges(name: str) -> None:
    low, high = {"TruncatedNormal": (-1.0, 1.0), "RandomUniform": (2.0, 3.0)}[name]
    options = {"stddev": 0.5} if name == "TruncatedNormal" else {"minval": low, "maxval": high}
    values = ours(name, seed=3, **options)((100_000,), "float64")
    assert low <= values.min() < low + 0.01
    assert high - 0.01 < values.max() <= high


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (2, 3, 5), (2, 2, 9)], ids=str)
def test_orthogonal(shape: tuple[int, ...]) -> None:
    w = ours("Orthogonal", gain=2.0, seed=4)(shape, "float64").reshape(-1, shape[-1])
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(product, 4 * np.eye(min(w.shape)), atol=1e-12)


def test_orthogonal_matrices_are_equally_likely() -> None:
    rng = np.random.default_rng(5)
    diagonals = [np.diag(ours("Orthogonal", seed=rng)((2, 2))) for _ in range(2000)]
    assert np.abs(np.mean(diagonals, axis=0)).max() < 0.1  # without signs of R, they would be near -0.6


@every_random
def test_seeds(name: str) -> None:
    first, again, other = (ours(name, seed=seed) for seed in (7, 7, 8))
    shape = (30, 20)
    np.testing.assert_array_equal(first(shape), first(shape))
    np.testing.assert_array_equal(first(shape), again(shape))
    np.testing.assert_array_equal(first(shape), ours(name, seed=np.random.default_rng(7))(shape))
    np.testing.assert_array_equal(first(shape), first(shape, "float64").astype("float32"))
    assert not np.array_equal(first(shape), other(shape))
    drawing = ours(name, seed=np.random.default_rng(7))
    assert not np.array_equal(drawing(shape), drawing(shape))
    assert not np.array_equal(ours(name)(shape), ours(name)(shape))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first))(shape), first(shape))
    config = type(first).from_config(first.get_config())
    np.testing.assert_array_equal(config(shape), first(shape))


@pytest.mark.parametrize("name", [*EXACT, *RANDOM])
def test_arguments_and_defaults_are_keras_ones(name: str) -> None:
    own, of_keras = (inspect.signature(getattr(m, name)).parameters for m in (initializers, keras.initializers))
    axes = {"input_axes", "output_axes"}
    expected = {n: p.default for n, p in of_keras.items() if n not in axes and p.default is not p.empty}
    assert {n: p.default for n, p in own.items()} == expected
    assert [*own] == [*expected]


def test_a_variable_takes_an_initializer() -> None:
    init = initializers.HeNormal(seed=0)
    w = fv.Variable(init, shape=(4, 3), name="w")
    np.testing.assert_array_equal(w, init((4, 3)))
    assert w.dtype == np.float32
    assert fv.Variable(init, shape=5, dtype="float64").dtype == np.float64
    fv.optimizers.Adam().apply([np.ones((4, 3))], [w])
    assert initializers.Ones()(3).shape == (3,)
    assert initializers.Ones()((), "float64") == 1
    assert repr(initializers.RandomNormal(stddev=0.5, seed=3)) == "RandomNormal(mean=0.0, stddev=0.5, seed=3)"


def test_a_variable_says_what_an_initializer_needs() -> None:
    with pytest.raises(TypeError, match=r"^Variable 'w': shape is missing, which HeNormal\(seed=0\) needs$"):
        fv.Variable(initializers.HeNormal(seed=0), name="w")
    with pytest.raises(TypeError, match=r"^Variable: initial value is the class Zeros; write Zeros\(\.\.\.\)$"):
        fv.Variable(initializers.Zeros, shape=3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ours("HeNormal", seed="a"),
            TypeError,
            r"^HeNormal: seed must be a whole number, a numpy.random.Gen",
        ),
        (lambda: ours("HeNormal", seed=True), TypeError, r"^HeNormal: seed must be a whole number"),
        (lambda: ours("HeNormal", seed=-1), ValueError, r"^HeNormal: seed must be >= 0, got -1$"),
        (lambda: ours("HeNormal", scale=1.0), TypeError, r"^HeNormal: unknown argument 'scale'"),
        (lambda: ours("VarianceScaling", 0), ValueError, r"^VarianceScaling: scale must be > 0, got 0$"),
        (lambda: ours("VarianceScaling", mode="in"), ValueError, r"^VarianceScaling: mode must be 'fan_in' or"),
        (lambda: ours("RandomUniform", minval=1), ValueError, r"^RandomUniform: minval must be <= maxval, got 1"),
        (lambda: ours("RandomNormal", stddev=-1), ValueError, r"^RandomNormal: stddev must be >= 0"),
        (
            lambda: ours("Orthogonal")(3),
            ValueError,
            r"^Orthogonal: shape must have two dimensions or more, got \(3,\)",
        ),
        (
            lambda: ours("Identity")((1, 2, 3)),
            ValueError,
            r"^Identity: shape must have two dimensions, got \(1, 2, 3\)",
        ),
    ],
)
def test_bad_arguments_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
