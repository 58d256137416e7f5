"""Variables: named, trainable NumPy arrays whose memory never moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from fastvar import buffers
from fastvar.arraylike import Arraylike, same_memory, unwrap, unwrap_nested
from fastvar.buffers import Array
from fastvar.constraints import Constraint
from fastvar.formats import Master, dtype_of, kept_beside, name_of
from fastvar.hyper import declares_attribute, suggestion
from fastvar.initializers import Initializer
from fastvar.masters import join, parted, rest_of, split
from fastvar.place import Structure
from fastvar.regularizers import Regularizer
from fastvar.slices import IndexedSlices
from fastvar.tables import Table

FEW_ELEMENTS = 100  # the most that a notebook shows


def _planned(name: str, doc: str) -> Any:
    """Make a settable attribute. A change of it makes every optimizer plan again."""
    private = f"_{name}"

    def set_(self: Any, value: Any) -> None:
        own, checked, version = vars(self), _CHECKS[name](value, self._label), object()
        own[private], Structure.version = checked, version  # two stores, between which no signal is handled

    return property(attrgetter(private), set_, doc=doc)


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
_SETTABLE = {name: name for name in (*_CHECKS, "grad")}


_ELSEWHERE = {  # attributes of variables and tensors of TensorFlow, PyTorch and JAX, and what to use
    **dict.fromkeys(("eval", "read_value", "detach", "cpu", "data"), "use value, the array, or numpy(), a copy"),
    **dict.fromkeys(("initializer", "initialized_value", "load"), "there are no graphs: use value and assign"),
    **dict.fromkeys(("get_shape", "set_shape"), "use shape"),
    **dict.fromkeys(("requires_grad", "requires_grad_"), "use trainable"),
    "op": "there are no graphs",
    "backward": 'use optimizer.minimize(loss, variables, gradients="autograd"), or "jax" or "torch"',
    "zero_": "use assign, or v[...] = 0",
    "copy_": "use assign",
    "at": "assign elements: v[i] = x",
}


class Variable(Arraylike):
    """A named array that a program trains.

    It behaves like a NumPy array: operators, ufuncs (also with `out=`), indexing, reductions, and `np.asarray`
    and DLPack without a copy. Unlike an array's, its buffer never moves: `assign`, `+=` and `v[...] =` write
    into it. Comparisons are elementwise. Operators with `scipy.sparse`, JAX or pandas give the same as with the
    array; with PyTorch's tensors they give a tensor.

    Parameters
    ----------
    initial_value : array_like or callable
        The first value. A callable, such as one of `fastvar.initializers`, is called with `(shape, dtype)` if
        `shape` is given, else without arguments.
    trainable : bool
        Whether optimizers update it. Can be set at any time; the next step follows it.
    name : str, optional
        Its name in checkpoints and messages. A variable without a name is named by its path in a
        `Module`, or by the keyword and position under which a checkpoint receives it.
    dtype : dtype, optional
        By default that of the initial value as a NumPy array (Python floats are float64). Optimizers
        update float32 and float64, and float16 and "bfloat16" by way of float32: see `master`.
    shape : tuple of int, optional
        The shape. A scalar initial value fills it; an array must have it.
    regularizer : Regularizer, optional
        Penalty from `fastvar.regularizers`, added to the gradient by the optimizer.
    constraint : callable, optional
        Projection from `fastvar.constraints`, or any callable from array to array of the same shape,
        applied after every update.
    copy : bool
        False uses the memory of the given array: the caller sees every update.

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

    _name: str | None
    _path: str | None
    _array: Array
    _master: Variable | None
    _grad: Any
    _trainable: bool
    _regularizer: Regularizer | None
    _constraint: Callable[[Array], npt.ArrayLike] | None

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
        label = f"Variable {name!r}" if name else "Variable"
        shape = (int(shape),) if isinstance(shape, (int, np.integer)) else shape
        dtype = None if dtype is None else dtype_of(dtype)
        if callable(initial_value) and not isinstance(initial_value, Variable):
            _check_initializer(initial_value, shape, label)
            initial_value = initial_value() if shape is None else initial_value(shape, dtype)
        vars(self).update(  # in half the time of as many assignments, which `__setattr__` checks
            _name=name,
            _path=None,
            _array=_buffer(initial_value, dtype, shape, copy, label),
            _master=None,
            _grad=None,
            _trainable=_check_trainable(trainable, label),
            _regularizer=_check_regularizer(regularizer, label),
            _constraint=_check_constraint(constraint, label),
        )

    trainable: bool = _planned("trainable", "Whether optimizers update it, from the next step on.")
    regularizer: Regularizer | None = _planned("regularizer", "The penalty added to its gradient, or None.")
    constraint: Callable[[Array], npt.ArrayLike] | None = _planned(
        "constraint", "Its projection after updates, or None."
    )

    if not TYPE_CHECKING:  # with a __setattr__, type checkers allow every name

        def __setattr__(self, name: str, value: Any) -> None:
            if not (name[0] == "_" or name in _SETTABLE or declares_attribute(type(self), name)):
                raise AttributeError(f"{self._label}: no attribute {name!r}{suggestion(name, _SETTABLE)}")
            object.__setattr__(self, name, value)

        def __getattr__(self, name: str) -> Any:
            hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    @property
    def _label(self) -> str:
        return f"Variable {self.name!r}" if self.name else "Variable"

    @property
    def name(self) -> str | None:
        """The given name, else its path in the `Module` that last listed it, else None."""
        return self._name or self._path

    # The value.

    @property
    def value(self) -> Array:
        """A view of the array: writing into it writes into the variable."""
        return self._array.view()

    @value.setter
    def value(self, array: Array) -> None:
        if not same_memory(array, self._array):  # `w.value += 1` has already written
            raise AttributeError(f"{self._label}: value cannot be replaced; write into it: .assign(...)")

    @property
    def memory(self) -> Array | Master:
        """The memory that optimizers update: the array, or with what a master keeps."""
        return self.value if self._master is None else Master(self.value, self._master.value)

    @property
    def master(self) -> Array | None:
        """The float32 numbers of which a variable of 16 bits shows the rounded ones, as a new array, or None.

        An optimizer with `master=True` makes them, from the value at that time, and updates them. `assign`,
        indexing, operators such as `+=` and a restore write them, too. A write into `value`, or with `out=`,
        writes the rounded numbers alone. In float16 these count from then on. In bfloat16 the lower 16 bits of the
        old number stay, which is at most half the distance to the next bfloat16.
        """
        return None if self._master is None else join(Master(self._array, self._master._array))

    def _keep_master(self) -> None:
        """Make the master of a variable of 16 bits, if there is none."""
        if self._master is None and kept_beside(self.dtype) is not None:
            self._renew_master()

    def _renew_master(self) -> None:
        self._take_master(Variable(rest_of(self._array), False, copy=False))

    def _take_master(self, kept: Variable) -> None:
        self._master, Structure.version = kept, object()

    def numpy(self) -> Array:
        """Return a copy of the value, which later updates do not change."""
        return self._array.copy()

    @property
    def grad(self) -> Any:
        """The gradient that `Optimizer.step` uses: an array of the same shape, IndexedSlices, or None."""
        return self._grad

    @grad.setter
    def grad(self, gradient: Any) -> None:
        if not (gradient is None or isinstance(gradient, IndexedSlices)):
            shape = gradient.shape if isinstance(gradient, np.ndarray) else np.shape(gradient)
            if shape != self._array.shape:
                raise ValueError(f"{self._label}: grad must have shape {self.shape}, got {shape}")
        vars(self)["_grad"] = gradient

    def _zeroing(self, gradient: Any) -> tuple[Any, Any]:
        """Return how to zero a gradient: the target and its value. A sparse gradient is zeroed by dropping it."""
        zero = None
        if not (gradient is None or isinstance(gradient, IndexedSlices)):
            try:
                memory = gradient if isinstance(gradient, np.ndarray) else np.from_dlpack(gradient)
            except Exception:  # whatever a foreign __dlpack__ raises
                memory = None
            if memory is not None and memory.flags.writeable and memory.dtype.kind in "biufcV":
                return memory, np.zeros((), memory.dtype)
            zero = np.zeros(self.shape, self.dtype)
        return self, {"_grad": zero}

    # Writing.

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
        with self._numbers() as numbers:
            if operation is None:
                numbers[...] = array
            else:
                operation(numbers, array, out=numbers, casting="unsafe")
        return self

    @contextmanager
    def _numbers(self) -> Iterator[Array]:
        """Give the numbers to change: the array, or of a variable with a master the float32 ones."""
        if self._master is None:
            yield self._array
            return
        numbers = self.master
        yield numbers  # type: ignore[misc]
        split(Master(self._array, self._master._array), numbers)  # type: ignore[arg-type]

    def _change(self, in_place: Callable[[Array, Any], object], other: Any) -> None:
        with self._numbers() as numbers:
            in_place(numbers, other)

    @property
    def flat(self) -> Any:
        """A flat iterator over the elements of the value; assigning writes them."""
        return self._array.flat

    @flat.setter
    def flat(self, values: Any) -> None:
        with self._numbers() as numbers:
            numbers.flat[:] = unwrap_nested(values)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._master is None:
            self._array[unwrap(key)] = value
            return
        key = unwrap(key)  # only these elements: they may be few
        new = np.empty(self._array[key].shape, np.float32)
        new[...] = value
        self._array[key], self._master._array[key] = parted(self._array, new)

    def scatter_update(self, indices: npt.ArrayLike, updates: npt.ArrayLike) -> Self:
        """Write `updates` into the rows `indices` (first axis); of duplicates, the last one wins."""
        rows, values = self._rows(indices, updates)
        self[rows] = values
        return self

    def scatter_add(self, indices: npt.ArrayLike, updates: npt.ArrayLike) -> Self:
        """Add `updates` to the rows `indices` (first axis); duplicates add up."""
        rows, values = self._rows(indices, updates)
        with self._numbers() as numbers:
            np.add.at(numbers, rows, values)
        return self

    def scatter_sub(self, indices: npt.ArrayLike, updates: npt.ArrayLike) -> Self:
        """Subtract `updates` from the rows `indices` (first axis); duplicates add up."""
        rows, values = self._rows(indices, updates)
        with self._numbers() as numbers:
            np.subtract.at(numbers, rows, values)
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
        dtype = self.dtype if self._master is None else np.dtype(np.float32)
        try:
            return rows, np.broadcast_to(values, wanted).astype(dtype, casting="same_kind")
        except (ValueError, TypeError) as error:
            must = f"be castable to {self.dtype} and of shape {wanted}"
            got = f"{values.dtype} of shape {values.shape}"
            raise type(error)(f"{self._label}: updates must {must}, got {got}") from None

    # Copies have memory of their own, and no gradient.

    def __reduce__(self) -> tuple[Any, ...]:
        options = (self._trainable, self._name, None, None, self._regularizer, self._constraint)
        state = {"_path": self._path, "_master": copy.copy(self._master)}
        return type(self), (self._array.copy(), *options), state

    def __format__(self, spec: str) -> str:
        return format(self._array, spec) if spec else str(self)

    def _repr_html_(self) -> str:
        rows: list[tuple[str, Any]] = [("shape", str(self.shape)), ("dtype", str(self.dtype))]
        rows += [("bytes", self.nbytes), ("trainable", self.trainable)]
        rows += [("regularizer", self.regularizer), ("constraint", self.constraint)]
        values = ""
        if self.size <= FEW_ELEMENTS:
            values = np.array2string(self._array, separator=", ", precision=6)
        elif self.dtype.kind in "fiu":
            with np.errstate(all="ignore"):
                rows += [(name, float(getattr(self._array, name)())) for name in ("min", "mean", "max")]
        return Table(self._label, ("", ""), [row for row in rows if row[1] is not None], values)._repr_html_()

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        frozen = "" if self.trainable else ", frozen"
        summary = np.array2string(self._array, threshold=6, edgeitems=2, precision=4, separator=" ")
        value = " ".join(summary.split())
        return f"<fastvar.Variable{name} shape={self.shape} dtype={self.dtype}{frozen}, value={value}>"


