"""Base class of objects that behave like the NumPy array they hold: operators, ufuncs, functions, methods."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any, NoReturn, Protocol, SupportsIndex, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from fastvar.buffers import Array

S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)
NUMBERS = (np.ndarray, np.generic, int, float, complex)  # operands for which in-place operators are NumPy's


class Operator(Protocol[R_co]):
    """The type of an operator: with what NumPy knows, its result; with other objects, whatever these return."""

    @overload
    def __call__(self, other: Operand, /) -> R_co: ...
    @overload
    def __call__(self, other: Any, /) -> Any: ...


class InPlaceOperator(Protocol):
    """The type of an operator that writes into its left operand and returns it."""

    def __get__(self, instance: S, owner: Any) -> Callable[[Any], S]: ...


def unwrap(x: Any) -> Any:
    """Return the array of an `Arraylike`, and anything else unchanged."""
    return x._array if isinstance(x, Arraylike) else x


def unwrap_nested(x: Any) -> Any:
    """Return a view of the array of an `Arraylike`; unwrap the elements of lists and tuples, too."""
    if isinstance(x, Arraylike):
        return x._array.view()
    if type(x) is tuple or type(x) is list:
        return type(x)([unwrap_nested(element) for element in x])
    return x


def same_memory(x: Any, array: Array) -> bool:
    """Return whether `x` is a view of exactly the elements of `array`, as `v.value += 1` assigns it."""
    return isinstance(x, np.ndarray) and x.__array_interface__ == array.__array_interface__


def _called(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call a NumPy function with unwrapped arguments. If it returns its `out`, return our `out`."""
    arrays = [x._array.view() if isinstance(x, Arraylike) else x for x in args]
    if kwargs:
        named = {name: x._array.view() if isinstance(x, Arraylike) else x for name, x in kwargs.items()}
        result = function(*arrays, **named)
        if "out" in named and result is named["out"]:
            return kwargs["out"]
    else:
        result = function(*arrays)
    for i in range(1, len(arrays)):
        if result is arrays[i]:
            return args[i]
    return result


