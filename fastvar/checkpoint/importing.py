"""Match a file of another library with the variables of a program. Read everything before any is assigned."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint.contents import Commit, Contents, Place
from fastvar.checkpoint.file_format import EXTENDED
from fastvar.checkpoint.foreign.source import Foreign
from fastvar.checkpoint.progress import progress
from fastvar.checkpoint.report import Restored, mismatch
from fastvar.checkpoint.restore import NameMap, check_map, matching, owners, renamer, source_of

_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


def prepare_import(
    contents: Contents, file: Foreign, partial: bool, name_map: NameMap | None, cast: bool
) -> tuple[Restored, list[Commit]]:
    """Check and read variables from a file of another library. Return the report and the commits."""
    places = contents.tensors()
    slots = [name for name in places if not name.startswith("variables/")]
    if isinstance(name_map, Mapping):
        check_map(name_map, {*owners(contents), *slots}, [*file.entries, *file.left], file.path)
    rename = renamer(name_map)
    explicit = name_map if isinstance(name_map, Mapping) else {}
    wanted = {}
    for name in places:
        target = explicit[name] if name in explicit and name in slots else source_of(name, rename)
        if target is not None and target.startswith("variables/"):
            bare = target.removeprefix("variables/")
            target = target if bare not in file.entries and target in file.entries else bare
        if target in file.entries or name not in slots:
            wanted[name] = target
    restored = Restored(file.path, 0, notes=list(file.notes))
    unreadable = {} if partial else {n: file.left[target] for n, target in wanted.items() if target in file.left}
    for name in unreadable:
        del wanted[name]
    taking, wrong = matching(places, wanted, file, restored, _any if cast else _lossless)
    wrong += [f"{name}: {reason}" for name, reason in unreadable.items()]
    used = {*wanted.values()}
    restored.skipped += [name for name in file.entries if name not in used]
    if wrong or (not partial and (restored.missing or restored.skipped)):
        advice = "name_map={NAME: None} leaves a variable as it is; cast=True converts dtypes"
        raise ValueError(mismatch(restored, wrong, file.entries, advice))
    commits: list[Commit] = []
    for place, name in _shown([(places[name], source) for name, source in taking.items()], file.path):
        array = file.read(name)
        if array.dtype != place.dtype:
            restored.notes.append(f"{name}: {array.dtype} in the file, {place.dtype} here")
            array = _converted(array, place.dtype, f"{file.path}: {name}")
        commits.append(functools.partial(place.assign, array))
    return restored, commits


def _shown(taking: list[tuple[Place, str]], path: str) -> Iterator[tuple[Place, str]]:
    """Yield the tensors to be read, with a progress bar if that takes long."""
    with progress(f"importing {os.path.basename(path)}", sum(place.nbytes for place, _ in taking)) as advance:
        for place, name in taking:
            yield place, name
            advance(place.nbytes)


def _rank(dtype: np.dtype[Any]) -> int:
    return 2 if dtype.name in EXTENDED else _KINDS[dtype.kind]


def _any(there: np.dtype[Any], here: np.dtype[Any]) -> bool:
    """Whether `cast` may convert: integers may become floats, floats never integers."""
    return _rank(there) <= _rank(here)


def _lossless(there: np.dtype[Any], here: np.dtype[Any]) -> bool:
    """Whether `here` holds every number of `there`. (NumPy's "safe" lets int64 become float64.)"""
    return _rank(there) == _rank(here) and np.can_cast(there, here)


def _converted(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Return the array as another dtype; ValueError if numbers are too large for it."""
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if _rank(dtype) == 1:
            lost = bool((result != array).any())
        else:
            lost = not np.array_equal(_finite(result), _finite(array))
    if lost:
        raise ValueError(f"{name}: some of its numbers are too large for {dtype}; nothing was changed")
    return result


def _finite(array: Array) -> Any:
    return np.isfinite(array.astype(np.float32) if array.dtype.name in EXTENDED else array)
