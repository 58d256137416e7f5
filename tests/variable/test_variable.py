"""A Variable behaves like the array that it holds, and its buffer never moves."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import Any

import numpy as np
import pytest

import fastvar as fv

VALUES = np.array([[1.5, -2.0, 3.0], [0.25, 5.0, -6.5]], np.float32)
OTHER = np.array([[2.0, 4.0, 0.5], [1.0, -1.0, 3.0]], np.float32)
BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "gt", "ge", "eq", "ne"]
IN_PLACE = ["iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"]
REDUCTIONS = ["sum", "prod", "mean", "std", "var", "min", "max", "argmin", "argmax", "any", "all", "cumsum"]
REDUCTIONS += ["ravel", "flatten", "squeeze", "transpose", "round"]


def make(values: Any = VALUES, **options: Any) -> fv.Variable:
    return fv.Variable(values, **{"name": "v", **options})


@pytest.mark.parametrize("name", BINARY)
def test_binary_operators_are_those_of_the_array(name: str) -> None:
    apply = getattr(operator, name)
    with np.errstate(all="ignore"):
        for left, right in [(VALUES, OTHER), (VALUES, 2.0), (OTHER, VALUES[0])]:
            expected = apply(left, right)
            single = make(right, dtype="f4")
            for actual in (apply(make(left), right), apply(left, single), apply(make(left), single)):
                assert type(actual) is np.ndarray
                assert actual.dtype == expected.dtype
                np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["neg", "pos", "abs"])
def test_unary_operators(name: str) -> None:
    np.testing.assert_array_equal(getattr(operator, name)(make()), getattr(operator, name)(VALUES))


def test_matrix_product_and_divmod() -> None:
    np.testing.assert_array_equal(make() @ OTHER.T, VALUES @ OTHER.T)
    np.testing.assert_array_equal(VALUES.T @ make(OTHER), VALUES.T @ OTHER)
    for actual, expected in zip(divmod(make(), OTHER), divmod(VALUES, OTHER), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operators_write_into_the_same_buffer(name: str) -> None:
    variable, array = make(), VALUES.copy()
    address = variable.value.ctypes.data
    with np.errstate(all="ignore"):
        assert getattr(operator, name)(variable, OTHER) is variable
        getattr(operator, name)(array, OTHER)
    np.testing.assert_array_equal(variable, array)
    assert variable.value.ctypes.data == address


def test_an_array_can_be_changed_by_a_variable() -> None:
    array = VALUES.copy()
    result = array
    array += make(OTHER)
    assert result is array
    np.testing.assert_array_equal(array, VALUES + OTHER)


def test_ufuncs_write_to_variables() -> None:
    out = make(np.zeros_like(VALUES))
    assert np.exp(VALUES, out=out) is out
    np.testing.assert_array_equal(out, np.exp(VALUES))
    assert np.add(out, make(), out=out) is out
    array = np.zeros_like(VALUES)
    assert np.multiply(make(), 2, out=array) is array
    assert type(np.add(make(), 1, out=None)) is np.ndarray
    kept = make(np.zeros_like(VALUES))
    np.add(VALUES, 1, out=kept, where=make() > 0)
    np.testing.assert_array_equal(kept, np.where(VALUES > 0, VALUES + 1, 0))


def test_ufuncs_of_two_outputs_return_both() -> None:
    fraction, whole = np.modf(VALUES)
    out = make(np.zeros_like(VALUES))
    for given in ((out, None), (None, out), (out, make(np.zeros_like(VALUES)))):
        results = np.modf(VALUES, out=given)
        for result, expected, place in zip(results, (fraction, whole), given, strict=True):
            assert place is None or result is place
            np.testing.assert_array_equal(result, expected)


def test_ufunc_methods() -> None:
    out = make(np.zeros(3, np.float32))
    assert np.add.reduce(make(), axis=0, out=out) is out
    np.testing.assert_array_equal(out, VALUES.sum(0))
    np.add.at(out, [0, 0], 1)
    np.testing.assert_array_equal(out, VALUES.sum(0) + np.array([2, 0, 0]))
    np.testing.assert_array_equal(np.multiply.outer(make(), make([2.0])), np.multiply.outer(VALUES, [2.0]))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_methods_and_functions_of_arrays(name: str) -> None:
    expected = getattr(VALUES, name)()
    np.testing.assert_array_equal(getattr(make(), name)(), expected)
    if name != "flatten":
        np.testing.assert_array_equal(getattr(np, name)(make()), getattr(np, name)(VALUES))
    if name in ("sum", "mean", "max"):
        np.testing.assert_array_equal(
            getattr(make(), name)(axis=1, keepdims=True), getattr(VALUES, name)(1, keepdims=True)
        )


def test_functions_of_several_arrays() -> None:
    np.testing.assert_array_equal(np.concatenate([make(), make(OTHER)]), np.concatenate([VALUES, OTHER]))
    np.testing.assert_array_equal(np.where(make() > 0, make(), 0), np.where(VALUES > 0, VALUES, 0))
    np.testing.assert_array_equal(np.dot(make(), OTHER.T), np.dot(VALUES, OTHER.T))
    np.testing.assert_array_equal(make().reshape(3, 2), VALUES.reshape(3, 2))
    assert make().astype(int).dtype == int
    assert make().tolist() == VALUES.tolist()
    assert make([[7.5]]).item() == 7.5


@pytest.mark.parametrize(
    "key", [0, -1, (1, 2), slice(None, None, 2), (slice(None), 1), [1, 0], ..., None], ids=str
)
def test_indexing_and_slice_assignment(key: Any) -> None:
    variable, array = make(), VALUES.copy()
    np.testing.assert_array_equal(variable[key], array[key])
    variable[key] = array[key] = 9.0
    np.testing.assert_array_equal(variable, array)
    variable[key] += 1
    array[key] += 1
    np.testing.assert_array_equal(variable, array)


def test_indexing_by_variables() -> None:
    rows = fv.Variable([1, 0])
    np.testing.assert_array_equal(make()[rows], VALUES[[1, 0]])
    np.testing.assert_array_equal(VALUES[rows], VALUES[[1, 0]])
    variable = make()
    variable[variable < 0] = 0
    np.testing.assert_array_equal(variable, np.maximum(VALUES, 0))


def test_scalars_convert() -> None:
    assert float(make(2.5)) == 2.5
    assert int(make(2.5)) == 2
    assert complex(make(2.5)) == 2.5
    assert bool(make(1.0)) is True
    assert [10, 20, 30][fv.Variable(2)] == 30
    for convert in (bool, float, int):
        with pytest.raises((ValueError, TypeError)):
            convert(make())
    with pytest.raises(TypeError):
        [1, 2][make(1.0)]
    with pytest.raises(TypeError):
        len(make(1.0))
    assert len(make()) == 2
    assert 5.0 in make()
    assert [row.tolist() for row in make()] == VALUES.tolist()


def test_shape_and_the_like() -> None:
    v = make()
    names = ["shape", "dtype", "size", "ndim", "nbytes", "itemsize"]
    assert [getattr(v, name) for name in names] == [getattr(VALUES, name) for name in names]
    np.testing.assert_array_equal(v.T, VALUES.T)


def test_read_without_a_copy() -> None:
    v = make()
    for view in (
        v.value,
        np.asarray(v),
        np.array(v, copy=False),
        np.from_dlpack(v),
        v[:],
        v.T,
        v.reshape(-1),
    ):
        assert np.shares_memory(view, v.value)
    for other in (v.numpy(), np.array(v), np.asarray(v, np.float64), v + 0, v.flatten()):
        assert not np.shares_memory(other, v.value)
    with pytest.raises(ValueError, match="copy"):
        np.array(v, np.float64, copy=False)


def test_torch_reads_the_same_memory() -> None:
    torch = pytest.importorskip("torch")
    v = make()
    tensor = torch.from_dlpack(v)
    v[0, 0] = 42
    assert tensor[0, 0] == 42


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # of NumPy 2.5
def test_value_is_a_view_that_cannot_be_replaced() -> None:
    v = make()
    with pytest.raises(AttributeError):
        v.value = OTHER  # type: ignore[misc]
    v.value.shape = (6,)  # that of the view
    assert v.shape == (2, 3)
    v.value[...] = OTHER
    np.testing.assert_array_equal(v, OTHER)


@pytest.mark.parametrize("name", [name for name in IN_PLACE if name != "imod"])
@pytest.mark.parametrize("place", ["value", "T"])
def test_views_that_are_properties_are_written_in_place(place: str, name: str) -> None:
    v, array = make(), VALUES.copy()
    operand = OTHER if place == "value" else OTHER.T
    with np.errstate(all="ignore"):
        setattr(v, place, getattr(operator, name)(getattr(v, place), operand))  # as `v.value += x` does
        getattr(operator, name)(getattr(array, place) if place == "T" else array, operand)
    np.testing.assert_array_equal(v, array)


def test_views_that_are_properties_cannot_be_replaced() -> None:
    v = make(name="v")
    before = v.numpy()
    for place in ("value", "T"):
        for other in (v.value + 1, v.value[:1], v.value.reshape(-1), v.value.view(np.int32), OTHER.tolist(), None):
            with pytest.raises(AttributeError, match=f"{place} cannot be replaced"):
                setattr(v, place, other)
    jax = pytest.importorskip("jax")
    with pytest.raises(AttributeError, match=r"'v': value cannot be replaced.*assign"):
        v.value += jax.numpy.ones(v.shape)  # which makes an array of its own
    with pytest.raises(TypeError, match="same_kind"):
        v.value += 1j
    np.testing.assert_array_equal(v, before)


@pytest.mark.parametrize("name", ["gard", "values", "requires_grad"])
def test_attributes_that_it_does_not_have_are_refused_as_by_an_array(name: str) -> None:
    for thing in (VALUES.copy(), make()):
        with pytest.raises(AttributeError):
            setattr(thing, name, OTHER)
    with pytest.raises(AttributeError, match=r"'v': no attribute 'gard', did you mean 'grad'"):
        make().gard = OTHER


class Noted(fv.Variable):
    """A user's subclass with an attribute of its own."""

    note: str