_NOT_IN_NAMES = frozenset(("", ".", ".."))


def _check_name(name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"Variable: name must be a string, got {name!r}")
    if not _NOT_IN_NAMES.isdisjoint(name.split("/")) or "\0" in name:
        raise ValueError(f"Variable: name must be like 'encoder/0/kernel', got {name!r}")


def _check_initializer(make: Any, shape: Any, owner: str) -> None:
    if isinstance(make, type) and issubclass(make, Initializer):
        raise TypeError(f"{owner}: initial value is the class {make.__name__}; write {make.__name__}(...)")
    if isinstance(make, Initializer) and shape is None:
        raise TypeError(f"{owner}: shape is missing, which {make!r} needs")


def _buffer(value: Any, dtype: Any, shape: tuple[int, ...] | None, copy: bool, label: str) -> Array:
    if not copy:
        array = buffers.writable_view(unwrap(value), label)
        if dtype is not None and np.dtype(dtype) != array.dtype:
            raise ValueError(f"{label}: dtype must be {array.dtype} without a copy, got {np.dtype(dtype)}")
    else:
        array = np.asarray(value, dtype=dtype)
    if array.dtype.kind not in "biufc" and not name_of(array.dtype).startswith(("bfloat", "float")):  # ml_dtypes
        raise TypeError(f"{label}: dtype must be boolean or numeric, got {array.dtype}")
    if shape is not None and array.shape != tuple(shape):
        if array.ndim or not copy:
            raise ValueError(f"{label}: initial value must have shape {tuple(shape)}, got {array.shape}")
        array = np.broadcast_to(array, shape)
    return buffers.copy(array) if copy else array
