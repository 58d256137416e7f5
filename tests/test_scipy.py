"""fastvar.scipy beside SciPy's own methods and closed forms: results, options, bounds, callbacks, refusals."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import (
    Bounds,
    LinearConstraint,
    OptimizeResult,
    OptimizeWarning,
    basinhopping,
    minimize,
    rosen,
    rosen_der,
)

import fastvar as fv
from fastvar.scipy import method

ROOT = Path(__file__).parents[1]
A = np.diag([1.0, 3.0, 10.0]) + 0.5
B = np.array([1.0, -2.0, 3.0])
SOLUTION = np.linalg.solve(A, B)
NAMES = sorted({*fv.optimizers.__all__} - {"LBFGS", "LossScaleOptimizer"})
PAIRS = [(0.5, None), (None, -1), (-np.inf, np.inf)]


def quadratic(x: Any) -> tuple[float, Any]:
    return 0.5 * x @ A @ x - B @ x, A @ x - B


def adam(**settings: Any) -> Any:
    return method(fv.optimizers.Adam(0.05, **settings))


def solve(fun: Any = quadratic, x0: Any = (2.0, 2.0, 2.0), **arguments: Any) -> Any:
    return minimize(fun, x0, **{"jac": True, "method": adam(), **arguments})


def test_the_solution_is_the_closed_form() -> None:
    found = solve(tol=1e-9)
    assert isinstance(found, OptimizeResult)
    np.testing.assert_allclose(found.x, SOLUTION, atol=1e-8)
    assert (found.success, found.status) == (True, 0)
    assert "gtol" in found.message
    assert found.fun == quadratic(found.x)[0]
    np.testing.assert_array_equal(found.jac, quadratic(found.x)[1])
    assert np.abs(found.jac).max() <= 1e-9
    assert found.nfev == found.njev == found.nit + 1


@pytest.mark.parametrize("x0", [[-1.0, 2.0], [1.5, 0.5, 1.2, 0.8]], ids=str)
def test_rosenbrock_as_by_lbfgs(x0: list[float]) -> None:
    theirs = minimize(rosen, x0, jac=rosen_der, method="L-BFGS-B", tol=1e-10)
    ours = minimize(rosen, x0, jac=rosen_der, method=adam(), options={"maxiter": 50000})
    assert ours.success
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-3)
    assert ours.keys() == theirs.keys() - {"hess_inv"}


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_takes_its_own_steps(name: str) -> None:
    optimizer = getattr(fv.optimizers, name)()
    path: list[Any] = []
    found = solve(method=method(optimizer), callback=path.append, options={"maxiter": 30})
    x = fv.Variable([2.0, 2.0, 2.0])
    for seen in path:
        optimizer.apply([quadratic(x.value)[1]], [x])
        np.testing.assert_array_equal(seen, x.value)
    assert found.nit == len(path) == 30
    assert found.fun == min(quadratic(seen)[0] for seen in [np.full(3, 2.0), *path])


@pytest.mark.parametrize(
    "bounds",
    [
        PAIRS,
        tuple(PAIRS),
        np.array([(0.5, np.inf), (-np.inf, -1), (-np.inf, np.inf)]),
        Bounds([0.5, -np.inf, -np.inf], [np.inf, -1, np.inf]),
        Bounds(0.25, 0.5),
        Bounds(-1.0),
        [(1, 1), (None, None), (3, 4)],
    ],
    ids=str,
)
def test_bounds_as_by_lbfgs(bounds: Any) -> None:
    inside: list[bool] = []
    low, high = (bounds.lb, bounds.ub) if isinstance(bounds, Bounds) else np.array([*bounds], float).T

    def fun(x: Any) -> tuple[float, Any]:
        inside.append(not ((x < low) | (x > high)).any())
        return quadratic(x)

    theirs, ours = (solve(fun, x0=[9.0, -9.0, 9.0], method=m, bounds=bounds) for m in ("L-BFGS-B", adam()))
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-4)
    assert ours.success
    assert all(inside)


def test_without_convergence_the_best_point_is_the_result() -> None:
    seen: list[Any] = []
    found = solve(method=method(fv.optimizers.SGD(0.25)), callback=seen.append, options={"maxiter": 20})
    assert seen[-1].max() > 100  # it diverges
    assert found.fun == min(quadratic(x)[0] for x in [np.full(3, 2.0), *seen])


def test_a_converged_point_is_the_result_though_another_was_lower() -> None:
    def fun(x: Any) -> tuple[float, Any]:
        return -float(x[0] == 2), x  # lowest at the start

    found = solve(fun, [2.0])
    assert found.success
    assert found.fun == 0
    assert abs(found.jac[0]) <= 1e-5


def test_the_average_counts() -> None:
    def fun(x: Any) -> tuple[float, Any]:
        return np.abs(x).sum(), np.sign(x)

    sgd = fv.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    found = solve(fun, [0.5], method=method(sgd), options={"maxiter": 9})
    assert found.nfev == found.nit + 2
    assert 0 < abs(found.x[0]) < 0.5
    assert solve(fun, [0.5], method=method(sgd), options={"maxiter": 0}).x == [0.5]


@pytest.mark.parametrize("scaled", [{"loss_scale_factor": 8.0}, None], ids=str)
def test_a_loss_scale_changes_no_step(scaled: dict[str, float] | None) -> None:
    sgd = fv.optimizers.SGD(0.0625, **(scaled or {}))
    found = solve(method=method(sgd if scaled else fv.optimizers.LossScaleOptimizer(sgd)))
    plain = solve(method=method(fv.optimizers.SGD(0.0625)))
    np.testing.assert_array_equal(found.x, plain.x)
    assert found.nit == plain.nit


def test_options_stop() -> None:
    found = solve(options={"maxiter": 7})
    assert (found.nit, found.status, found.success) == (7, 1, False)
    assert solve(options={"maxiter": 0}).nfev == 1
    loose, strict = solve(options={"gtol": 0.1}), solve(options={"gtol": 1e-3})
    assert loose.nit < strict.nit
    assert solve(tol=0.1).nit == loose.nit
    assert solve(tol=0.1, options={"gtol": 1e-3}).nit == strict.nit
    seen: list[Any] = [np.full(3, 2.0)]
    found = solve(options={"xtol": 0.01}, callback=seen.append)
    steps = [np.abs(b - a).max() for a, b in itertools.pairwise(seen)]
    assert "xtol" in found.message
    assert steps[-1] <= 0.01 < min(steps[:-1])
    seen = [np.full(3, 2.0)]
    found = solve(options={"ftol": 1e-3}, callback=seen.append)
    values = [quadratic(x)[0] for x in seen]
    changes = [abs(b - a) / max(abs(a), abs(b), 1) for a, b in itertools.pairwise(values)]
    assert "ftol" in found.message
    assert changes[-1] <= 1e-3 < min(changes[:-1])


def test_unknown_options_warn_where_the_user_calls() -> None:
    with pytest.warns(OptimizeWarning, match="Adam: unknown options: maxfun, colour") as found:
        solve(options={"maxfun": 7, "colour": 1})
    assert found[0].filename == __file__
    with pytest.raises(ValueError, match=r"maxiter must be >= 0, got -1"):
        solve(options={"maxiter": -1})


def test_disp_prints(capsys: pytest.CaptureFixture[str]) -> None:
    solve(options={"maxiter": 3})
    assert capsys.readouterr().out == ""
    solve(options={"maxiter": 3, "disp": True})
    assert "iterations has been exceeded. fun: " in capsys.readouterr().out


@pytest.mark.parametrize("new", [True, False])
def test_callbacks_stop_and_cannot_change_anything(new: bool) -> None:
    seen: list[Any] = []

    def tell(x: Any) -> None:
        seen.append(x.copy())
        x[...] = np.nan
        if len(seen) == 5:
            raise StopIteration

    def with_result(intermediate_result: OptimizeResult) -> None:
        assert intermediate_result.fun == quadratic(intermediate_result.x)[0]
        tell(intermediate_result.x)

    def with_x(xk: Any) -> None:
        tell(xk)

    found = solve(callback=with_result if new else with_x)
    assert (found.nit, found.status, found.success) == (5, 99, False)
    assert found.message == "`callback` raised `StopIteration`."
    np.testing.assert_array_equal(found.x, seen[-1])


def test_fun_gets_copies_and_may_reuse_its_gradient() -> None:
    buffer = np.zeros(3)

    def fun(x: Any, scale: float) -> tuple[Any, Any]:
        value, buffer[...] = quadratic(x)
        x[...] = np.nan
        return np.array([scale * value]), scale * buffer if scale != 1 else buffer

    found = solve(fun, args=(1.0,))
    expected = solve()
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_array_equal(found.jac, expected.jac)
    best = solve(fun, args=(1.0,), method=method(fv.optimizers.SGD(0.25)), options={"maxiter": 9})
    np.testing.assert_array_equal(best.jac, quadratic(best.x)[1])
    assert solve(fun, args=(2.0,)).fun == pytest.approx(2 * expected.fun)


@pytest.mark.parametrize("x0", [2, [2, 2], np.float32([2, 2]), np.array([2.0, 2.0])[::-1]], ids=repr)
def test_x_is_float64_and_x0_stays(x0: Any) -> None:
    before = np.array(x0)
    found = solve(lambda x: ((x**2).sum(), np.float32(2 * x)), x0)
    assert found.x.dtype == found.jac.dtype == np.float64
    assert found.success
    np.testing.assert_array_equal(x0, before)


def test_a_method_is_used_again_and_inside_itself() -> None:
    optimizer = fv.optimizers.Adam(0.05)
    again = method(optimizer)
    first = solve(method=again)
    nested = solve(lambda x: (solve(method=again), quadratic(x))[1], method=again, options={"maxiter": 3})
    second = solve(method=pickle.loads(pickle.dumps(again)))
    assert first.nit == second.nit
    np.testing.assert_array_equal(first.x, second.x)
    assert nested.nit == 3
    assert not optimizer.iterations
    assert not optimizer.groups
    optimizer.learning_rate = 0.0
    assert solve(method=again).nit == first.nit


def test_it_stops_where_nothing_is_finite() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = solve(lambda x: (np.log(x).sum(), 1 / x), [0.12])
        assert (found.status, found.success) == (3, False)
        assert 0 < found.x[0] < 0.12
        assert solve(lambda x: (np.nan, x), [1.0]).status == 3
        assert solve(lambda x: (1.0, x * np.inf), [1.0]).nit == 0


def test_other_functions_of_scipy_use_it() -> None:
    arguments = {"jac": True, "method": adam()}
    found = basinhopping(quadratic, np.zeros(3), niter=2, minimizer_kwargs=arguments)
    np.testing.assert_allclose(found.x, SOLUTION, atol=1e-4)


@pytest.mark.parametrize("jac", [None, False, "2-point", "3-point", "cs"])
def test_a_gradient_is_needed(jac: Any) -> None:
    with pytest.raises(ValueError, match=r"Adam: needs the gradient: pass jac=True"):
        solve(lambda x: 0.0, jac=jac)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"constraints": LinearConstraint(np.eye(3), 0, 1)}, "constraints"),
        ({"constraints": {"type": "eq", "fun": sum}}, "constraints"),
        ({"hess": lambda x: A}, "hess"),
        ({"hessp": lambda x, p: A @ p}, "hessp"),
    ],
    ids=["constraint", "constraint as a dict", "hess", "hessp"],
)
def test_what_is_not_used_warns(given: dict[str, Any], what: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"Adam: does not use .*{what}") as found:
        solve(**given)
    assert found[0].filename == __file__


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([(0, 1)], "1 pair of bounds for 3 elements of x0"),
        ([(1, 0)] * 3, r"low must be <= high, got 1 and 0 at \[0\]"),
        ([(np.nan, 0)] * 3, "NaN"),
        (Bounds([0, 0], [1, 1]), r"must broadcast to \(3,\)"),
    ],
    ids=str,
)
def test_bad_bounds_are_refused(bounds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"Adam: .*{message}"):
        solve(bounds=bounds)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Adam: fun must return a scalar, got the shape \(3,\)"):
        solve(lambda x: (x, x))
    with pytest.raises(ValueError, match=r"Adam: the gradient must have the shape \(3,\), got \(1,\)"):
        solve(lambda x: (1.0, 1.0))


@pytest.mark.parametrize("what", ["x0", "fun", "the gradient"])
def test_complex_numbers_are_refused(what: str) -> None:
    def value(x: Any) -> Any:
        return (x @ x) * (1 + 1j if what == "fun" else 1), 2 * x * (1j if what == "the gradient" else 1)

    x0 = [1j if what == "x0" else 1.0, 2.0]
    with pytest.raises(TypeError, match=f"Adam: {what} must be real, got complex128"):
        minimize(value, x0, jac=True, method=method(fv.optimizers.Adam()))


def test_bad_optimizers_are_refused() -> None:
    built = fv.optimizers.SGD()
    built.build([fv.Variable(0.0)])
    with pytest.raises(TypeError, match="needs an optimizer"):
        method("adam")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="L-BFGS-B"):
        method(fv.optimizers.LBFGS())
    for bad in (built, fv.optimizers.LossScaleOptimizer(built)):
        with pytest.raises(ValueError, match="is built on variables"):
            method(bad)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        method(fv.optimizers.SGD(gradient_accumulation_steps=2))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import fastvar; assert not any(m.split('.')[0] == 'scipy' for m in sys.modules); print('none')", "none"),
        ("sys.modules['scipy.optimize'] = None; import fastvar.scipy", "ImportError: fastvar.scipy: needs SciPy"),
    ],
)
def test_scipy_is_imported_on_demand(code: str, said: str) -> None:
    command = [sys.executable, "-c", f"import sys; {code}"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert said in found.stdout + found.stderr
