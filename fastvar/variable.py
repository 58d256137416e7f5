"""Variables (layer 4): named, trainable places in memory that behave like NumPy arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.constraints import Constraint
from fastvar.regularizers import Regularizer
from fastvar.slices import IndexedSlices


class Structure:
    """A number that changes with what optimizers build their plans on, so that a step checks no more."""

    version = 0
    numbers = itertools.count(1)  # each is taken once, also by threads


def _planned(name: str, doc: str) -> Any:
    """Make a settable attribute whose change makes every optimizer plan anew."""
    private = f"_{name}"

    def get(self: Any) -> Any:
        return getattr(self, private)

    def set_(self: Any, value: Any) -> None:
        own, checked, number = vars(self), _CHECKS[name](value, self._label), next(Structure.numbers)
        own[private], Structure.version = checked, number  # stores alone: no signal comes between them

    return property(get, set_, doc=doc)


def _check_trainable(value: Any, owner: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{owner}: trainable must be True or False, got {value!r}")
    return bool(value)


def _check_regularizer(value: Any, owner: str) -> Any:
    if value is not None and not isinstance(value, Regularizer):
        raise TypeError(f"{owner}: regularizer must be one of fastvar.regularizers or None, got {value!r}")
    return value


def _check_constraint(value: Any, owner: str) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{owner}: constraint must be callable or None, got {value!r}")
    return value


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "trainable": _check_trainable,
    "regularizer": _check_regularizer,
    "constraint": _check_constraint,
}


def _array_method(name: str) -> Any:
    def method(self: Variable, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.value, name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"Same as :meth:`numpy.ndarray.{name}` of the value."
    return method


class Variable(np.lib.mixins.NDArrayOperatorsMixin):
    """A named place in memory that a program trains.

    It behaves like the array that it holds (operators, ufuncs also with `out=`, indexing, reductions,
    `np.asarray` and DLPack without a copy), and differs in being a place: its buffer never moves, and
    `assign`, `+=` and `v[...] =` write into it. Comparisons are elementwise.

    Parameters
    ----------
    initial_value : array_like or callable
        The first value. A callable is called with `(shape, dtype)` if `shape` is given, else with nothing.
    trainable : bool
        Whether optimizers update it. Settable at any time, and honoured at every step.
    name : str, optional
        Its name in checkpoints and messages. Variables without one are named by their path in a
        `Module`, or by the keyword and position under which a checkpoint receives them.
    dtype : dtype, optional
        By default that of the initial value as NumPy sees it (Python floats are float64). Optimizers
        update float32 and float64.
    shape : tuple of int, optional
        The shape; a scalar initial value fills it, an array must have it.
    regularizer : Regularizer, optional
        Penalty from `fastvar.regularizers`, added to the gradient by the optimizer.
    constraint : callable, optional
        Projection from `fastvar.constraints`, or any callable from array to array of the same shape,
        applied after every update.
    copy : bool
        False wraps the given array itself: the caller sees every update.

    Raises
    ------
    TypeError
        If the dtype is not boolean or numeric.
    ValueError
        If the shape does not fit, or `copy=False` and the array cannot be written in place.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> w = fv.Variable(np.zeros(3, np.float32), name="w")
    >>> w += 1
    >>> w
    <fastvar.Variable 'w' shape=(3,) dtype=float32, value=[1. 1. 1.]>
    >>> float((w * 2).sum())
    6.0
    """

    def __init__(
        self,
        initial_value: npt.ArrayLike | Callable[..., npt.ArrayLike] | Variable,
        trainable: bool = True,
        name: str | None = None,
        dtype: npt.DTypeLike | None = None,
        shape: tuple[int, ...] | int | None = None,
        regularizer: Regularizer | None = None,
        constraint: Constraint | Callable[[Array], npt.ArrayLike] | None = None,
        copy: bool = True,
    ) -> None:
        _check_name(name)
        self._name = name
        self._path: str | None = None
        label = self._label
        shape = (int(shape),) if isinstance(shape, (int, np.integer)) else shape
        if callable(initial_value) and not isinstance(initial_value, Variable):
            initial_value = initial_value() if shape is None else initial_value(shape, dtype)
        self._array = _buffer(initial_value, dtype, shape, copy, label)
        self._grad: Any = None
        self._trainable = _check_trainable(trainable, label)
        self._regularizer = _check_regularizer(regularizer, label)
        self._constraint = _check_constraint(constraint, label)

    trainable: bool = _planned("trainable", "Whether optimizers update it, from their next step on.")
    regularizer: Regularizer | None = _planned("regularizer", "The penalty in its gradient, or None.")
    constraint: Callable[[Array], npt.ArrayLike] | None = _planned("constraint", "Its projection, or None.")

    @property
    def _label(self) -> str:
        return f"Variable {self.name!r}" if self.name else "Variable"

    @property
    def name(self) -> str | None:
        """The given name, else the path in the `Module` it was last listed by, else None."""
        return self._name or self._path

    # What it holds.

    @property
    def value(self) -> Array:
        """The array itself, not a copy: writing into it writes into the variable."""
        return self._array.view()

    def numpy(self) -> Array:
        """Return the value as an array that later updates do not change (a copy)."""
        return self._array.copy()

    @property
    def grad(self) -> Any:
        """The gradient that `Optimizer.step` will use: an array of its shape, IndexedSlices, or None."""
        return self._grad

    @grad.setter
    def grad(self, gradient: Any) -> None:
        if not (gradient is None or isinstance(gradient, IndexedSlices)) and np.shape(gradient) != self.shape:
            raise ValueError(f"{self._label}: grad must have shape {self.shape}, got {np.shape(gradient)}")
        self._grad = gradient

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def size(self) -> int:
        return self._array.size

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    @property
    def itemsize(self) -> int:
        return self._array.itemsize

    @property
    def T(self) -> Array:
        """The transposed value, a view."""
        return self._array.T

    # Writing into it.

    def assign(self, value: npt.ArrayLike | Variable) -> Self:
        """Write `value`, of the same shape, into the variable, and return the variable.

        Raises
        ------
        ValueError
            If the shape differs (`v[...] = value` broadcasts).
        TypeError
            If the dtype cannot be cast within the same kind.
        """
        return self._write(None, value)

    def assign_add(self, delta: npt.ArrayLike | Variable) -> Self:
        """Add `delta`, of the same shape, and return the variable."""
        return self._write(np.add, delta)

    def assign_sub(self, delta: npt.ArrayLike | Variable) -> Self:
        """Subtract `delta`, of the same shape, and return the variable."""
        return self._write(np.subtract, delta)

    def _write(self, operation: np.ufunc | None, value: Any) -> Self:
        array = np.asarray(value)
        if array.shape != self.shape:
            raise ValueError(f"{self._label}: value must have shape {self.shape}, got {array.shape}")
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise TypeError(f"{self._label}: value must be castable to {self.dtype}, got {array.dtype}")
        if operation is None:
            self._array[...] = array
        else:
            operation(self._array, array, out=self._array, casting="unsafe")
        return self

    def scatter_update(self, indices: npt.ArrayLike, updates: npt.ArrayLike) -> Self:
        """Write `updates` into the rows `indices` (first axis); of duplicates the last one stays."""
        rows, values = self._rows(indices, updates)
        self._array[rows] = values
        return self

    def scatter_add(self, indices: npt.ArrayLike, updates: npt.ArrayLike) -> Self:
        """Add `updates` to the rows `indices` (first axis); duplicates add up."""
        rows, values = self._rows(indices, updates)
        np.add.at(self._array, rows, values)
        return self

    def scatter_sub(self, indices: npt.ArrayLike, updates: npt.ArrayLike) -> Self:
        """Subtract `updates` from the rows `indices` (first axis); duplicates add up."""
        rows, values = self._rows(indices, updates)
        np.subtract.at(self._array, rows, values)
        return self

    def _rows(self, indices: npt.ArrayLike, updates: npt.ArrayLike) -> tuple[Array, Array]:
        rows = np.asarray(indices)
        if rows.size == 0:
            rows = rows.astype(np.intp)
        if self.ndim == 0 or rows.dtype.kind not in "iu":
            raise TypeError(f"{self._label}: rows must be whole numbers, got {rows.dtype} for {self.shape}")
        if rows.size and not (-len(self) <= rows.min() and rows.max() < len(self)):
            got = f"{rows.min()} to {rows.max()}"
            raise IndexError(f"{self._label}: rows must be below {len(self)}, got {got}")
        wanted = rows.shape + self.shape[1:]
        values = np.asarray(updates)
        try:
            return rows, np.broadcast_to(values, wanted).astype(self.dtype, casting="same_kind")
        except (ValueError, TypeError) as error:
            must = f"be castable to {self.dtype} and of shape {wanted}"
            got = f"{values.dtype} of shape {values.shape}"
            raise type(error)(f"{self._label}: updates must {must}, got {got}") from None

    # Being an array.

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.value, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out", ())
        kwargs = {name: _unwrapped(value) for name, value in kwargs.items()}
        if out:
            kwargs["out"] = tuple(map(_unwrapped, out))
        result = getattr(ufunc, method)(*map(_unwrapped, inputs), **kwargs)
        if not any(isinstance(x, Variable) for x in out):
            return result
        if len(out) == 1:
            return out[0]
        return tuple(x if x is not None else y for x, y in zip(out, result, strict=True))

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.value.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __getitem__(self, key: Any) -> Any:
        return self._array[_unwrapped(key)]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._array[_unwrapped(key)] = value

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

    def __format__(self, spec: str) -> str:
        return format(self._array, spec) if spec else str(self)

    def __hash__(self) -> NoReturn:
        raise TypeError("a Variable is not hashable, as it compares elementwise; use id(variable) as the key")

    sum = _array_method("sum")
    prod = _array_method("prod")
    mean = _array_method("mean")
    std = _array_method("std")
    var = _array_method("var")
    min = _array_method("min")
    max = _array_method("max")
    argmin = _array_method("argmin")
    argmax = _array_method("argmax")
    any = _array_method("any")
    all = _array_method("all")
    cumsum = _array_method("cumsum")
    dot = _array_method("dot")
    clip = _array_method("clip")
    round = _array_method("round")
    reshape = _array_method("reshape")
    transpose = _array_method("transpose")
    ravel = _array_method("ravel")
    flatten = _array_method("flatten")
    squeeze = _array_method("squeeze")
    astype = _array_method("astype")
    copy = _array_method("copy")
    fill = _array_method("fill")
    sort = _array_method("sort")
    take = _array_method("take")
    item = _array_method("item")
    tolist = _array_method("tolist")

    # Copies: a place of its own, without the gradient.

    def __reduce__(self) -> tuple[Any, ...]:
        options = (self._trainable, self._name, None, None, self._regularizer, self._constraint)
        return type(self), (self._array.copy(), *options), {"_path": self._path}

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        frozen = "" if self.trainable else ", frozen"
        summary = np.array2string(self._array, threshold=6, edgeitems=2, precision=4, separator=" ")
        value = " ".join(summary.split())
        return f"<fastvar.Variable{name} shape={self.shape} dtype={self.dtype}{frozen}, value={value}>"


def _unwrapped(x: Any) -> Any:
    return x._array if isinstance(x, Variable) else x


def _check_name(name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"Variable: name must be a string, got {name!r}")
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise ValueError(f"Variable: name must be like 'encoder/0/kernel', got {name!r}")


def _buffer(value: Any, dtype: Any, shape: tuple[int, ...] | None, copy: bool, label: str) -> Array:
    if not copy:
        array = buffers.place(_unwrapped(value), label)
        if dtype is not None and np.dtype(dtype) != array.dtype:
            raise ValueError(f"{label}: dtype must be {array.dtype} without a copy, got {np.dtype(dtype)}")
    else:
        array = np.asarray(value, dtype=dtype)
    if array.dtype.kind not in "biufc" and not array.dtype.name.startswith(("bfloat", "float")):  # ml_dtypes
        raise TypeError(f"{label}: dtype must be boolean or numeric, got {array.dtype}")
    if shape is not None and array.shape != tuple(shape):
        if array.ndim or not copy:
            raise ValueError(f"{label}: initial value must have shape {tuple(shape)}, got {array.shape}")
        array = np.broadcast_to(array, shape)
    return buffers.copy(array) if copy else array
