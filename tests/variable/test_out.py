"""NumPy writes into a Variable as `out` as it does into an array, or raises an error and writes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastvar as fv

X = np.array([[0.5, 2.0, 1.25], [3.0, 0.25, 4.0]])
SQUARE = np.array([[2.0, 1.0], [0.5, 3.0]])
MASK = np.array([[True, False, True], [True, True, False]])
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # NumPy's, of any release
MODULES = [np, np.linalg, np.fft, np.ma]

# Arguments of functions that take others than an array and an axis; methods take the same.
SPECIAL: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "busday_count": ((["2026-01-01"], ["2026-03-01"]), {}),
    "busday_offset": ((["2026-01-01"], 1), {"roll": "forward"}),
    "is_busday": ((["2026-01-01"],), {}),
    "choose": ((np.array([1, 0, 1]), X), {}),
    "clip": ((X, 1.0, 2.0), {}),
    "compress": (([True, False], X), {"axis": 0}),
    "concat": (([X, X + 1],), {}),
    "concatenate": (([X, X + 1],), {}),
    "dot": ((SQUARE, SQUARE), {}),
    "einsum": (("ij,kj->ik", X, X), {}),
    "isneginf": ((np.array([np.inf, -np.inf]),), {}),
    "isposinf": ((np.array([np.inf, -np.inf]),), {}),
    "multi_dot": (([SQUARE, SQUARE],), {}),
    "outer": ((SQUARE, SQUARE), {}),
    "round": ((10 * X, 1), {}),
    "stack": (([X, X + 1],), {}),
    "take": ((X, [1, 0]), {"axis": 1}),
    "trace": ((np.stack([SQUARE] * 2),), {}),
    **dict.fromkeys(["percentile", "quantile", "nanpercentile", "nanquantile"], ((X, 0.75), {"axis": 0})),
    **dict.fromkeys(["fft2", "fftn", "ifft2", "ifftn", "irfft2", "irfftn", "rfft2", "rfftn", "fix"], ((X,), {})),
}
SPECIAL["around"] = SPECIAL["round_"] = SPECIAL["round"]


def takes_out(function: Any) -> bool:
    try:
        return "out" in inspect.signature(function).parameters
    except ValueError:  # compiled
        return "out=" in (function.__doc__ or "")


def functions() -> Iterator[Any]:
    for module in MODULES:
        for name in dir(module):
            function = getattr(module, name)
            if name[0] == "_" or not callable(function) or isinstance(function, (np.ufunc, type)):
                continue
            if takes_out(function) and function is not np.ma.dot:  # which takes a masked `out` only
                yield pytest.param(function, id=f"{module.__name__}.{name}")


def methods() -> Iterator[Any]:
    for name in dir(np.ndarray):
        method = getattr(np.ndarray, name)
        if name[0] != "_" and callable(method) and ("out=" in (method.__doc__ or "") or takes_out(method)):
            yield pytest.param(method, id=name)


def ufuncs() -> Iterator[Any]:
    for name in dir(np):
        ufunc = getattr(np, name)
        if isinstance(ufunc, np.ufunc):
            yield pytest.param(ufunc, id=name)


def example(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return SPECIAL.get(name, ((X,), {"axis": 0}))


def writes(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return the array that a function writes to."""
    out = np.zeros_like(np.asarray(function(*args, **kwargs)))
    function(*args, **kwargs, out=out)
    assert out.any() or function.__name__ in ("hfft", "ifft2", "irfft2", "stack")  # some forget it, in NumPy 2.4
    return out


def written(call: Callable[[Any], Any], expected: Any) -> bool:
    """Check that a call with a variable as `out` writes the expected values or raises. Return whether it wrote."""
    if expected.dtype.kind not in "biufc":  # dates, which no variable can hold
        return False
    out = fv.Variable(np.zeros_like(expected))
    try:
        call(out)
    except (TypeError, ValueError, AttributeError):
        assert not out.value.any()
        return False
    assert out.value.tobytes() == expected.tobytes()
    return True


