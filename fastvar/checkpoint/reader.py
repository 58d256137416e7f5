"""Read one checkpoint file. It is not trusted: everything is checked before it is used."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from fastvar import threads
from fastvar.buffers import Array
from fastvar.checkpoint.background import helpers
from fastvar.checkpoint.locks import close_read
from fastvar.checkpoint.progress import Advance, nothing, progress
from fastvar.checkpoint.record import (
    CHUNK,
    LARGE,
    MAX_JSON,
    USER_BLOCK,
    CheckpointError,
    Entry,
    Record,
    Section,
    parse_manifest,
    parse_object,
    uncovered,
)

_ROOM = 1 << 19  # half of the L2 cache; with less, threads wait for one another's GIL
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)


class File:
    """A checkpoint file, opened for reading, and all but its tensors verified.

    Parameters
    ----------
    path : str or path-like

    Attributes
    ----------
    path : str
    step : int
    saved : Saved
        The run that wrote the file and its count of saves.
    state : dict
    entries : dict of str to Entry
        The tensors' dtypes, shapes and places, in the order in which they were given.

    Raises
    ------
    CheckpointError
        If the file is damaged, truncated, of a newer format, or not written by fastvar.
    OSError
        If it cannot be opened, such as FileNotFoundError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._descriptor = os.open(self.path, _OPEN_FLAGS | getattr(os, "O_NONBLOCK", 0))
        try:
            self._open()
        except (OSError, ValueError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else None
            raise CheckpointError(
                f"{self.path}: {reason or error}", errno=getattr(error, "errno", None)
            ) from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        record = _read_record(self._descriptor)
        self._window = _Window(self._descriptor, record.length)
        self.step, self.saved = record.step, record.saved
        sections = (record.manifest, record.state)
        uncovered(((part.offset, part.length) for part in sections), record.length)
        self.entries = parse_manifest(_read_section(self._descriptor, "manifest", record.manifest))
        self.state = parse_object(_read_section(self._descriptor, "state", record.state))
        places = [(offset, length) for _, _, offset, length, _ in self.entries.values() if offset is not None]
        places += [(part.offset, part.length) for part in sections]
        digest = xxhash.xxh3_128()
        for gap in uncovered(places, record.length):
            self._window.hash(*gap, digest)
        if digest.hexdigest() != record.metadata:
            raise ValueError("the HDF5 metadata are damaged; use another checkpoint")

    def read(self, name: str) -> Array:
        """The verified tensor `name`, in an array of its own.

        Raises
        ------
        CheckpointError
            If the tensor is not in the file, or damaged, or cannot be read.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.path}: there is no tensor {name!r} in this checkpoint")
        entry = self.entries[name]
        array = np.empty(entry.shape, entry.dtype)
        if self._digest(name, self._window, array.reshape(-1).view(np.uint8)) != entry.hash:
            raise self._damaged([name])
        return array

    def read_many(self, names: Sequence[str]) -> list[Array]:
        """Verified tensors that have few bytes, but some: those that are neighbours in the file are read at once.

        Raises
        ------
        CheckpointError
            Naming every damaged tensor, or one that cannot be read.
        """
        arrays: list[Array] = []
        damaged: list[str] = []
        for group in _neighbours([self.entries[name] for name in names]):
            kinds, shapes, offsets, lengths, hashes = zip(*group, strict=True)
            start = offsets[0]
            room = bytearray(offsets[-1] + lengths[-1] - start)
            self._guarded(names[len(arrays)], _fill, self._descriptor, memoryview(room), start)
            read: list[Any] = [
                np.ndarray(s, k, room, o - start) for s, k, o in zip(shapes, kinds, offsets, strict=True)
            ]
            digests = tuple(map(xxhash.xxh3_128_hexdigest, read))
            if digests != hashes:
                whose = names[len(arrays) : len(arrays) + len(read)]
                damaged += [n for n, is_, was in zip(whose, digests, hashes, strict=True) if is_ != was]
            arrays += read
        if damaged:
            raise self._damaged(damaged)
        return arrays

    def read_into(self, targets: Sequence[tuple[str, Array]]) -> None:
        """Read tensors into arrays of their shapes and dtypes, and only then know whether they are whole.

        Raises
        ------
        CheckpointError
            Naming every damaged tensor, or one that cannot be read. Arrays are then overwritten in part.
        """
        tensors = [(name, array.reshape(-1).view(np.uint8)) for name, array in targets]
        self._compare(self._digests("restoring", tensors))

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Verify tensors, by default all, in little memory. (The rest was verified at opening.)

        Raises
        ------
        CheckpointError
            Naming every damaged tensor; its `damaged` lists them.
        """
        names = list(self.entries if names is None else names)
        small = [name for name in names if self.entries[name].length < LARGE]
        large = [name for name in names if self.entries[name].length >= LARGE]
        digests = {name: self._digest(name, self._window) for name in small}
        digests |= self._digests("verifying", [(name, None) for name in large])
        self._compare({name: digests[name] for name in names})

    def _compare(self, digests: dict[str, str]) -> None:
        damaged = [name for name, digest in digests.items() if digest != self.entries[name].hash]
        if damaged:
            raise self._damaged(damaged)

    def _digests(self, what: str, tensors: Sequence[tuple[str, Array | None]]) -> dict[str, str]:
        """The hash of each tensor, which is read into an array if one is given, by several threads."""
        waiting = iter(tensors)
        digests: dict[str, str] = {}

        def work() -> None:
            window = self._window.again()
            try:
                for name, target in waiting:
                    digests[name] = self._digest(name, window, target, advance)
            finally:
                deque(waiting, 0)  # after an error, no one need go on

        more = min(len(tensors), threads.get_num_threads()) - 1
        total = sum(self.entries[name].length for name, _ in tensors)
        with progress(f"{what} {os.path.basename(self.path)}", total) as advance, helpers(max(1, more)) as pool:
            try:
                futures = []
                with contextlib.suppress(RuntimeError):  # no thread is to be had: alone, then
                    futures += [pool.submit(work) for _ in range(more)]
                work()
                for future in futures:
                    future.result()
            finally:
                deque(waiting, 0)
        return digests

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_read(descriptor)

    def __enter__(self) -> File:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _digest(self, name: str, window: _Window, target: Array | None = None, advance: Advance = nothing) -> str:
        """The hash of the tensor's bytes as they are, which are read into `target` if given."""
        entry, digest = self.entries[name], xxhash.xxh3_128()
        offset, length = entry.offset or 0, entry.length
        if target is not None:
            self._guarded(name, self._read, offset, target.data, digest, advance)
        else:
            self._guarded(name, window.hash, offset, length, digest, advance)
        return digest.hexdigest()

    def _read(self, offset: int, target: memoryview, digest: xxhash.xxh3_128, advance: Advance) -> None:
        """Read bytes to where they are to go, and hash them."""
        for start in range(0, target.nbytes, CHUNK):
            part = target[start : start + CHUNK]
            _fill(self._descriptor, part, offset + start)
            digest.update(part)
            advance(part.nbytes)

    def _guarded(self, name: str, reading: Callable[..., Any], *arguments: Any) -> Any:
        """Do some reading for a tensor, which its errors will name."""
        try:
            return reading(*arguments)
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} cannot be read: {error.strerror or error}",
                errno=error.errno,
            ) from error

    def _damaged(self, names: list[str]) -> CheckpointError:
        shown = ", ".join(repr(name) for name in names[:10])
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return CheckpointError(
            f"{self.path}: damaged tensors: {shown}{more} (not the bytes that were saved); use another checkpoint",
            damaged=names,
        )


