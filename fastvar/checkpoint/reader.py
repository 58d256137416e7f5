"""Read a checkpoint file. The file is not trusted: everything is checked before it is used."""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from fastvar.buffers import Array
from fastvar.checkpoint.file_format import (
    CHUNK,
    LARGE,
    MAX_JSON,
    USER_BLOCK,
    CheckpointError,
    Entry,
    Record,
    Saved,
    Section,
    not_a_file,
    parse_manifest,
    parse_object,
    uncovered,
)
from fastvar.checkpoint.locks import close_read
from fastvar.checkpoint.progress import Advance, nothing, progress
from fastvar.checkpoint.workers import WorkQueue, work_in_parallel
from fastvar.tables import count

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # do not wait for a FIFO


class File:
    """A checkpoint file, opened for reading. Everything but its tensors is verified.

    Parameters
    ----------
    path : str or path-like

    Attributes
    ----------
    path : str
    step : int
    saved : Saved
        The run that wrote the file and its count of saves.
    record : Record
    size : int
        The bytes of the file.
    state : dict
    entries : dict of str to Entry
        Dtypes, shapes and offsets of the tensors, in the order in which they were saved.

    Raises
    ------
    CheckpointError
        If the file is damaged, truncated, of a newer format, or not written by fastvar.
    OSError
        If it cannot be opened, such as FileNotFoundError.
    """

    _follow = True  # whether the path may be a symbolic link

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.fspath(path)
        self._descriptor = open_read(self.path, self._follow)
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
        self.record: Record = read_record(self._descriptor)
        record = self.record
        self.size: int = record.length
        self.step: int = record.step
        self.saved: Saved = record.saved
        sections = (record.manifest, record.state)
        uncovered(((part.offset, part.length) for part in sections), record.length)
        manifest = _read_section(self._descriptor, "manifest", record.manifest)
        self.entries: dict[str, Entry] = parse_manifest(manifest, record.version)
        self.state: dict[str, Any] = parse_object(_read_section(self._descriptor, "state", record.state))
        places = [*filter(itemgetter(1), map(itemgetter(2, 3), self.entries.values()))]  # offset, length
        places += [(part.offset, part.length) for part in sections]
        digest = xxhash.xxh3_128()
        for offset, length in uncovered(places, record.length):
            self._hash(offset, length, digest, _buffer(length))
        if digest.hexdigest() != record.metadata:
            raise ValueError("the HDF5 metadata are damaged; use another checkpoint")

    def read(self, name: str) -> Array:
        """Return the verified tensor `name` as a new array.

        Raises
        ------
        CheckpointError
            If the tensor is not in the file, or damaged, or cannot be read.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.path}: there is no tensor {name!r} in this checkpoint")
        entry = self.entries[name]
        array = np.empty(entry.shape, entry.dtype)
        if self._digest(name, _bytes(array)) != entry.hash:
            raise self.damaged([name])
        return array

    def read_small(self, names: Sequence[str]) -> list[bytes]:
        """Return the verified bytes of small tensors that are not empty. `names` are ordered by their offsets.

        Raises
        ------
        CheckpointError
            Naming every damaged tensor, or one that cannot be read.
        """
        parts: list[bytes] = []
        damaged: list[str] = []
        for more, broken in self._small(names):
            parts += more
            damaged += broken
        if damaged:
            raise self.damaged(damaged)
        return parts

    def _small(self, names: Sequence[str]) -> Iterator[tuple[list[bytes], list[str]]]:
        """Yield the bytes of small tensors and the names of damaged ones, reading neighbours at once."""
        entries = [*map(self.entries.__getitem__, names)]
        offsets = [entry.offset or 0 for entry in entries]
        assert offsets == sorted(offsets)
        first = 0
        while first < len(names):
            start = offsets[first]
            near = slice(first, bisect.bisect_left(offsets, start + CHUNK))
            first = near.stop
            end = offsets[first - 1] + entries[first - 1].length
            buffer = bytearray(end - start)
            self._guarded(names[near.start], _fill, self._descriptor, memoryview(buffer), start)
            data = bytes(buffer)
            _, _, places, lengths, hashes = zip(*entries[near], strict=True)
            parts = [data[at - start : at - start + n] for at, n in zip(places, lengths, strict=True)]
            digests = tuple(map(xxhash.xxh3_128_hexdigest, parts))
            damaged = []
            if digests != hashes:
                damaged = [n for n, is_, was in zip(names[near], digests, hashes, strict=True) if is_ != was]
            yield parts, damaged

    def read_into(self, targets: Sequence[tuple[str, Array]]) -> None:
        """Read tensors into arrays of their shapes and dtypes, and verify them afterwards.

        Raises
        ------
        CheckpointError
            Naming every damaged tensor, or one that cannot be read. The arrays may be overwritten then.
        """
        damaged = self._read("restoring", [(name, _bytes(array)) for name, array in targets])
        if damaged:
            raise self.damaged(damaged)

    def read_stretch(self, name: str, start: int, target: memoryview, digest: xxhash.xxh3_128) -> None:
        """Read bytes of a tensor from `start` on, and add them to a digest. They are not verified."""
        offset = (self.entries[name].offset or 0) + start
        self._guarded(name, self._hash, offset, target.nbytes, digest, target)

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Verify tensors, by default all, in little memory. (The rest of the file is verified when it is opened.)

        Raises
        ------
        CheckpointError
            Naming every damaged tensor; its `damaged` lists them.
        """
        names = list(self.entries if names is None else names)
        small = [name for name in names if 0 < self.entries[name].length < LARGE]
        small.sort(key=lambda name: self.entries[name].offset or 0)
        rest = [(name, None) for name in names if not 0 < self.entries[name].length < LARGE]
        damaged = {name for _, broken in self._small(small) for name in broken}
        damaged.update(self._read("verifying", rest))
        if damaged:
            raise self.damaged([name for name in names if name in damaged])

    def _read(self, what: str, tensors: Sequence[tuple[str, memoryview | None]]) -> list[str]:
        """Read tensors with several threads, into memory where it is given; return the names of damaged ones."""
        damaged: set[str] = set()

        def work(waiting: WorkQueue[tuple[str, memoryview | None]]) -> None:
            buffer = _buffer()
            for name, target in waiting:
                if self._digest(name, buffer if target is None else target, advance) != self.entries[name].hash:
                    damaged.add(name)

        total = sum(self.entries[name].length for name, _ in tensors)
        with progress(f"{what} {os.path.basename(self.path)}", total) as advance:
            work_in_parallel(tensors, work, len(tensors))
        return [name for name, _ in tensors if name in damaged]

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_read(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _digest(self, name: str, target: memoryview, advance: Advance = nothing) -> str:
        """Read a tensor and return its hash; see `_hash`."""
        entry, digest = self.entries[name], xxhash.xxh3_128()
        self._guarded(name, self._hash, entry.offset or 0, entry.length, digest, target, advance)
        return digest.hexdigest()

    def _hash(
        self, offset: int, length: int, digest: xxhash.xxh3_128, target: memoryview, advance: Advance = nothing
    ) -> None:
        """Read part of the file into `target` and hash it; a smaller `target` is overwritten piece by piece."""
        fits = target.nbytes >= length
        for start in range(0, length, CHUNK):
            at = start if fits else 0
            part = target[at : at + min(CHUNK, length - start)]
            _fill(self._descriptor, part, offset + start)
            digest.update(part)
            advance(part.nbytes)

    def _guarded(self, name: str, reading: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that reads a tensor, and name the tensor in its errors."""
        try:
            return reading(*arguments)
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} cannot be read: {error.strerror or error}",
                errno=error.errno,
            ) from error

    def damaged(self, names: list[str]) -> CheckpointError:
        """Return an error that names damaged tensors."""
        shown = ", ".join(repr(name) for name in names[:10])
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return CheckpointError(
            f"{self.path}: damaged tensors: {shown}{more} (not the bytes that were saved); use another checkpoint",
            damaged=names,
        )


def open_read(path: str | os.PathLike[str], follow: bool = True) -> int:
    """Open a file to read it. Where it is a symbolic link, `follow` says whether to open what that names."""
    return os.open(path, _OPEN_FLAGS if follow else _OPEN_FLAGS | getattr(os, "O_NOFOLLOW", 0))


def _buffer(length: int = CHUNK) -> memoryview:
    """Return memory for bytes that are only hashed; it is small, and so stays in the cache."""
    return memoryview(bytearray(min(length, CHUNK)))


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def prefetch(path: str | os.PathLike[str]) -> None:
    """Let the system begin to read a file that will soon be opened. Errors are ignored; opening it raises them.

    Prefetch the beginning, and the end with the manifest. The system reads ahead in between, and does that better.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            descriptor = open_read(path)
            try:
                end = max(0, os.fstat(descriptor).st_size - CHUNK)
                for start, length in [(end, CHUNK), (0, 4 * CHUNK)]:
                    os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
            finally:
                close_read(descriptor)


def peek(path: str | os.PathLike[str]) -> tuple[Record, dict[str, Any]]:
    """Return the commit record and the state of a file, which has the recorded length; nothing else is verified.

    Raises
    ------
    CheckpointError
        If one of them is damaged, or the length differs.
    OSError
        If the file cannot be opened.
    """
    descriptor = open_read(path)
    try:
        record = read_record(descriptor)
        return record, parse_object(_read_section(descriptor, "state", record.state))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error
    finally:
        close_read(descriptor)


def read_record(descriptor: int) -> Record:
    """Return the commit record of an open file, which has the recorded length."""
    status = os.fstat(descriptor)
    if problem := not_a_file(status.st_mode):
        raise OSError(errno.EISDIR, problem)
    block = bytearray(
        min(status.st_size, USER_BLOCK + 8)
    )  # 8: the signature of a foreign HDF5 file behind its user block
    _fill(descriptor, memoryview(block), 0)
    record = Record.unpack(bytes(block))
    if record.length != status.st_size:
        raise ValueError(
            f"has {count(status.st_size, 'byte')}, {record.length:,} were saved: truncated, or edited "
            "by another program; use another checkpoint"
        )
    return record


def _read_section(descriptor: int, what: str, section: Section) -> bytes:
    """Return the verified bytes of a section."""
    if section.length > MAX_JSON:
        raise ValueError(f"the {what} is too large")
    data = bytearray(section.length)
    _fill(descriptor, memoryview(data), section.offset)
    if xxhash.xxh3_128_hexdigest(data) != section.hash:
        raise ValueError(f"the {what} is damaged; use another checkpoint")
    return bytes(data)


def _fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    while buffer.nbytes:
        done = _pread(descriptor, buffer, offset)
        if done == buffer.nbytes:
            return
        if done == 0:
            raise OSError("the file ends too early")
        buffer = buffer[done:]
        offset += done


def _pread(descriptor: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)