def _method(name: str, out: bool = False) -> Callable[..., Any]:
    """Make a method that calls the one of ndarray; `out` says whether that takes an `out` argument."""
    function = getattr(np.ndarray, name)

    def method(self: Arraylike, *args: Any, **kwargs: Any) -> Any:
        if out and (args or "out" in kwargs):
            return _called(function, (self, *args), kwargs)
        return function(self._array.view(), *args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"Same as :meth:`numpy.ndarray.{name}` of the value."
    return method


def _left(name: str, ufunc: np.ufunc) -> Operator[Any]:
    """Make an operator with the result that it has between the array and the other operand.

    Python asks both operands, so that one which knows more than NumPy (sparse, traced, labelled) decides. Only
    PyTorch's tensors refuse an array on the left: for them, apply the ufunc.
    """
    apply: Any = divmod if name == "divmod" else getattr(operator, name)

    def method(self: Arraylike, other: Any) -> Any:
        array = self._array
        if isinstance(other, Arraylike):
            return apply(array, other._array)
        try:
            return apply(array, other)
        except TypeError:
            if not _is_tensor(other):
                raise
        return ufunc(array, other)

    return cast(Operator[Any], method)


def _is_tensor(x: Any) -> bool:
    return hasattr(type(x), "__torch_function__")


def _binary(name: str, ufunc: np.ufunc) -> tuple[Operator[Any], Operator[Any]]:
    """Make an operator and its reflected form."""
    apply: Any = divmod if name == "divmod" else getattr(operator, name)

    def reflected(self: Arraylike, other: Any) -> Any:
        return apply(other, self._array)

    return _left(name, ufunc), cast(Operator[Any], reflected)


def _numeric(name: str, ufunc: np.ufunc, symbol: str) -> tuple[Operator[Array], Operator[Array], InPlaceOperator]:
    """Make an operator, its reflected form and its in-place form."""
    in_place = getattr(np.ndarray, f"__i{name.rstrip('_')}__")

    def assigned(self: Arraylike, other: Any) -> Any:
        other = unwrap(other)
        if not isinstance(other, NUMBERS):  # others might return their own class, or cast
            values = np.asarray(other)
            if values.dtype.hasobject:
                kind = type(other).__name__
                raise TypeError(f"{type(self).__name__}: {symbol} must be given numbers or an array, got {kind}")
            other = values
        self._change(in_place, other)
        return self

    return *_binary(name, ufunc), cast(InPlaceOperator, assigned)


def _divided_by_caller() -> bool:
    """Return whether a ufunc runs inside the `mean`, `var` or `std` method of an array.

    These divide the sum in their `out` in place, for which they need a real array back.
    """
    caller = sys._getframe(2)
    return caller.f_globals.get("__name__") == "numpy._core._methods" and caller.f_code.co_name in (
        "_mean",
        "_var",
    )


class Arraylike:
    """Base of objects that behave like the array in their attribute `_array`."""

    _array: Array

    # Operators.

    __lt__: Operator[npt.NDArray[np.bool]] = _left("lt", np.less)
    __le__: Operator[npt.NDArray[np.bool]] = _left("le", np.less_equal)
    __gt__: Operator[npt.NDArray[np.bool]] = _left("gt", np.greater)
    __ge__: Operator[npt.NDArray[np.bool]] = _left("ge", np.greater_equal)
    __eq__: Operator[npt.NDArray[np.bool]] = _left("eq", np.equal)
    __add__: Operator[Array]
    __radd__: Operator[Array]
    __iadd__: InPlaceOperator
    __sub__: Operator[Array]
    __rsub__: Operator[Array]
    __isub__: InPlaceOperator
    __mul__: Operator[Array]
    __rmul__: Operator[Array]
    __imul__: InPlaceOperator
    __truediv__: Operator[Array]
    __rtruediv__: Operator[Array]
    __itruediv__: InPlaceOperator
    __floordiv__: Operator[Array]
    __rfloordiv__: Operator[Array]
    __ifloordiv__: InPlaceOperator
    __mod__: Operator[Array]
    __rmod__: Operator[Array]
    __imod__: InPlaceOperator
    __pow__: Operator[Array]
    __rpow__: Operator[Array]
    __ipow__: InPlaceOperator
    __matmul__: Operator[Array]
    __rmatmul__: Operator[Array]
    __imatmul__: InPlaceOperator
    __lshift__: Operator[Array]
    __rlshift__: Operator[Array]
    __ilshift__: InPlaceOperator
    __rshift__: Operator[Array]
    __rrshift__: Operator[Array]
    __irshift__: InPlaceOperator
    __and__: Operator[Array]
    __rand__: Operator[Array]
    __iand__: InPlaceOperator
    __or__: Operator[Array]
    __ror__: Operator[Array]
    __ior__: InPlaceOperator
    __xor__: Operator[Array]
    __rxor__: Operator[Array]
    __ixor__: InPlaceOperator
    __divmod__: Operator[Any]
    __rdivmod__: Operator[Any]
    __add__, __radd__, __iadd__ = _numeric("add", np.add, "+=")
    __sub__, __rsub__, __isub__ = _numeric("sub", np.subtract, "-=")
    __mul__, __rmul__, __imul__ = _numeric("mul", np.multiply, "*=")
    __truediv__, __rtruediv__, __itruediv__ = _numeric("truediv", np.true_divide, "/=")
    __floordiv__, __rfloordiv__, __ifloordiv__ = _numeric("floordiv", np.floor_divide, "//=")
    __mod__, __rmod__, __imod__ = _numeric("mod", np.remainder, "%=")
    __pow__, __rpow__, __ipow__ = _numeric("pow", np.power, "**=")
    __matmul__, __rmatmul__, __imatmul__ = _numeric("matmul", np.matmul, "@=")
    __lshift__, __rlshift__, __ilshift__ = _numeric("lshift", np.left_shift, "<<=")
    __rshift__, __rrshift__, __irshift__ = _numeric("rshift", np.right_shift, ">>=")
    __and__, __rand__, __iand__ = _numeric("and_", np.bitwise_and, "&=")
    __or__, __ror__, __ior__ = _numeric("or_", np.bitwise_or, "|=")
    __xor__, __rxor__, __ixor__ = _numeric("xor", np.bitwise_xor, "^=")
    __divmod__, __rdivmod__ = _binary("divmod", np.divmod)

    def __neg__(self) -> Array:
        return -self._array

    def __pos__(self) -> Array:
        return +self._array

    def __abs__(self) -> Array:
        return abs(self._array)

    def __invert__(self) -> Array:
        return ~self._array

    @overload
    def __ne__(self, other: Operand, /) -> npt.NDArray[np.bool]: ...
    @overload
    def __ne__(self, other: Any, /) -> Any: ...
    def __ne__(self, other: Any, /) -> Any:
        if _is_tensor(other):  # its own `!=` answers True for the array as a whole
            return np.not_equal(self._array, other)
        return self._array != unwrap(other)

    @property
    def __pandas_priority__(self) -> int:
        """Above that of pandas' classes, so that they leave operators to us; not for `series += variable`."""
        return 0 if sys._getframe(2).f_code.co_name == "_inplace_method" else 10_000

    # Ufuncs and functions.

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._array.view(), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out", ())
        kwargs = {name: unwrap(value) for name, value in kwargs.items()}
        if out:
            kwargs["out"] = tuple(map(unwrap, out))
        result = getattr(ufunc, method)(*map(unwrap, inputs), **kwargs)
        if not any(isinstance(x, Arraylike) for x in out):
            return result
        if len(out) > 1:
            return tuple(x if x is not None else y for x, y in zip(out, result, strict=True))
        return result.view() if method == "reduce" and _divided_by_caller() else out[0]

    def __array_function__(self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if {type(self), np.ndarray}.issuperset(types):
            return _called(getattr(function, "_implementation", function), args, kwargs)
        return _called(function, unwrap_nested(args), {name: unwrap_nested(x) for name, x in kwargs.items()})

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.view().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    # Elements.

    @overload
    def __getitem__(self, key: SupportsIndex | tuple[SupportsIndex, ...], /) -> Any: ...
    @overload
    def __getitem__(self, key: Index | tuple[Index, ...], /) -> Array: ...
    def __getitem__(self, key: Any, /) -> Any:
        return self._array[unwrap(key)]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._array[unwrap(key)] = value

    def _change(self, in_place: Callable[[Array, Any], object], other: Any) -> None:
        """Apply an in-place operator."""
        in_place(self._array, other)

    def __hash__(self) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(f"a {kind} is not hashable, as it compares elementwise; use id(variable) as the key")

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._array)

    def __contains__(self, item: Any) -> bool:
        return item in self._array

    def __bool__(self) -> bool:
        return bool(self._array)

    def __float__(self) -> float:
        return float(self._array)

    def __int__(self) -> int:
        return int(self._array)

    def __index__(self) -> int:
        return self._array.__index__()

    def __complex__(self) -> complex:
        return complex(self._array)

    # Attributes and methods.

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the elements."""
        return self._array.dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._array.size

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._array.ndim

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return self._array.nbytes

    @property
    def itemsize(self) -> int:
        """The bytes of an element."""
        return self._array.itemsize

    @property
    def T(self) -> Array:
        """The transposed value, a view."""
        return self._array.T

    @T.setter
    def T(self, view: Any) -> None:
        if not same_memory(view, self._array.T):
            raise AttributeError(f"{type(self).__name__}: T cannot be replaced; write into it")

    @property
    def flat(self) -> Any:
        """A flat iterator over the elements; assigning writes them."""
        return self._array.flat

    @flat.setter
    def flat(self, values: Any) -> None:
        self._array.flat[:] = unwrap_nested(values)

    sum: Callable[..., Any] = _method("sum", out=True)
    prod: Callable[..., Any] = _method("prod", out=True)
    mean: Callable[..., Any] = _method("mean", out=True)
    std: Callable[..., Any] = _method("std", out=True)
    var: Callable[..., Any] = _method("var", out=True)
    min: Callable[..., Any] = _method("min", out=True)
    max: Callable[..., Any] = _method("max", out=True)
    argmin: Callable[..., Any] = _method("argmin", out=True)
    argmax: Callable[..., Any] = _method("argmax", out=True)
    any: Callable[..., Any] = _method("any", out=True)
    all: Callable[..., Any] = _method("all", out=True)
    cumsum: Callable[..., Array] = _method("cumsum", out=True)
    dot: Callable[..., Any] = _method("dot", out=True)
    clip: Callable[..., Array] = _method("clip", out=True)
    round: Callable[..., Array] = _method("round", out=True)
    reshape: Callable[..., Array] = _method("reshape")
    transpose: Callable[..., Array] = _method("transpose")
    ravel: Callable[..., Array] = _method("ravel")
    flatten: Callable[..., Array] = _method("flatten")
    squeeze: Callable[..., Array] = _method("squeeze")
    astype: Callable[..., Array] = _method("astype")
    copy: Callable[..., Array] = _method("copy")
    view: Callable[..., Array] = _method("view")
    fill: Callable[..., None] = _method("fill")
    sort: Callable[..., None] = _method("sort")
    take: Callable[..., Array] = _method("take", out=True)
    item: Callable[..., Any] = _method("item")
    tolist: Callable[..., Any] = _method("tolist")


Operand = complex | np.generic | Array | Arraylike | Sequence[Any]
"""What operators turn into an array; objects of other libraries turn it into theirs."""

Index = SupportsIndex | slice | EllipsisType | Array | Arraylike | Sequence[Any] | None
"""An index of an array; of whole numbers only, it may give an element."""