def test_attributes_of_subclasses_are_declared() -> None:
    v = Noted(VALUES)
    v.note = v._private = "mine"
    assert (v.note, v._private) == ("mine", "mine")
    with pytest.raises(AttributeError, match="no attribute 'notes'"):
        v.notes = "slip"


def test_buffer_never_moves_and_is_aligned() -> None:
    v = make()
    address = v.value.ctypes.data
    v.assign(OTHER).assign_add(OTHER).assign_sub(OTHER)
    v.scatter_update([0], [[1, 2, 3]])
    v += 1
    v[...] = 0
    fv.optimizers.Adam(use_ema=True, ema_overwrite_frequency=1).apply([OTHER], [v])
    assert v.value.ctypes.data == address
    assert address % 64 == 0


def test_assign_writes_and_returns_the_variable() -> None:
    v = make()
    assert v.assign(OTHER) is v
    np.testing.assert_array_equal(v, OTHER)
    np.testing.assert_array_equal(v.assign_add(VALUES), OTHER + VALUES)
    np.testing.assert_array_equal(v.assign_sub(make()), OTHER)
    np.testing.assert_array_equal(v.assign(v[::-1]), OTHER[::-1])
    np.testing.assert_array_equal(v.assign(np.float64(OTHER)), OTHER)


