"""Write a checkpoint file, whole and durable, or change nothing."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from fastvar.checkpoint import encoding, publishing
from fastvar.checkpoint.file_format import (
    CHUNK,
    OF_SETS,
    STATE,
    VERSION,
    Record,
    Saved,
    Section,
    checked_step,
    failing,
)
from fastvar.checkpoint.layout import Layout, Spec, Tensors, layout_of, tensors_of
from fastvar.checkpoint.locks import UNSUPPORTED
from fastvar.checkpoint.part_list import remove_debris, set_of
from fastvar.checkpoint.progress import Advance, progress
from fastvar.checkpoint.virtual import Virtual
from fastvar.checkpoint.workers import WorkQueue, throttled, work_in_parallel

_OF_STATE = f"{STATE.partition('/')[0]}/"  # the beginning of the names of its arrays
_NO_BYTES = xxhash.xxh3_128_hexdigest(b"")
_SWAPPED = (">",) if sys.byteorder == "little" else (">", "=")  # byte orders to be swapped
Data = bytes | memoryview
Arrays = dict[str, np.ndarray[Any, Any]]


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    state: Mapping[str, Any],
    *,
    step: int,
    replace: bool = False,
    saved: Saved | None = None,
) -> None:
    """Write `tensors` and `state` to a new file at `path`; on return it is durable.

    The file appears under its name complete or not at all.

    Parameters
    ----------
    path : str or path-like
        The file; its directory exists.
    tensors : mapping of str to C-contiguous arrays
        By HDF5 path, such as "variables/encoder/0/kernel".
    state : mapping of str to JSON values
        Integers and floats (NaN and infinities, too) come back exactly.
    step : int
        Kept in the commit record.
    replace : bool
        Whether an existing file may be replaced.
    saved : Saved, optional
        The run and its save counter for the commit record; by default those of this process.

    Raises
    ------
    FileExistsError
        If the file exists, and `replace` is false.
    CheckpointError
        If the system refuses anything. Then older files are untouched, and nothing new is left. (The new file
        stays only if the very last call fails: with `replace`, the fsync of the directory.)
    ValueError, TypeError
        For names, arrays or state that cannot be stored.
    """
    prepare(path, tensors, state, step=step, replace=replace, saved=saved)()


def prepare(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    state: Mapping[str, Any],
    *,
    step: int,
    replace: bool = False,
    saved: Saved | None = None,
    elsewhere: Sequence[Virtual] | None = None,
    clean: bool = True,
) -> Callable[[], Record]:
    """Check the arguments of `write`. Return a function that writes the present values of the arrays.

    The function returns the commit record.

    Parameters
    ----------
    path, tensors, state, step, replace, saved
        As for `write`.
    elsewhere : sequence of Virtual, optional
        The tensors in part files, if this is the commit file of a set.
    clean : bool
        Whether to remove what killed writers have left.
    """
    path = publishing.absolute(path)
    step = checked_step(step)
    lasting, of_state = _split({name: _storable(name, array) for name, array in tensors.items()})
    if elsewhere is not None:  # HDF5's groups of both are one
        lasting, of_state = {}, lasting | of_state
    parts = tensors_of(_specs(lasting)), Tensors(_specs(of_state))
    arrays = [*lasting.values(), *of_state.values()]
    text = _encode(state)
    if replace:
        publishing.check_replaceable(path)
    elif os.path.lexists(path):
        raise publishing.taken(path)
    if saved is None:
        run, counter = _process(os.getpid())
        saved = Saved(run, next(counter))
    version = VERSION if elsewhere is None else OF_SETS

    def write_now() -> Record:
        layout = layout_of(*parts, len(text), elsewhere or ())
        total = sum(array.nbytes for array in arrays)

        def fill(descriptor: int) -> Record:
            with progress(f"saving {os.path.basename(path)}", total) as advance:
                return _write_file(descriptor, layout, arrays, text, step, saved, version, advance)

        return _write_new(path, fill, replace, clean)

    return write_now


def _write_new(path: str, fill: Callable[[int], Record], replace: bool, clean: bool) -> Record:
    """Let `fill` write a new file and close it, give the file its name, and return what `fill` returns.

    If it replaces a set of files, remove the parts of that.
    """
    directory = os.path.dirname(path) or "."
    before = set_of(path) if replace else None
    try:
        with failing(path):
            if clean:
                publishing.clean(directory)
            with publishing.temporary(directory) as (temporary, descriptor):
                record = fill(descriptor)
                publishing.publish(temporary, path, replace)
    except FileExistsError:
        raise publishing.taken(path) from None
    if before:
        with contextlib.suppress(OSError):  # the file is durable, whatever stays beside it
            remove_debris(directory, lambda name: True, before)
    return record


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> tuple[str, itertools.count[int]]:
    """Return the id and the save counter of this run; a forked child is another run."""
    return secrets.token_hex(16), itertools.count(1)


def _split(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Separate the arrays of the state, whose shapes may change with every save, from the rest."""
    names = [name for name in arrays if isinstance(name, str) and name.startswith(_OF_STATE)]
    return arrays, {name: arrays.pop(name) for name in names}


