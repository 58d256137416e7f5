"""fastvar.sklearn beside scikit-learn: its own tests, equal weights, partial fits, copies and refusals."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import neural_network
from sklearn.base import clone

import fastvar.sklearn as ours

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(120, 8))
LABELS = (X[:, 0] > 0).astype(int)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"solver": "sgd"},
    {"solver": "sgd", "momentum": 0.0},
    {"solver": "sgd", "nesterovs_momentum": False, "learning_rate": "invscaling"},
    {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.5, "n_iter_no_change": 2},
    {"early_stopping": True, "n_iter_no_change": 3},
    {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-3, "learning_rate_init": 0.01},
]


@pytest.fixture(autouse=True)
def _short_fits() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pair(kind: str = "MLPClassifier", **settings: Any) -> tuple[Any, Any]:
    given = {"hidden_layer_sizes": (16, 8), "max_iter": 12, "random_state": 0, "batch_size": 32} | settings
    return getattr(neural_network, kind)(**given), getattr(ours, kind)(**given)


def assert_same_weights(first: Any, second: Any) -> None:
    tolerance = 1e-4 if first.coefs_[0].dtype == np.float32 else 1e-9
    for a, b in zip(first.coefs_ + first.intercepts_, second.coefs_ + second.intercepts_, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["MLPClassifier", "MLPRegressor"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_fits_are_those_of_scikit_learn(settings: dict[str, Any], kind: str, dtype: Any) -> None:
    first, second = (model.fit(X.astype(dtype), LABELS) for model in pair(kind, **settings))
    assert_same_weights(first, second)
    assert first.n_iter_ == second.n_iter_
    assert first._optimizer.learning_rate == pytest.approx(second._optimizer.learning_rate, rel=1e-12)
    assert second._optimizer.kernel_steps > 0


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fits_go_on_after_a_copy_and_with_other_arrays(solver: str) -> None:
    first, second = pair(solver=solver)
    for step in range(6):
        if step == 2:
            second = pickle.loads(pickle.dumps(second))
        if step == 3:
            second = copy.deepcopy(second)
        if step == 4:
            second.coefs_ = [w.copy() for w in second.coefs_]
        first.partial_fit(X, LABELS, classes=[0, 1])
        second.partial_fit(X, LABELS, classes=[0, 1])
        assert_same_weights(first, second)
    assert second._optimizer.kernel_steps == 24


def test_warm_start_clone_and_parameters() -> None:
    first, second = (model.set_params(warm_start=True).fit(X, LABELS).fit(X, LABELS) for model in pair())
    assert_same_weights(first, second)
    assert clone(second).get_params() == first.get_params()
    assert not hasattr(clone(second), "_optimizer")


def test_lbfgs_stays_scikit_learns() -> None:
    first, second = (model.fit(X, LABELS) for model in pair(solver="lbfgs"))
    assert_same_weights(first, second)


def test_patch_ends() -> None:
    with ours.patch():
        inside = pair()[0].fit(X, LABELS)
    outside = pair()[0].fit(X, LABELS)
    assert inside._optimizer.kernel_steps > 0
    assert not hasattr(outside._optimizer, "kernel_steps")
    assert_same_weights(inside, outside)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_refused_update_changes_nothing(solver: str) -> None:
    _, model = pair(solver=solver)
    optimizer = model.partial_fit(X, LABELS, classes=[0, 1])._optimizer
    params = model.coefs_ + model.intercepts_
    before = pickle.dumps((params, optimizer))
    with pytest.raises(ValueError, match=r"parameter 5.* shape"):
        optimizer.update_params(params, [*map(np.ones_like, params[:-1]), np.ones(7)])
    assert pickle.dumps((params, optimizer)) == before


@pytest.mark.parametrize("what", ["coefs_", "ms"])
def test_arrays_that_became_read_only_are_not_written(what: str) -> None:
    model = pair()[1].partial_fit(X, LABELS, classes=[0, 1])
    (model if what == "coefs_" else model._optimizer).__dict__[what][0].setflags(write=False)
    before = [w.copy() for w in model.coefs_]
    with pytest.raises(ValueError, match=r"parameter 0.*: array must be writable"):
        model.partial_fit(X, LABELS)
    np.testing.assert_array_equal(model.coefs_[0], before[0])


def test_an_old_version_is_refused() -> None:
    code = "import sklearn; sklearn.__version__ = '1.4.2'; import fastvar.sklearn"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: fastvar.sklearn: needs scikit-learn 1.5 or newer" in found.stderr


def scikit_learns_tests(tmp_path: Path, *arguments: str) -> tuple[str, list[str]]:
    """Return the output of scikit-learn's own tests, and the outcome of each."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-c", str(tmp_path / "pytest.ini"), "--pyargs", *arguments]
    options = ["-p", "no:cacheprovider", "-rA", "--tb=no", "sklearn.neural_network.tests.test_mlp"]
    out = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, check=False).stdout
    return out, sorted(re.findall(r"^(?:PASSED|FAILED|XFAIL|XPASS|SKIPPED|ERROR) \S+", out, re.MULTILINE))


def test_scikit_learns_tests_end_as_without_us(tmp_path: Path) -> None:
    _, plain = scikit_learns_tests(tmp_path)
    out, swapped = scikit_learns_tests(tmp_path, "-p", "tests.support.sklearn_swap")
    assert len(plain) > 50
    assert swapped == plain
    assert int(re.search(r"updates in the kernels: (\d+)", out)[1]) > 1000  # type: ignore[index]
