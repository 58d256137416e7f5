"""constraints.Box beside numpy.clip, SciPy with bounds, and Keras and PyTorch with a clip after each step."""

from __future__ import annotations

import json
import pickle
from typing import Any

import keras
import numpy as np
import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der

import fastvar as fv
from fastvar.constraints import Box
from tests.support.cases import assert_same_bits

# Keras reads its own variables in a way that NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (3, 700)
STEPS = 6
LOW = np.linspace(-0.5, 0.1, 700)
BOXES = {
    "numbers": (-0.1, 0.2),
    "lower": (-0.1, np.inf),
    "upper": (-np.inf, 0.2),
    "arrays": (LOW, LOW + 0.3),
    "array and number": (LOW, 0.3),
    "column": (np.array([[-0.1], [0.0], [-np.inf]]), [[0.1], [0.0], [np.inf]]),
    "a point": (0.1, 0.1),
}
every_box = pytest.mark.parametrize("bounds", BOXES.values(), ids=BOXES)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def numbers(dtype: str, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(dtype)


def clipped(w: Any, bounds: Any) -> Any:
    return np.clip(w, *(np.asarray(side, w.dtype) for side in bounds))


@every_box
@every_dtype
def test_it_clips_as_numpy_does(bounds: Any, dtype: str) -> None:
    w = numbers(dtype)
    w[0, :3] = np.nan, np.inf, -np.inf
    before = w.copy()
    found = Box(*bounds)(w)
    np.testing.assert_array_equal(found, clipped(w, bounds))
    assert found.dtype == w.dtype
    assert_same_bits(w, before)


@every_box
@every_dtype
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"use_ema": True}], ids=str)
def test_a_step_is_the_step_without_it_and_a_clip(bounds: Any, dtype: str, options: Any) -> None:
    w, plain = fv.Variable(numbers(dtype), constraint=Box(*bounds)), fv.Variable(numbers(dtype))
    ours, twin = (fv.optimizers.Adam(0.1, **options) for _ in range(2))
    for t in range(STEPS):
        gradient = numbers(dtype, t + 1)
        ours.apply([gradient], [w])
        twin.apply([gradient], [plain])
        plain[...] = clipped(plain.value, bounds)
        assert_same_bits(w.value, plain.value)


def test_numbers_and_arrays_give_the_same_bits() -> None:
    for name in ("SGD", "Adam", "Lamb", "Ftrl", "Muon"):
        w, other = fv.Variable(numbers("float32")), fv.Variable(numbers("float32"))
        w.constraint, other.constraint = Box(-0.1, 0.0), Box(np.full(SHAPE, -0.1), np.zeros(SHAPE))
        for v in (w, other):
            optimizer = getattr(fv.optimizers, name)(0.01)
            for t in range(STEPS):
                optimizer.apply([numbers("float32", t)], [v])
        assert_same_bits(w.value, other.value)


@every_box
def test_it_follows_keras_and_torch_with_a_clip(bounds: Any) -> None:
    ours = [fv.Variable(numbers("float32"), constraint=Box(*bounds)) for _ in range(2)]
    theirs, tensor = keras.Variable(numbers("float32")), torch.tensor(numbers("float32"), requires_grad=True)
    optimizers = [fv.optimizers.Adam(0.05), fv.torch.Adam([ours[1]], lr=0.05)]
    of_keras, of_torch = keras.optimizers.Adam(0.05), torch.optim.Adam([tensor], lr=0.05)
    for t in range(STEPS):
        gradient = numbers("float32", t + 1)
        optimizers[0].apply([gradient], [ours[0]])
        ours[1].grad = gradient
        optimizers[1].step()
        of_keras.apply([gradient], [theirs])
        theirs.assign(clipped(theirs.numpy(), bounds))
        tensor.grad = torch.tensor(gradient)
        of_torch.step()
        with torch.no_grad():
            tensor[...] = torch.tensor(clipped(tensor.detach().numpy(), bounds))
    np.testing.assert_allclose(ours[0], theirs.numpy(), atol=2e-5)  # as in test_keras.py
    np.testing.assert_allclose(ours[1], tensor.detach().numpy(), atol=1e-6)


def test_rows_of_a_sparse_gradient_are_clipped() -> None:
    table = fv.Variable(np.zeros((5, 2)), constraint=Box(-0.5, 0.25))
    rows = fv.IndexedSlices(values=[[-1.0, 1.0], [0.1, -0.1]], indices=[3, 0])
    fv.optimizers.SGD(1.0).apply([rows], [table])
    np.testing.assert_array_equal(table, [[-0.1, 0.1], [0, 0], [0, 0], [0.25, -0.5], [0, 0]])