quietly = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@quietly
@pytest.mark.parametrize("function", [*functions()])
def test_functions(function: Any) -> None:
    args, kwargs = example(function.__name__)
    expected = writes(function, args, kwargs)
    wrote = written(lambda out: function(*args, **kwargs, out=out), expected)
    assert wrote or function.__module__.startswith("numpy.ma") or "busday" in function.__name__


@quietly
@pytest.mark.parametrize("function", [*functions()])
def test_functions_given_out_by_position(function: Any) -> None:
    args, kwargs = example(function.__name__)
    expected = writes(function, args, kwargs)
    try:
        signature = inspect.signature(function)
    except ValueError:
        pytest.skip("its signature is not known")
    if signature.parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY:
        pytest.skip("it takes none by position")
    bound = signature.bind(*args, **kwargs, out=None)
    bound.apply_defaults()
    place = [*signature.parameters].index("out")
    if "busday" in function.__name__:
        return
    wrote = written(
        lambda out: function(*bound.args[:place], out, *bound.args[place + 1 :], **bound.kwargs), expected
    )
    assert wrote or function.__module__.startswith("numpy.ma")


@quietly
@pytest.mark.parametrize("function", [*functions()])
def test_functions_of_variables(function: Any) -> None:
    args, kwargs = example(function.__name__)
    expected = writes(function, args, kwargs)
    if "busday" in function.__name__:
        pytest.skip("no variable holds dates")
    variables = [held(x) for x in args]
    if not function.__module__.startswith("numpy.ma"):
        written(lambda out: function(*variables, **kwargs, out=out), expected)
    result, plain = function(*variables, **kwargs), function(*args, **kwargs)
    assert type(result) is type(plain)
    np.testing.assert_array_equal(result, plain)


def held(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return fv.Variable(x)
    return [held(each) for each in x] if isinstance(x, list) else x


@quietly
@pytest.mark.parametrize("method", [*methods()])
def test_methods(method: Any) -> None:
    args, kwargs = example(method.__name__)
    args = args if isinstance(args[0], np.ndarray) else args[::-1]  # compress
    expected = writes(method, args, kwargs)
    wrote = written(lambda out: method(*args, **kwargs, out=out), expected)
    assert wrote or method.__name__ not in (
        "all",
        "any",
        "clip",
        "max",
        "mean",
        "min",
        "prod",
        "std",
        "sum",
        "var",
    )
    if own := getattr(fv.Variable, method.__name__, None):
        assert written(lambda out: own(fv.Variable(args[0]), *args[1:], **kwargs, out=out), expected)
        out = fv.Variable(expected)
        assert own(fv.Variable(args[0]), *args[1:], **kwargs, out=out) is out


@pytest.mark.parametrize("name", ["mean", "std", "var"])
@pytest.mark.parametrize(
    "options", [{"keepdims": True}, {"where": MASK}, {"dtype": np.float32}, {"ddof": 0.5}], ids=str
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.bool_, np.complex128])
def test_means_with_options(name: str, options: dict[str, Any], dtype: Any) -> None:
    if "ddof" in options and name == "mean":
        pytest.skip("a mean has no degrees of freedom")
    if "dtype" in options and dtype is np.complex128:
        pytest.skip("it would drop the imaginary part")
    x = (3 * X).astype(dtype)
    expected = np.zeros_like(getattr(x, name)(axis=1, **options))
    getattr(x, name)(axis=1, **options, out=expected)
    for function in (getattr(np, name), getattr(np.ndarray, name)):
        assert written(lambda out, function=function: function(x, axis=1, **options, out=out), expected)