@pytest.mark.parametrize("method", ["assign", "assign_add", "assign_sub"])
def test_assign_refuses_what_does_not_fit(method: str) -> None:
    v = make()
    for bad, error, pattern in [
        (VALUES[0], ValueError, r"'v'.*shape \(2, 3\), got \(3,\)"),
        (1.0, ValueError, "'v'.*shape"),
        (VALUES * 1j, TypeError, "'v'.*float32, got complex64"),
        ([["a"] * 3] * 2, TypeError, "'v'.*float32, got <U1"),
    ]:
        with pytest.raises(error, match=pattern):
            getattr(v, method)(bad)
    np.testing.assert_array_equal(v, VALUES)


def test_scatter_changes_rows_and_adds_duplicates_up() -> None:
    v = make(np.zeros((4, 2)))
    assert v.scatter_add([1, 1, -1], [[1, 2], [3, 4], [5, 6]]) is v
    assert v.tolist() == [[0, 0], [4, 6], [0, 0], [5, 6]]
    v.scatter_sub([1, 1], 1.0)
    assert v.tolist() == [[0, 0], [2, 4], [0, 0], [5, 6]]
    v.scatter_update([2, 2], [[1, 1], [9, 9]])
    assert v.tolist() == [[0, 0], [2, 4], [9, 9], [5, 6]]
    v.scatter_add([], np.zeros((0, 2)))
    v.scatter_update([[0, 1]], np.ones((1, 2, 2)))
    assert v.tolist() == [[1, 1], [1, 1], [9, 9], [5, 6]]


@pytest.mark.parametrize("method", ["scatter_update", "scatter_add", "scatter_sub"])
def test_scatter_refuses_what_does_not_fit(method: str) -> None:
    v = make()
    for rows, updates, error in [
        ([2], [[1, 2, 3]], IndexError),
        ([-3], [[1, 2, 3]], IndexError),
        ([0.0], [[1, 2, 3]], TypeError),
        ([True, False], [[1, 2, 3]], TypeError),
        ([0], [[1, 2]], ValueError),
        ([0, 1, 0], [[1, 2, 3]] * 2, ValueError),
        ([0], [[1j, 2, 3]], TypeError),
    ]:
        with pytest.raises(error, match="'v'"):
            getattr(v, method)(rows, updates)
    with pytest.raises(TypeError, match="rows"):
        getattr(make(1.0), method)([0], [1.0])
    np.testing.assert_array_equal(v, VALUES)


