"""LBFGS runs SciPy's L-BFGS-B on variables."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

import fastvar as fv


def rosenbrock(w: fv.Variable) -> Any:
    return lambda: (rosen(w.value), [rosen_der(w.value)])


def test_it_is_scipys_to_the_last_bit() -> None:
    start = np.array([-1.2, 1.0, 0.7])
    w, optimizer = fv.Variable(start), fv.optimizers.LBFGS(max_iter=7, history_size=4)
    loss = optimizer.minimize(rosenbrock(w), [w])
    options = {"maxiter": 7, "maxfun": 8, "maxcor": 4, "gtol": 1e-7, "ftol": 1e-9}
    expected = minimize(lambda x: (rosen(x), rosen_der(x)), start, jac=True, method="L-BFGS-B", options=options)
    np.testing.assert_array_equal(w, expected.x)
    assert loss == expected.fun


def test_its_result_is_what_scipy_says() -> None:
    start = np.array([-1.2, 1.0, 0.7])
    w, optimizer = fv.Variable(start), fv.optimizers.LBFGS(max_iter=4)
    assert optimizer.result is None
    for most, converged in ((4, False), (500, True)):
        optimizer.max_iter = most
        before = w.numpy()
        loss = optimizer.minimize(rosenbrock(w), [w])
        options = {"maxiter": most, "maxfun": most * 5 // 4, "gtol": 1e-7, "ftol": 1e-9}
        theirs = minimize(rosen, before, jac=rosen_der, method="L-BFGS-B", options=options)
        result = optimizer.result
        assert (result.converged, result.message) == (theirs.success, theirs.message)
        assert (result.iterations, result.evaluations) == (theirs.nit, theirs.nfev)
        assert (type(loss), result.converged, type(result.converged)) == (float, converged, bool)
    assert repr(result).startswith("LBFGS converged after ")
    with pytest.raises(ZeroDivisionError):
        optimizer.minimize(lambda: 1 / 0, [w])
    assert optimizer.result is result
    assert pickle.loads(pickle.dumps(optimizer)).result == result
    with pytest.raises(AttributeError):
        optimizer.result = None


def test_it_solves_rosenbrock_in_some_calls() -> None:
    w, optimizer = fv.Variable(np.array([-1.2, 1.0])), fv.optimizers.LBFGS()
    for _ in range(3):
        loss = optimizer.minimize(rosenbrock(w), [w])
    assert loss < 1e-10
    assert optimizer.iterations == 3


def test_frozen_variables_penalties_and_bounds() -> None:
    free = fv.Variable([3.0, -3.0], name="free", constraint=fv.constraints.NonNeg())
    held = fv.Variable([5.0], name="held", trainable=False)
    penalized = fv.Variable([4.0], name="penalized", regularizer=fv.regularizers.L2(1.0))
    optimizer = fv.optimizers.LBFGS()

    def loss() -> Any:
        parts = (free.value + 1, held.value, penalized.value - 1)
        return sum((p**2).sum() for p in parts), [2 * p for p in parts]

    optimizer.minimize(loss, [free, held, penalized])
    np.testing.assert_allclose(free, [0, 0], atol=1e-9)
    np.testing.assert_array_equal(held, [5])
    np.testing.assert_allclose(penalized, [0.5], atol=1e-6)


def test_a_loss_that_fails_leaves_the_weights() -> None:
    w, optimizer = fv.Variable(np.ones(3)), fv.optimizers.LBFGS()
    calls = []

    def loss() -> Any:
        calls.append(w.numpy())
        if len(calls) == 3:
            raise ArithmeticError("too bad")
        return rosen(w.value) + 100 * (w**2).sum(), [rosen_der(w.value) + 200 * w.value]

    with pytest.raises(ArithmeticError):
        optimizer.minimize(loss, [w])
    np.testing.assert_array_equal(w, np.ones(3))
    assert optimizer.iterations == 0
    for bad in (lambda: (np.nan, [np.ones(3)]), lambda: (0.0, []), lambda: (0.0, [np.ones(2)])):
        with pytest.raises(ValueError, match="LBFGS: "):
            optimizer.minimize(bad)
        np.testing.assert_array_equal(w, np.ones(3))


def test_a_single_gradient_is_not_enough() -> None:
    w, optimizer = fv.Variable(np.ones(3)), fv.optimizers.LBFGS()
    with pytest.raises(TypeError, match="LBFGS: evaluates the loss several times; call minimize"):
        optimizer.apply([np.ones(3)], [w])


def test_config_pickle_and_arguments_of_others() -> None:
    optimizer = fv.optimizers.LBFGS(max_iter=3, tolerance_grad=1e-3)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.get_config() == type(again).from_config(again.get_config()).get_config() == optimizer.get_config()
    with pytest.raises(TypeError, match="LBFGS: unknown argument 'clipnorm'"):
        fv.optimizers.LBFGS(clipnorm=1.0)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Any) -> None:
    def fresh() -> tuple[fv.Variable, fv.Optimizer]:
        return fv.Variable(np.array([-1.2, 1.0, 0.5]), name="w"), fv.optimizers.LBFGS(max_iter=2)

    w, optimizer = fresh()
    for _ in range(2):
        optimizer.minimize(rosenbrock(w), [w])
    path = fv.Checkpoint(variables=[w], optimizer=optimizer).save(tmp_path / "c.h5")
    twin, its = fresh()
    fv.Checkpoint(variables=[twin], optimizer=its).restore(path)
    for v, o in ((w, optimizer), (twin, its)):
        o.minimize(rosenbrock(v), [v])
    np.testing.assert_array_equal(w, twin)
    assert its.iterations == 3
