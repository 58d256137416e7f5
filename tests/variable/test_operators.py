"""Operators with a Variable give the same as with its array, which is the oracle."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fastvar as fv

jax = pytest.importorskip("jax")
pandas = pytest.importorskip("pandas")
sparse = pytest.importorskip("scipy.sparse")
torch = pytest.importorskip("torch")

ARITHMETIC = [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "lshift",
    "rshift",
    "and_",
    "or_",
]
COMPARISONS = ["lt", "le", "gt", "ge", "eq", "ne"]
OPERATORS = {name: getattr(operator, name) for name in [*ARITHMETIC, "xor", *COMPARISONS]} | {"divmod": divmod}
IN_PLACE = {name: getattr(operator, f"i{name.rstrip('_')}") for name in [*ARITHMETIC, "xor"]}

OTHERS: dict[str, Any] = {
    "array": np.array,
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else np.asmatrix(a),
    "masked": lambda a: np.ma.masked_greater(a, 2),
    "list": np.ndarray.tolist,
    "jax": jax.numpy.asarray,
    "torch": torch.from_numpy,
    "DataFrame": pandas.DataFrame,
    "Series": pandas.Series,
    "Index": pandas.Index,
    "extension array": pandas.array,
    **{
        f"{form}_{kind}": getattr(sparse, f"{form}_{kind}")
        for form in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
        for kind in ("matrix", "array")
    },
}
SCALARS = [
    2,
    2.5,
    True,
    1j,
    Fraction(1, 2),
    np.float32(2),
    np.float64(2),
    np.int8(2),
    np.bool_(True),
    None,
    "text",
]
SHAPES = [((2, 2), (2, 2)), ((2, 2), (2,)), ((2,), (2,)), ((2,), (2, 2)), ((), (2, 2)), ((), (2,))]


def numbers(shape: tuple[int, ...], start: int, dtype: Any) -> Any:
    return np.arange(start, start + np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


def outcome(call: Any) -> Any:
    """Describe what a call returns, or the type of its exception."""
    try:
        with np.errstate(all="ignore"):
            return described(call())
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        return type(error)


def described(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(map(described, result))
    if sparse.issparse(result):
        return type(result), result.dtype, repr(result.toarray())
    if isinstance(result, (np.ma.MaskedArray, pandas.DataFrame)) or not hasattr(result, "dtype"):
        return type(result), repr(result)
    return type(result), result.dtype, repr(np.asarray(result).tolist())  # all digits; NaN is NaN


@pytest.mark.filterwarnings("ignore")  # warnings of SciPy and pandas
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "torch"])
def test_both_sides(kind: str, name: str) -> None:
    apply = OPERATORS[name]
    tried = 0
    for (shape, of_other), dtype in [(shapes, dtype) for shapes in SHAPES for dtype in (np.float32, np.int64)]:
        array = numbers(shape, 1, dtype)
        w = fv.Variable(array)
        try:
            other = OTHERS[kind](numbers(of_other, 2, dtype))
        except (TypeError, ValueError, IndexError, NotImplementedError):  # it has no such shape
            continue
        assert outcome(lambda w=w, other=other: apply(w, other)) == outcome(lambda a=array, o=other: apply(a, o))
        actual, expected = (outcome(lambda x=x, other=other: apply(other, x)) for x in (w, array))
        if kind == "dia_array" and name == "mul":  # SciPy returns another format
            actual, expected = actual[1:], expected[1:]
        if not (sparse.issparse(other) and w.ndim == 0):  # nor does it treat a 0-d array as a scalar
            assert actual == expected
        tried += 1
    assert tried >= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("scalar", SCALARS, ids=repr)
def test_scalars(scalar: Any, name: str) -> None:
    apply = OPERATORS[name]
    for array in (numbers((2, 2), 1, np.float32), numbers((), 3, np.int32), numbers((3,), 0, bool)):
        w = fv.Variable(array)
        assert outcome(lambda w=w: apply(w, scalar)) == outcome(lambda a=array: apply(a, scalar))
        assert outcome(lambda w=w: apply(scalar, w)) == outcome(lambda a=array: apply(scalar, a))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATORS)
def test_torch(name: str) -> None:
    """The oracle is the array, or the ufunc where PyTorch refuses arrays on the left."""
    apply, array, tensor = OPERATORS[name], numbers((2, 2), 1, np.int64), torch.tensor([[2, 3], [1, 5]])
    w = fv.Variable(array)
    expected = outcome(lambda: apply(array, tensor))
    if isinstance(expected, type) or expected == (bool, "True"):  # an error, or that they are not one object
        actual, expected = apply(w, tensor), apply(array, tensor.numpy())
        for result, values in zip(
            *((actual, expected) if name == "divmod" else ([actual], [expected])), strict=True
        ):
            assert type(result) is torch.Tensor
            np.testing.assert_array_equal(result, values)
    else:
        assert outcome(lambda: apply(w, tensor)) == expected
    if name not in COMPARISONS:  # a comparison from the right is one from the left
        assert outcome(lambda: apply(tensor, w)) == outcome(lambda: apply(tensor, array))


@pytest.mark.parametrize(
    "name", [name for name in OPERATORS if name not in ("lshift", "rshift", "and_", "or_", "xor")]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_in_traced_functions(name: str, side: str) -> None:
    array, other = numbers((2, 2), 1, np.float32), numbers((2, 2), 2, np.float32)
    apply = OPERATORS[name] if side == "left" else lambda x, y: OPERATORS[name](y, x)
    traced = jax.jit(lambda q: apply(fv.Variable(array), q))(other)
    expected = jax.jit(lambda q: apply(array, q))(other)
    assert described(traced) == described(expected)


def test_gradients_pass_through_operators() -> None:
    w = fv.Variable(numbers((2, 2), 1, np.float32))
    expected = jax.grad(lambda q: ((q @ w.value - w.value * q) ** 2).sum())(w.value)
    np.testing.assert_array_equal(jax.grad(lambda q: ((q @ w - w * q) ** 2).sum())(w.value), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("kind", OTHERS)
def test_in_place_writes_or_raises(kind: str, name: str) -> None:
    """In place, the variable stays the same object and holds what NumPy computes, or nothing changes."""
    shape = (2,) if kind in ("Series", "Index", "extension array") else (2, 2)
    for dtype in (np.float64, np.int64):
        array = numbers(shape, 1, dtype)
        other = OTHERS[kind](numbers(shape, 2, dtype))
        w, expected = fv.Variable(array), array.copy()
        address = w.value.ctypes.data
        try:
            assert IN_PLACE[name](w, other) is w
        except (TypeError, ValueError):
            np.testing.assert_array_equal(w, array)
            with pytest.raises((TypeError, ValueError)):
                IN_PLACE[name](expected, np.asarray(other))
        else:
            IN_PLACE[name](expected, np.asarray(other))
            np.testing.assert_array_equal(w, expected)
        assert w.value.ctypes.data == address


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("kind", ["array", "masked", "jax", "torch", "Series", "list", "csr_array"])
def test_others_are_changed_in_place_as_by_the_array(kind: str, name: str) -> None:
    if kind == "Series" and name in ("and_", "or_", "xor"):
        pytest.skip("pandas asks whether it is an ndarray")
    array, values = numbers((2,), 1, np.int64), numbers((2,), 2, np.int64)
    results = []
    for operand in (array, fv.Variable(array)):
        other = OTHERS[kind](values.copy())
        results.append(outcome(lambda other=other, operand=operand: IN_PLACE[name](other, operand)))
        results.append(described(other))
    assert results[:2] == results[2:]


def test_in_place_matrix_product_with_a_vector_is_refused_as_by_the_array() -> None:
    array, vector = numbers((2, 2), 1, np.float64), np.ones(2)
    w = fv.Variable(array)
    for other in (vector, jax.numpy.asarray(vector), torch.tensor(vector), fv.Variable(vector)):
        with pytest.raises(ValueError, match="inplace matrix multiplication"):
            w @= other
        np.testing.assert_array_equal(w, array)


def test_sparse_in_place_is_a_clear_error() -> None:
    w = fv.Variable([[1.0, 2.0]])
    with pytest.raises(TypeError, match=r"Variable: \+= must be given numbers or an array, got csr_array"):
        w += sparse.csr_array([[1.0, 1.0]])
    assert w.tolist() == [[1.0, 2.0]]


def test_in_place_keeps_the_precision_of_the_variable() -> None:
    w = fv.Variable([1.0 + 2.0**-40])
    w -= jax.numpy.ones(1)  # float32
    assert w.tolist() == [2.0**-40]


@pytest.mark.parametrize("name", [*OPERATORS, "neg", "pos", "abs", "invert"])
def test_two_variables(name: str) -> None:
    a, b = numbers((2, 2), 1, np.int32), numbers((2, 2), 2, np.int32)
    if name in OPERATORS:
        assert described(OPERATORS[name](fv.Variable(a), fv.Variable(b))) == described(OPERATORS[name](a, b))
    else:
        assert described(getattr(operator, name)(fv.Variable(a))) == described(getattr(operator, name)(a))