@quietly
@pytest.mark.parametrize("ufunc", [*ufuncs()])
def test_ufuncs(ufunc: Any) -> None:
    tried = 0
    for types in ufunc.types:
        given, returned = types.split("->")
        if not set(given + returned) <= set("?bhilBHILefdFD"):
            continue
        rng = np.random.default_rng(len(given))
        shape = (2, 2) if ufunc.signature else (3,)
        inputs = [(4 * rng.random(shape) + 1).astype(each) for each in given]
        expected = ufunc(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        outs = tuple(fv.Variable(np.zeros_like(each)) for each in expected)
        results = ufunc(*inputs, out=outs)
        results = results if isinstance(results, tuple) else (results,)
        for result, out, each in zip(results, outs, expected, strict=True):
            assert result is out
            assert out.value.tobytes() == each.tobytes()
        tried += 1
    assert tried or ufunc in (np.isnat,)


@pytest.mark.parametrize("method", ["reduce", "accumulate", "reduceat"])
@pytest.mark.parametrize("ufunc", [np.add, np.multiply, np.maximum, np.logaddexp, np.subtract])
def test_methods_of_ufuncs_return_the_variable(ufunc: Any, method: str) -> None:
    more = ([0, 1],) if method == "reduceat" else ()
    expected = getattr(ufunc, method)(X, *more, axis=0)
    out = fv.Variable(np.zeros_like(expected))
    assert getattr(ufunc, method)(X, *more, axis=0, out=out) is out
    assert out.value.tobytes() == expected.tobytes()


def test_functions_return_the_variable_that_they_wrote() -> None:
    out = fv.Variable(np.zeros(3))
    for function in (np.sum, np.mean, np.median, np.max, np.nanvar):
        assert function(X, axis=0, out=out) is out
        assert function(X, 0, out=out) is out
        np.testing.assert_array_equal(out, function(X, axis=0))
    assert np.sum(X, 0, None, out) is out
    assert X.sum(axis=0, out=out) is out
    assert np.concatenate([out[:1], X[0, :2]], out=out) is out


@pytest.mark.parametrize(
    "change",
    [
        lambda a: np.copyto(a, [3.0, 4.0, 5.0]),
        lambda a: np.put(a, [2, 0], [7.0, 8.0]),
        lambda a: np.place(a, [True, False, True], [6.0]),
        lambda a: np.putmask(a, [False, True, True], -1.0),
        lambda a: np.put_along_axis(a, np.array([1]), 9.0, axis=0),
    ],
)
def test_functions_that_write_without_out(change: Callable[[Any], Any]) -> None:
    array = np.array([1.0, 2.0, 3.0])
    out = fv.Variable(array)
    change(array)
    change(out)
    assert out.tolist() == array.tolist()


def test_results_are_arrays_and_not_the_arguments() -> None:
    w = fv.Variable(X)
    for function in (
        np.real,
        np.atleast_1d,
        np.squeeze,
        np.ravel,
        np.asarray,
        np.copy,
        np.zeros_like,
        np.positive,
    ):
        assert type(function(w)) is np.ndarray
    view = np.real(w)
    view.shape = (6,)
    assert w.shape == X.shape
    assert type(np.zeros(3, like=w)) is np.ndarray


class Foreign:
    """An array of a library that does not know fastvar."""

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not set(types) <= {Foreign, np.ndarray}:
            return NotImplemented
        return "theirs", function, args, kwargs


def test_functions_of_other_libraries_get_arrays() -> None:
    w, foreign = fv.Variable(X), Foreign()
    for args in ([w, foreign], [foreign, w], (foreign, w, w)):
        who, function, (given,), _ = np.concatenate(args)
        assert (who, function) == ("theirs", np.concatenate)
        assert {*map(type, given)} == {Foreign, np.ndarray}
    assert np.sum(foreign, out=w)[3]["out"] is not w


def test_generators_write_or_refuse() -> None:
    rng = np.random.default_rng(0)
    out = fv.Variable(np.zeros(3))
    calls: list[Any] = [
        rng.random,
        rng.standard_normal,
        rng.standard_exponential,
        lambda out: rng.standard_gamma(2.0, out=out),
    ]
    for call in [*calls, lambda out: rng.permuted(X[0], out=out)]:
        with pytest.raises((TypeError, ValueError)):
            call(out=out)
        assert not out.value.any()