@pytest.mark.parametrize(
    "bounds", [(-0.5, 0.5), ([-0.5, -np.inf, 1.5], np.inf), ([0.25, 0.25, 0.25], [0.5, 0.25, np.inf])], ids=str
)
def test_lbfgs_is_scipys_with_bounds_to_the_last_bit(bounds: Any) -> None:
    start = np.array([-1.2, 1.0, 0.7])
    w = fv.Variable(start, constraint=Box(*bounds))
    loss = fv.optimizers.LBFGS(history_size=5).minimize(lambda: (rosen(w.value), [rosen_der(w.value)]), [w])
    pairs = [*zip(*np.broadcast_arrays(*bounds, start)[:2], strict=True)]
    options = {"maxiter": 20, "maxfun": 25, "maxcor": 5, "gtol": 1e-7, "ftol": 1e-9}
    expected = minimize(rosen, start, jac=rosen_der, method="L-BFGS-B", bounds=pairs, options=options)
    np.testing.assert_array_equal(w, expected.x)
    assert loss == expected.fun


def test_lbfgs_bounds_several_variables_and_stays_within_the_bounds_of_float32() -> None:
    seen: list[Any] = []
    box = Box([0.1, -0.7], [0.3, 0.1])
    given = [fv.Variable(np.ones(2, np.float32), constraint=box), fv.Variable(2.0), fv.Variable(3.0)]
    given[2].constraint = fv.constraints.NonNeg()

    def loss() -> Any:
        seen.append(given[0].numpy())
        return float(sum((v.value + 5.0).sum() ** 2 for v in given)), [
            2 * (v.sum() + 5 * v.size) + 0 * v for v in given
        ]

    fv.optimizers.LBFGS().minimize(loss, given)
    np.testing.assert_array_equal(given[0], np.float32([0.1, -0.7]))
    np.testing.assert_allclose([given[1].value, given[2].value], [-5, 0], atol=1e-6)
    for values in seen:
        np.testing.assert_array_equal(values, box(values))


def test_it_is_described_and_made_again() -> None:
    for bounds in BOXES.values():
        box = Box(*bounds)
        again = [Box.from_config(json.loads(json.dumps(box.get_config()))), pickle.loads(pickle.dumps(box))]
        for twin in again:
            assert_same_bits(twin(numbers("float64")), box(numbers("float64")))
    assert repr(Box(-1, 2)) == "Box(low=-1.0, high=2.0)"
    assert repr(Box(high=[1, 2])) == "Box(low=-inf, high=array([1., 2.]))"


def test_it_keeps_its_bounds() -> None:
    given = np.zeros(2)
    box = Box(given)
    given[0] = 5
    np.testing.assert_array_equal(box(np.array([-1.0, -1.0])), [0, 0])
    with pytest.raises(AttributeError, match="Box: low is fixed"):
        box.low = 3.0
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(box.low)[0] = 1


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((2, 1), ValueError, r"^Box: low must be <= high, got 2 and 1$"),
        (([0, 2], [1, 1]), ValueError, r"^Box: low must be <= high, got 2 and 1 at \[1\]$"),
        ((np.nan, 1), ValueError, r"^Box: low must not be NaN, got nan$"),
        ((0, [1, np.nan]), ValueError, r"^Box: high must not be NaN"),
        (
            (np.inf, np.inf),
            ValueError,
            r"^Box: low must be <= 1.79769e\+308 and high >= -1.79769e\+308 for float64$",
        ),
        (([0, 0], [1, 1, 1]), ValueError, r"^Box: low and high: shape mismatch"),
        (("a", 1), TypeError, r"^Box: low must be a real number or an array of them, got 'a'$"),
        ((None, 1), TypeError, r"^Box: low must be a real number"),
        ((0, True), TypeError, r"^Box: high must be a real number"),
        ((0, 1j), TypeError, r"^Box: high must be a real number"),
    ],
)
def test_bad_bounds_are_refused(bounds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Box(*bounds)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            Box([0, 0]),
            r"constraint of .*'w'.*: Box: bounds must broadcast to \(3,\), got the shapes \(2,\) and \(\)",
        ),
        (
            Box(np.zeros((2, 3))),
            r"constraint of .*'w'.*must broadcast to \(3,\), got the shapes \(2, 3\) and \(\)",
        ),
        (
            Box(1e300),
            r"constraint of .*'w'.*: Box: low must be <= 3.40282e\+38 and high >= -3.40282e\+38 for float32",
        ),
        (Box(high=-1e300), r"constraint of .* for float32"),
    ],
)
def test_bounds_that_do_not_fit_a_variable_are_refused(box: Box, message: str) -> None:
    w = fv.Variable(np.ones(3, np.float32), name="w", constraint=box)
    for optimizer in (fv.optimizers.Adam(), fv.optimizers.LBFGS()):
        with pytest.raises(ValueError, match=rf"^{type(optimizer).__name__}: {message}"):
            optimizer.minimize(lambda: (1.0, [np.ones(3)]), [w])
        np.testing.assert_array_equal(w, np.ones(3))
        assert not optimizer.iterations


def test_lbfgs_names_a_constraint_that_is_no_bound() -> None:
    w = fv.Variable(np.ones(3), name="w", constraint=fv.constraints.MaxNorm())
    with pytest.raises(ValueError, match=r"^LBFGS: constraint of .*'w'.* must be Box, NonNeg or None$"):
        fv.optimizers.LBFGS().minimize(lambda: (1.0, [np.ones(3)]), [w])
