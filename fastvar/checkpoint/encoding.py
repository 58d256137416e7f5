"""Encodes state as JSON and arrays, and decodes it to the exact types of all values.

JSON itself keeps None, bool, int, float, str, lists and dicts. Other values are dicts with a reserved key:
`$array`, the name of a tensor (and `layout`: F for Fortran order, > for the byte order that is not the machine's);
`$scalar`, the dtype and value of a NumPy scalar; `$same`, the path of a list, dict or array that stands in a
second place, so that both places hold one object again.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.checkpoint.file_format import EXTENDED, NATIVE

ARRAY, SCALAR, SAME = "$array", "$scalar", "$same"
_RESERVED = {ARRAY, SCALAR, SAME}
_PLAIN = {type(None), bool, int, float, str}
_NUMBERS = _PLAIN - {str}
_DIGITS = 4300  # of an integer; Python reads back no more
_TOO_LONG: int = 10**_DIGITS
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # JSON reads a pair as one character
_KINDS = "None, a bool, int, float, str, list, dict or array of numbers, and of no subclass"
Path = tuple[str | int, ...]


def encode(value: Any, arrays: dict[str, Array]) -> Any:
    """Return `value` as JSON, with copies of its arrays in `arrays`. Other types are left as they are."""
    return _Encoder(arrays).encode(value, ())


class _Encoder:
    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays
        self._paths: dict[int, Path] = {}  # of the lists, dicts and arrays so far, by id

    def encode(self, value: Any, path: Path) -> Any:
        kind = type(value)
        if kind is list or kind is dict or (kind is np.ndarray and _is_kept(value.dtype)):
            first = self._paths.setdefault(id(value), path)
            if not first and path:
                raise ValueError(f"Checkpoint: state must not contain itself, as it does at {[*path]}")
            if first is not path:
                return {SAME: [*first]}
            return self._array(value) if kind is np.ndarray else self._container(value, path)
        if isinstance(value, np.generic) and _is_kept(value.dtype) and kind is value.dtype.type:
            return {SCALAR: [value.dtype.name, _parts(value)]}
        return value

    def _container(self, value: Any, path: Path) -> Any:
        if type(value) is list:
            if {*map(type, value)} <= _PLAIN:
                return value.copy()
            return [self.encode(item, (*path, i)) for i, item in enumerate(value)]
        if not _RESERVED.isdisjoint(value):
            key = min(_RESERVED.intersection(value))
            raise ValueError(f"Checkpoint: the key {key!r} is reserved; state cannot have it")
        return {k: item if type(item) in _PLAIN else self.encode(item, (*path, k)) for k, item in value.items()}

    def _array(self, array: Array) -> dict[str, str]:
        name = f"state/arrays/{len(self._arrays)}"
        self._arrays[name] = buffers.copy(array)
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        layout = "F" * fortran + ">" * (not array.dtype.isnative)
        return {ARRAY: name, "layout": layout} if layout else {ARRAY: name}


def _is_kept(dtype: np.dtype[Any]) -> bool:
    return dtype.name in NATIVE or dtype.name in EXTENDED


def _parts(scalar: Any) -> Any:
    return [float(scalar.real), float(scalar.imag)] if scalar.dtype.kind == "c" else scalar.item()


def decode(value: Any, arrays: Mapping[str, Array]) -> Any:
    """Return what `encode` was given.

    Raises
    ------
    ValueError
        If `value` is nothing that `encode` returns.
    """
    decoder = _Decoder(arrays)
    try:
        decoded = decoder.decode(value)
        for container, key, path in decoder.again:
            container[key] = _standing_at(path, decoded)
    except RecursionError as error:
        raise ValueError("the saved state is nested too deeply") from error
    return decoded


class _Decoder:
    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays
        self.again: list[tuple[Any, Any, Any]] = []  # container, key, and path of what stands there again

    def decode(self, value: Any) -> Any:
        if type(value) is list:
            if {*map(type, value)} <= _PLAIN:
                return value
            return self._filled([None] * len(value), enumerate(value))
        if type(value) is not dict or not value:
            return value
        if ARRAY in value or SCALAR in value:
            return self._placed(value)
        return self._filled(dict.fromkeys(value), value.items())

    def _placed(self, value: dict[str, Any]) -> Any:
        """Return the value that a dict with a reserved key stands for."""
        key, restore = (ARRAY, self._array) if ARRAY in value else (SCALAR, _scalar)
        try:
            return restore(value[key], **{k: item for k, item in value.items() if k != key})
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise ValueError(f"{value} in the saved state is malformed") from error

    def _filled(self, container: Any, items: Iterable[tuple[Any, Any]]) -> Any:
        for key, item in items:
            if type(item) in _PLAIN:
                container[key] = item
            elif type(item) is dict and SAME in item:
                self.again.append((container, key, item[SAME]))
            else:
                container[key] = self.decode(item)
        return container

    def _array(self, name: str, layout: str = "") -> Array:
        array = self._arrays[name]
        dtype = array.dtype.newbyteorder("=")
        swapped = dtype.newbyteorder("S") if ">" in layout else dtype
        return np.asarray(array, swapped, order="F" if "F" in layout else "C")


def _standing_at(path: Any, root: Any) -> Any:
    """Return the list, dict or array at a path."""
    try:
        found = functools.reduce(operator.getitem, path, root) if type(path) is list else None
    except (TypeError, LookupError) as error:
        raise ValueError(f"there is nothing at {path} in the saved state") from error
    if not isinstance(found, (list, dict, np.ndarray)):
        raise ValueError(f"there is no list, dict or array at {path} in the saved state")
    return found


def _scalar(given: tuple[str, Any]) -> Any:
    name, parts = given
    if name not in NATIVE and name not in EXTENDED:
        raise ValueError(name)
    made = np.dtype(getattr(ml_dtypes, name, name)).type(complex(*parts) if isinstance(parts, list) else parts)
    if repr(_parts(made)) != repr(parts):
        raise ValueError(parts)
    return made


def check(value: Any, where: str) -> None:
    """Raise an error that names the place of what JSON would not give back unchanged.

    Raises
    ------
    TypeError
        For values and keys of other types, subclasses among them.
    ValueError
        For integers and text that JSON does not keep.
    """
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{where}: keys must be str, got {key!r} of type {_name(key)}")
            if not key.isascii() and _PAIR.search(key):
                raise ValueError(f"{where}: keys must not hold a pair of surrogates, got {key!r}")
        items: Iterable[tuple[Any, Any]] = value.items()
    elif type(value) is list:
        kinds = {*map(type, value)}
        if kinds <= _NUMBERS and (
            int not in kinds or all(-_TOO_LONG < n < _TOO_LONG for n in value if type(n) is int)
        ):
            return
        items = enumerate(value)
    else:
        raise TypeError(f"{where}: must be {_KINDS}; got {_name(value)}")
    for key, item in items:
        kind = type(item)
        if kind not in _PLAIN:
            check(item, f"{where}[{key!r}]")
        elif kind is str and not item.isascii() and _PAIR.search(item):
            raise ValueError(f"{where}[{key!r}]: must not hold a pair of surrogates, got {item!r}")
        elif kind is int and not -_TOO_LONG < item < _TOO_LONG:
            raise ValueError(f"{where}[{key!r}]: must be of at most {_DIGITS} digits, got a longer integer")


def _name(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name} of dtype {value.dtype}" if kind is np.ndarray else name