class _Window:
    """The bytes of a file, read into a small room.

    It stays in the cache, so that only to verify takes less time; and small tensors come many at a time.
    """

    def __init__(self, descriptor: int, length: int) -> None:
        self._descriptor, self._length = descriptor, length
        self._room = memoryview(bytearray(min(length, _ROOM)))
        self._start, self._held = 0, self._room[:0]

    def again(self) -> _Window:
        """Another window on the same file, for another thread."""
        return _Window(self._descriptor, self._length)

    def part(self, offset: int) -> memoryview:
        """The bytes from `offset` on, as many as are at hand."""
        at = offset - self._start
        if not 0 <= at < self._held.nbytes:
            self._held = self._room[:0]
            part = self._room[: self._length - offset]
            _fill(self._descriptor, part, offset)
            self._start, self._held, at = offset, part, 0
        return self._held[at:]

    def hash(self, offset: int, length: int, digest: xxhash.xxh3_128, advance: Advance = nothing) -> None:
        """Update `digest` with a stretch, and tell how far it is."""
        done = 0
        while done < length:
            part = self.part(offset + done)[: length - done]
            digest.update(part)
            advance(part.nbytes)
            done += part.nbytes


def _neighbours(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Divide the entries where the next does not begin in the file where the one before ends, or it is much."""
    first, end, most = 0, -1, 0
    for number, entry in enumerate(entries):
        at = entry.offset or 0
        if at != end or at > most:
            if number:
                yield entries[first:number]
            first, most = number, at + _ROOM
        end = at + entry.length
    if entries:
        yield entries[first:]


def peek(path: str | os.PathLike[str]) -> tuple[Record, dict[str, Any]]:
    """The commit record of a file, which has the length that was saved, and its state; no more is verified.

    Raises
    ------
    CheckpointError
        If one of them is damaged, or the length is another.
    OSError
        If the file cannot be opened.
    """
    descriptor = os.open(path, _OPEN_FLAGS | getattr(os, "O_NONBLOCK", 0))
    try:
        record = _read_record(descriptor)
        return record, parse_object(_read_section(descriptor, "state", record.state))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error
    finally:
        close_read(descriptor)


def _read_record(descriptor: int) -> Record:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a file")
    block = bytearray(min(status.st_size, USER_BLOCK + 8))  # 8: of a foreign HDF5 file
    _fill(descriptor, memoryview(block), 0)
    record = Record.unpack(bytes(block))
    if record.length != status.st_size:
        raise ValueError(
            f"has {status.st_size} bytes, {record.length} were saved: truncated, or edited "
            "by another program; use another checkpoint"
        )
    return record


def _read_section(descriptor: int, what: str, section: Section) -> bytes:
    """The bytes of a section that lies within the file."""
    if section.length > MAX_JSON:
        raise ValueError(f"the {what} is too large")
    data = bytearray(section.length)
    _fill(descriptor, memoryview(data), section.offset)
    if xxhash.xxh3_128_hexdigest(data) != section.hash:
        raise ValueError(f"the {what} is damaged; use another checkpoint")
    return bytes(data)


def _fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    while buffer.nbytes:
        count = _pread(descriptor, buffer, offset)
        if count == buffer.nbytes:
            return
        if count == 0:
            raise OSError("the file ends too early")
        buffer = buffer[count:]
        offset += count


def _pread(descriptor: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)
