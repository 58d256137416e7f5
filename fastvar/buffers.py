"""The one gate for arrays: it checks dtype, layout, size, overlap and writability.

Every array passes here before compiled code touches it. If one does not fit, an error names it, and nothing has
been written.
"""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastvar import formats
from fastvar.slices import IndexedSlices, Rows
from fastvar.tables import count

Array = npt.NDArray[Any]

ALIGNMENT = 64  # bytes: a cache line and the widest vector; NumPy aligns to 16
PAGE = 4096
LARGE = 4 * PAGE  # for smaller arrays, one more page would be too much
# Large arrays begin at different offsets in a page, and none just after NumPy's own (gradients). A load waits for
# a store in progress if their addresses agree in the last 12 bits (4K aliasing).
_offsets = itertools.cycle(range(0, PAGE, PAGE // 4))
MOST_SUMS = 4  # that a plan takes of a variable
MOST_SLOTS = 8
REAL = (np.dtype(np.float32), np.dtype(np.float64))  # the dtypes that rules compute in


def trained(dtype: np.dtype[Any]) -> bool:
    """Return whether optimizers can update weights of `dtype`."""
    return dtype in REAL or formats.kept_beside(dtype) is not None


def arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which rules compute for weights of `dtype`."""
    return dtype if formats.kept_beside(dtype) is None else REAL[0]


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised C-contiguous array on a 64-byte boundary."""
    return _aligned(np.empty, shape, np.dtype(dtype))


def _aligned(new: Callable[..., Array], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an aligned array within a larger one from `new`, which is `np.empty` or `np.zeros`."""
    nbytes = math.prod(map(int, shape)) * dtype.itemsize
    boundary, offset = (PAGE, next(_offsets)) if nbytes >= LARGE else (ALIGNMENT, 0)
    raw = new(nbytes + boundary, np.uint8)
    start = (offset - raw.ctypes.data) % boundary
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def full(shape: tuple[int, ...], dtype: npt.DTypeLike, value: npt.ArrayLike) -> Array:
    """Return an aligned array holding `value`, which is broadcast."""
    if type(value) in (int, float) and not value:  # as `np.ndim` is slow
        return _aligned(np.zeros, shape, np.dtype(dtype))  # the system provides its memory on first use
    array = empty(shape, dtype)
    array[...] = value
    return array


def copy(array: Array) -> Array:
    """Return an aligned, native, C-contiguous copy."""
    array_copy = empty(array.shape, array.dtype.newbyteorder("="))
    array_copy[...] = array
    return array_copy


def writable_view(array: object, owner: str) -> Array:
    """Return a view of `array`, which must be fit to be written in place. Never copy.

    Raises
    ------
    TypeError
        If `array` is not a NumPy array, or its dtype is byte-swapped.
    ValueError
        If it is read-only, not C-contiguous or misaligned.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{owner}: must be a NumPy array to be used without a copy, got {type(array).__name__}")
    if not array.dtype.isnative:
        raise TypeError(f"{owner}: dtype must be of native byte order, got {array.dtype.str!r}")
    flags = array.flags
    if not flags.carray:
        missing = "C-contiguous" if not flags.c_contiguous else "writable" if flags.aligned else "aligned"
        raise ValueError(f"{owner}: array must be {missing} to be used without a copy")
    return array.view(np.ndarray)


def are_counts(numbers: Array) -> bool:
    """Return whether all numbers can be counts: whole, not negative and exact in float64."""
    return bool(((numbers >= 0) & (numbers <= 2.0**53) & (numbers == np.floor(numbers))).all())


def check_update(array: Array, like: Array, owner: str) -> None:
    """Check that a kernel may update `array` along with `like`: of its dtype and shape, and contiguous."""
    if not isinstance(array, np.ndarray) or array.dtype not in REAL:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{owner}: dtype must be float32 or float64, got {got}")
    writable_view(array, owner)
    if array.dtype != like.dtype or array.shape != like.shape:
        found = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"{owner}: must be {like.dtype} of shape {like.shape}, got {found}")


def check_weights(weights: Any, owner: str) -> Array:
    """Check that a kernel may update weights. Return an array of their shape and arithmetic dtype."""
    array, rest = weights if isinstance(weights, formats.Master) else (weights, None)
    kept = formats.kept_beside(array.dtype) if isinstance(array, np.ndarray) else None
    if kept is None and rest is None:
        check_update(array, array, owner)
        return array
    if kept is None or not formats.in_place(array.dtype):
        got = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{owner}: dtype must be {' or '.join(formats.OF_MASTERS)} with a master, got {got}")
    writable_view(array, owner)
    if rest is not None:
        writable_view(rest, f"{owner}: master")
        if rest.dtype != kept or rest.shape != array.shape:
            got = f"{rest.dtype} of shape {rest.shape}"
            raise ValueError(f"{owner}: master must be {kept} of shape {array.shape}, got {got}")
    elif array.dtype == np.float16:
        raise TypeError(f"{owner}: float16 must have a master")
    return np.broadcast_to(np.zeros((), REAL[0]), array.shape)


def check_slot(slot: Any, like: Array, owner: str) -> None:
    """Check that a kernel may update a slot of `like`: in its dtype, in bfloat16, or in 8 bits."""
    if isinstance(slot, formats.Codes):
        groups = formats.groups_of(like.size)
        check_update(slot.scales, np.empty(groups, np.float32), f"{owner}: scales")
        writable_view(slot.codes, f"{owner}: codes")
        if slot.codes.dtype != np.uint8 or slot.codes.shape != like.shape:
            got = f"{slot.codes.dtype} of shape {slot.codes.shape}"
            raise ValueError(f"{owner}: codes must be uint8 of shape {like.shape}, got {got}")
    elif (
        isinstance(slot, np.ndarray) and formats.name_of(slot.dtype) == "bfloat16" and formats.in_place(slot.dtype)
    ):
        writable_view(slot, owner)
        if slot.shape != like.shape:
            raise ValueError(f"{owner}: must have shape {like.shape}, got {slot.shape}")
    else:
        check_update(slot, like, owner)


def check_row_groups(like: Array, arrays: Sequence[Any], owner: str) -> None:
    """Raise ValueError if a sparse gradient of `like` would update a part of a group of an 8-bit slot."""
    if like[:1].size % formats.GROUP and any(isinstance(array, formats.Codes) for array in arrays):
        raise ValueError(
            f"{owner}: with slots in 8 bits, rows must have a multiple of {formats.GROUP} elements, got "
            f'{like[:1].size}; use slot_dtype="bfloat16", or a dense gradient'
        )


def as_gradient(gradient: Any, like: Array, owner: str, rows: bool = True) -> Any:
    """Return `gradient` as a contiguous native array of one of `formats.FORMATS` and of the shape of `like`.

    Anything that NumPy can read as real numbers is accepted: lists, integers, strided, byte-swapped and misaligned
    arrays, 8-bit floats, array protocols, DLPack. It is copied only if a kernel cannot read it in place. With
    `rows`, `IndexedSlices` and sparse matrices (objects with `tocsr`) are returned as `Rows`.

    Raises
    ------
    TypeError
        If it does not hold real numbers, or is sparse without `rows`.
    ValueError
        If its shape differs.
    """
    sparse = hasattr(type(gradient), "tocsr")
    if not sparse and not isinstance(gradient, IndexedSlices):
        return as_real(gradient, like.dtype, like.shape, owner)
    if not rows:
        raise TypeError(f"{owner}: must be dense for this rule, which needs all of it; got {gradient!r}")
    return as_rows(_rows_of_sparse(gradient, like, owner) if sparse else gradient, like, owner)


def dense(gradient: Any, like: Array, owner: str) -> Array:
    """Return `gradient`, sparse or not, as a new array in double precision; None is zeros."""
    values = np.zeros(like.shape)
    if gradient is not None:
        read = as_gradient(gradient, like, owner)
        if isinstance(read, Rows):
            np.add.at(values, read.rows, read.values.astype(np.float64))
        else:
            values[...] = read
    return values


def _rows_of_sparse(matrix: Any, like: Array, owner: str) -> IndexedSlices:
    if like.ndim != 2 or np.shape(matrix) != like.shape:
        raise ValueError(f"{owner}: must have shape {like.shape}, got {matrix!r}")
    try:
        return IndexedSlices.of_sparse(matrix)
    except Exception as error:  # a foreign tocsr may raise anything
        raise TypeError(f"{owner}: cannot be read as a sparse matrix ({error})") from error


def as_rows(gradient: IndexedSlices, like: Array, owner: str) -> Rows:
    """Return a sparse gradient of `like` as rows in the order given. A row may occur several times."""
    if like.ndim == 0 or gradient.dense_shape not in (None, like.shape):
        raise ValueError(f"{owner}: must be rows of an array of shape {like.shape}, got {gradient!r}")
    given = np.asarray(gradient.indices)
    if given.dtype.kind not in "iu" or given.ndim != 1:
        raise TypeError(f"{owner}: indices must be a vector of whole numbers, got {given.dtype}{given.shape}")
    rows = given.astype(np.intp)  # a copy that no other thread can change
    values = as_real(gradient.values, like.dtype, (rows.size, *like.shape[1:]), owner)
    if rows.size and (rows.min() < 0 or rows.max() >= len(like)):
        raise ValueError(f"{owner}: indices must be from 0 to {len(like) - 1}, got {rows.min()} to {rows.max()}")
    return Rows(rows, values)


def as_real(gradient: Any, arithmetic: np.dtype[Any], shape: tuple[int, ...], owner: str) -> Array:
    """Return a contiguous native array of `shape` in its own storage format, else in the `arithmetic` dtype."""
    try:
        array = np.asarray(gradient)
    except Exception as error:  # a foreign __array__ may raise anything
        raise TypeError(f"{owner}: cannot be read as an array ({error})") from error
    if array.dtype.kind not in "fiub" and not array.dtype.name.startswith(("bfloat", "float")):  # ml_dtypes
        got = reprlib.repr(gradient) if array.dtype == object else f"dtype {array.dtype}"
        raise TypeError(f"{owner}: must hold real numbers, got {got}")
    if array.shape != shape:
        raise ValueError(f"{owner}: must have shape {shape}, got {array.shape}")
    dtype = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):
        return np.require(array, dtype if formats.in_place(dtype) else arithmetic, ["C", "A", "E"])


MEMORY = np.dtype(
    [
        ("address", np.uintp),
        ("size", np.intp),  # elements
        ("format", np.intc),  # in `formats.FORMATS`; negative: nothing is there
        ("writable", np.intc),
    ],
)
"""Raw memory, of what is no NumPy array: contiguous numbers, whose owner keeps them alive while they are used."""


class _Exposed:
    """Memory that NumPy makes an array of."""

    def __init__(self, address: int, nbytes: int, writable: bool, keep: object) -> None:
        self.keep = keep
        data = (address, not writable)
        self.__array_interface__ = {"data": data, "shape": (nbytes,), "typestr": "|u1", "version": 3}


def array_at(memory: Any, owner: str, keep: object = None) -> Array:
    """Return the flat array of a record of `MEMORY`, which holds on to `keep`.

    Raises
    ------
    TypeError
        If there is no such format.
    ValueError
        If the address is that of nothing, or misaligned, or the size is negative.
    """
    address, size, number, writable = (int(field) for field in memory)
    if not 0 <= number < len(formats.FORMATS):
        raise TypeError(f"{owner}: must be of one of {', '.join(formats.FORMATS)}, got format {number}")
    name, width = [*formats.FORMATS.items()][number]
    if size < 0 or (size and not address):
        raise ValueError(f"{owner}: must be memory of some size, got size {size} at address {address}")
    if address % width:
        raise ValueError(f"{owner}: must be aligned to {count(width, 'byte')}, got address {address:#x}")
    dtype = formats.dtype_of(name)
    if not size:
        return np.empty(0, dtype)
    return np.asarray(_Exposed(address, size * width, bool(writable), keep)).view(dtype)


def gradient_at(memory: Any, like: Array, owner: str, zero: bool = False) -> Array | None:
    """Return the gradient of `like` that a record of `MEMORY` says, None if it says that there is none."""
    if memory["format"] < 0:
        return None
    array = array_at(memory, owner)
    if array.size != like.size:
        raise ValueError(f"{owner}: must have {count(like.size, 'element')}, got {array.size:,}")
    if zero and not array.flags.writeable:
        refuse_zeroing(owner)
    return array.reshape(like.shape)


class Extents:
    """The address ranges that a step writes, sorted: one bisection checks a gradient."""

    def __init__(self, arrays: Iterable[tuple[str, Array]]) -> None:
        found = [(name, a.ctypes.data, a.nbytes) for name, a in arrays if a.nbytes]
        rows = sorted((start, start + nbytes, name) for name, start, nbytes in found)
        for (_, end, first), (start, _, second) in pairwise(rows):
            if start < end:
                raise ValueError(f"{first} and {second} must not share memory")
        self.starts: Array = np.array([row[0] for row in rows], np.uintp)
        self.ends: Array = np.array([row[1] for row in rows], np.uintp)
        self.names: list[str] = [row[2] for row in rows]

    def refuse(self, array: Array, owner: str) -> None:
        """Raise ValueError if the memory of the contiguous `array` overlaps any of the ranges."""
        self.refuse_at(array.ctypes.data, array.nbytes, owner)

    def refuse_at(self, start: int, nbytes: int, owner: str) -> None:
        """Raise ValueError if so many bytes from an address overlap any of the ranges."""
        if not nbytes:
            return
        at = int(np.searchsorted(self.ends, start, side="right"))
        if at < len(self.names) and int(self.starts[at]) < start + nbytes:
            raise ValueError(f"{owner}: must not share memory with {self.names[at]}; pass a copy of it")


@dataclass(frozen=True)
class PlanTable:
    """The checked contents of a plan: weights, the arrays of every variable, groups, written memory."""

    likes: list[Array]  # of the shapes that gradients must have, and the dtypes that rules compute in
    arrays: list[tuple[Any, ...]]  # weights, average or None, direction or None, slots
    group_of: list[int]
    rules: list[Any]  # one per group
    sums: list[Sequence[tuple[str | int, ...]]]
    direct: list[bool]
    extents: Extents
    native: bool  # whether rules use all arrays in place


def plan_table(
    owner: str,
    rule: Any,
    names: Sequence[str],
    weights: Iterable[Array | formats.Master],
    slots: Iterable[Sequence[Array | formats.Codes]],
    group_of: Iterable[int],
    averages: Iterable[Array | None] | None,
    directions: Iterable[Array | None] | None,
    sums: Sequence[Sequence[tuple[str | int, ...]]] | None,
    direct: Sequence[bool] | None,
) -> PlanTable:
    """Check every array that a plan writes, so that compiled code can trust its pointers."""
    weights, slots, group_of = list(weights), list(slots), [int(group) for group in group_of]
    nothing: list[Any] = [None] * len(weights)
    averages = nothing if averages is None else list(averages)
    directions = nothing if directions is None else list(directions)
    columns = names, weights, averages, directions, slots, group_of
    if len({*map(len, columns)}) != 1:
        raise ValueError(f"{owner}: names, variables, slots, groups and averages must be equal in number")
    if not all(0 <= group < len(weights) for group in group_of):
        raise ValueError(f"{owner}: groups must be numbered from 0 and not exceed the variables in number")
    groups = max(group_of, default=0) + 1
    rules = [rule] * groups if hasattr(rule, "slots") else rule
    if not isinstance(rules, (list, tuple)):
        raise TypeError(f"{owner}: rule must be one of RULES, or a list of them, got {rule!r}")
    if len(rules) != groups:
        raise ValueError(f"{owner}: must be given {count(groups, 'rule')}, one for each group, got {len(rules)}")
    sums, direct = sums or [()] * groups, direct or [False] * groups
    if len(sums) != groups or len(direct) != groups:
        raise ValueError(f"{owner}: sums and direct must be given for {count(groups, 'group')}")
    rows: list[tuple[Any, ...]] = []
    likes: list[Array] = []
    written: list[tuple[str, Array]] = []
    for name, w, average, direction, own_slots, group in zip(*columns, strict=True):
        given, taken = len(own_slots), len(rules[group].slots)
        if given < taken or (given > taken and not sums[group]) or given > MOST_SLOTS:
            wanted = ", ".join(rules[group].slots)
            raise ValueError(f"{owner}: {name} must have the slots ({wanted}), got {given}")
        if sums[group]:
            _check_sums(f"{owner}: {name}", sums[group], given)
        like = check_weights(w, f"{owner}: {name}")
        likes.append(like)
        written += [(f"{owner}: {name}", array) for array in (w if isinstance(w, formats.Master) else [w])]
        for what, array in (("average", average), ("direction", direction)):
            if array is not None:
                check_update(array, like, label := f"{owner}: {what} of {name}")
                written.append((label, array))
        for k, slot in enumerate(own_slots):
            label = f"{owner}: slot {k} of {name}"
            (check_slot if k < taken else check_update)(slot, like, label)
            written += [(label, array) for array in (slot if isinstance(slot, formats.Codes) else [slot])]
        rows.append((w, average, direction, *own_slots))
    stored = [array for row in rows for array in (row[0], *row[3:])]
    native = all(isinstance(array, np.ndarray) and array.dtype in REAL for array in stored)
    return PlanTable(likes, rows, group_of, list(rules), list(sums), list(direct), Extents(written), native)


def cohort_rules(owner: str, cohort_of: Sequence[int], rule_of: Sequence[Any]) -> list[Any]:
    """Return the rule of each cohort of variables; -1 is no cohort."""
    if len(cohort_of) != len(rule_of):
        variables = count(len(rule_of), "variable")
        raise ValueError(f"{owner}: must be given cohorts of {variables}, got {len(cohort_of)}")
    rules: dict[int, Any] = {}
    for cohort, rule in zip(cohort_of, rule_of, strict=True):
        if cohort != -1 and rules.setdefault(cohort, rule) is not rule:
            raise ValueError(f"{owner}: the variables of a cohort must have one rule")
    if sorted(rules) != [*range(len(rules))]:
        raise ValueError(f"{owner}: cohorts must be numbered from 0, got {sorted(rules)}")
    return [rules[cohort] for cohort in range(len(rules))]


def _check_sums(owner: str, sums: Sequence[Any], slots: int) -> None:
    known = {"weights", "gradient", "direction", *range(slots)}
    if len(sums) > MOST_SUMS:
        raise ValueError(f"{owner}: at most {MOST_SUMS} sums can be taken, got {len(sums)}")
    for product in sums:
        if not (isinstance(product, tuple) and 1 <= len(product) <= 2 and {*product} <= known):
            raise ValueError(f"{owner}: a sum must be of one or two of {known}, got {product!r}")


def check_rows(owner: str, rows: object, values: object) -> None:
    """Check that a kernel can sort rows and add their values: whole numbers from 0, and values for each."""
    if not (isinstance(rows, np.ndarray) and rows.dtype == np.intp and rows.flags.c_contiguous and rows.ndim == 1):
        raise TypeError(f"{owner}: must be given row numbers as a contiguous vector")
    if not (isinstance(values, np.ndarray) and formats.in_place(values.dtype) and values.flags.c_contiguous):
        raise TypeError(f"{owner}: must be given contiguous values, of {', '.join(formats.FORMATS)}")
    if values.shape[:1] != rows.shape or rows.min(initial=0) < 0:
        raise ValueError(f"{owner}: must be given row numbers from 0, and values for each")


def refuse_scalars(owner: str, rule: Any, given: Sequence[object]) -> NoReturn:
    """Raise the error for a rule that gets too few or too many scalars."""
    raise ValueError(f"{owner}: scalars must be ({', '.join(rule.scalars)}), got {count(len(given), 'number')}")


def refuse_copy(target: object, source: object) -> NoReturn:
    """Raise the error for arrays that a kernel cannot copy byte by byte."""
    for what, array in (("target", target), ("source", source)):
        if not (isinstance(array, np.ndarray) or (array is source and type(array) is bytes)):
            raise TypeError(f"copy: {what} must be a NumPy array, got {type(array).__name__}")
        if isinstance(array, np.ndarray) and (array.dtype.hasobject or not array.flags.c_contiguous):
            raise TypeError(f"copy: {what} must be a contiguous array of numbers")
    raise ValueError("copy: must be given a writable target, and a source of as many bytes that does not overlap")


def refuse_zeroing(owner: str) -> NoReturn:
    """Raise the error for a gradient that cannot be zeroed in place."""
    raise ValueError(f"{owner}: must be a writable contiguous array to be zeroed in place")


def refuse_changed(owner: str) -> NoReturn:
    """Raise the error for a gradient that was resized while later ones were read."""
    raise ValueError(f"{owner}: must not change while the gradients are read")


def check_disjoint(arrays: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError if two of the named arrays share memory."""
    Extents((name, array) for name, array in arrays if array is not None)