def test_copies_are_places_of_their_own() -> None:
    options = {"regularizer": fv.regularizers.L2(0.5), "constraint": fv.constraints.MaxNorm(3.0)}
    v = make(trainable=False, **options)
    v.grad = OTHER
    for twin in (copy.copy(v), copy.deepcopy(v), pickle.loads(pickle.dumps(v))):
        assert type(twin) is fv.Variable
        np.testing.assert_array_equal(twin, VALUES)
        assert not np.shares_memory(twin.value, v.value)
        assert (twin.name, twin.trainable, twin.grad, twin.dtype) == ("v", False, None, v.dtype)
        assert (repr(twin.regularizer), repr(twin.constraint)) == tuple(map(repr, options.values()))
        assert twin.value.ctypes.data % 64 == 0


def test_shared_variables_stay_shared_in_a_deep_copy() -> None:
    v = make()
    first, second = copy.deepcopy([v, v])
    assert first is second


def test_hash_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match=r"not hashable.*id\(variable\)"):
        {make(): 1}


def test_repr_says_what_it_is() -> None:
    assert repr(make()).startswith("<fastvar.Variable 'v' shape=(2, 3) dtype=float32, value=[[ 1.5")
    assert "frozen" in repr(make(trainable=False))
    assert "'" not in repr(fv.Variable(1.0))
    assert len(repr(make(np.zeros((1000, 1000))))) < 200


def test_initial_values() -> None:
    assert fv.Variable(3).dtype == int
    assert fv.Variable(1.5).dtype == float
    assert fv.Variable([[1, 2.5]]).shape == (1, 2)
    assert fv.Variable(2.0, shape=(2, 2), dtype="f4").tolist() == [[2, 2], [2, 2]]
    assert fv.Variable(2.0, shape=3).tolist() == [2, 2, 2]
    assert fv.Variable(lambda: [1.0, 2.0]).tolist() == [1, 2]
    assert fv.Variable(lambda shape, dtype: np.full(shape, 7, dtype), shape=(2,), dtype="f4").tolist() == [
        7,
        7,
    ]
    assert fv.Variable(VALUES.astype(">f4")).dtype.isnative
    assert fv.Variable(np.asfortranarray(VALUES)).value.flags.c_contiguous
    assert not np.shares_memory(fv.Variable(make()).value, make().value)


def test_copy_false_wraps_the_array_itself() -> None:
    array = VALUES.copy()
    v = fv.Variable(array, copy=False)
    fv.optimizers.SGD(1.0).apply([np.ones_like(array)], [v])
    assert np.shares_memory(v.value, array)
    np.testing.assert_array_equal(array, VALUES - 1)


def frozen_array() -> Any:
    array = VALUES.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("value", "options", "error", "pattern"),
    [
        ([1.0], {"copy": False}, TypeError, "'v'.*NumPy array"),
        (VALUES.astype(">f4"), {"copy": False}, TypeError, "'v'.*byte order"),
        (VALUES[:, ::2], {"copy": False}, ValueError, "'v'.*contiguous"),
        (frozen_array(), {"copy": False}, ValueError, "'v'.*writable"),
        (VALUES.copy(), {"copy": False, "dtype": "f8"}, ValueError, "'v'.*dtype"),
        (VALUES.copy(), {"copy": False, "shape": (6,)}, ValueError, "'v'.*shape"),
        (VALUES, {"shape": (3, 2)}, ValueError, r"'v'.*shape \(3, 2\), got \(2, 3\)"),
        ("text", {}, TypeError, "'v'.*numeric"),
        ([object()], {}, TypeError, "'v'.*numeric"),
        (VALUES, {"trainable": "yes"}, TypeError, "'v'.*trainable"),
        (VALUES, {"regularizer": 0.1}, TypeError, "'v'.*regularizer"),
        (VALUES, {"constraint": 0.1}, TypeError, "'v'.*constraint"),
        (VALUES, {"name": 3}, TypeError, "name must be a string"),
        (VALUES, {"name": "a//b"}, ValueError, "name must be like"),
        (VALUES, {"name": ""}, ValueError, "name must be like"),
    ],
)
def test_bad_arguments(value: Any, options: dict[str, Any], error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        make(value, **options)


def test_settable_attributes_are_checked() -> None:
    v = make()
    for name in ("trainable", "regularizer", "constraint"):
        before = getattr(v, name)
        with pytest.raises(TypeError, match=f"'v': {name}"):
            setattr(v, name, 0.5)
        assert getattr(v, name) is before