def _specs(arrays: Arrays) -> tuple[Spec, ...]:
    return tuple((name, array.dtype, array.shape) for name, array in arrays.items())


def _storable(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"tensor {name!r}: must be a NumPy array, got {type(array).__name__}")
    if not array.flags.c_contiguous:
        raise ValueError(f"tensor {name!r}: must be C-contiguous")
    if array.dtype.byteorder in _SWAPPED:
        return array.astype(array.dtype.newbyteorder("<"))
    return array


def _encode(state: Mapping[str, Any]) -> bytes:
    state = dict(state)
    try:
        encoding.check(state, "state")
        return json.dumps(state).encode()
    except RecursionError as error:
        raise ValueError("state: nested too deeply") from error


def _write_file(
    descriptor: int,
    layout: Layout,
    arrays: Sequence[np.ndarray[Any, Any]],
    state: bytes,
    step: int,
    saved: Saved,
    version: int,
    advance: Advance,
) -> Record:
    """Write everything into the open file, the commit record last; make it durable and close it."""
    try:
        _reserve(descriptor, layout.length)
        manifest = layout.manifest_text(_write_tensors(descriptor, layout, arrays, advance))
        for offset, data in layout.image:
            _write_all(descriptor, data, offset)
        _write_all(descriptor, manifest, layout.manifest[0])
        _write_all(descriptor, state, layout.state[0])
        record = Record(
            length=layout.length,
            step=step,
            saved=saved,
            manifest=Section(*layout.manifest, xxhash.xxh3_128_hexdigest(manifest)),
            state=Section(*layout.state, xxhash.xxh3_128_hexdigest(state)),
            metadata=layout.metadata,
            version=version,
        )
        _write_all(descriptor, record.pack(), 0)
        os.fsync(descriptor)  # never repeat it after a failure: the system may have marked the pages clean
        return record
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, length: int) -> None:
    """Reserve the space first: a full disk fails at once, and the file has few extents."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, length)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    os.ftruncate(descriptor, length)


def _write_tensors(
    descriptor: int, layout: Layout, arrays: Sequence[np.ndarray[Any, Any]], advance: Advance
) -> list[str]:
    """Write the tensors, with several threads if there is much to write, and return their hashes."""
    hashes = [_NO_BYTES] * len(arrays)

    def work(pieces: WorkQueue[tuple[Data, int]]) -> None:
        for data, offset in pieces:
            _write_all(descriptor, data, offset)
            advance(len(data))

    work_in_parallel(_pieces(layout, arrays, hashes), work, layout.length // CHUNK)
    return hashes


def _pieces(
    layout: Layout, arrays: Sequence[np.ndarray[Any, Any]], hashes: list[str]
) -> Iterator[tuple[Data, int]]:
    """Yield what to write, and where: small tensors together, then large ones piece by piece.

    Hash and write the same copy, which is in the cache and which no other thread can change.
    """
    batch: list[bytes] = []  # tensors next to each other in the file, from `begin` to `end`
    begin = end = 0
    for index, offset in throttled(layout.small):
        if offset != end or end - begin >= CHUNK:
            yield b"".join(batch), begin
            batch.clear()
            begin = end = offset
        data = arrays[index].tobytes()
        hashes[index] = xxhash.xxh3_128_hexdigest(data)
        batch.append(data)
        end += len(data)
    yield b"".join(batch), begin
    for index, offset in layout.large:
        digest, whole = xxhash.xxh3_128(), arrays[index].reshape(-1).view(np.uint8)
        for start in range(0, whole.size, CHUNK):
            part = whole[start : start + CHUNK].copy().data
            digest.update(part)
            yield part, offset + start
        hashes[index] = digest.hexdigest()


def _write_all(descriptor: int, data: Data, offset: int) -> None:
    rest = memoryview(data)
    while rest.nbytes:  # Python repeats a call that a signal has interrupted
        count = _pwrite(descriptor, rest, offset)
        if count <= 0:
            raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
        rest = rest[count:]
        offset += count


def _pwrite(descriptor: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)
