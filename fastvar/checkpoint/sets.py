"""Read a checkpoint as one, whether it is one file or a set of part files."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint.file_format import CheckpointError, Entry
from fastvar.checkpoint.part_list import (
    PartList,
    Piece,
    Sharded,
    check_parts,
    check_record,
    naming,
    part_list,
)
from fastvar.checkpoint.reader import File
from fastvar.tables import count

_FEW = 3  # files in a message
_OPEN = 8  # part files open at a time
Target = tuple[str, int, Array]  # the name of a tensor, the first element wanted, the array for those wanted


class _Part(File):
    """A part file, which must not be a link."""

    _follow = False


class CheckpointFile(File):
    """A checkpoint, opened for reading: a file, and the part files that it names if it is of a set.

    Everything but the tensors is verified, and of the part files their commit records. The rest of a part file is
    verified when it is first read from.

    Parameters
    ----------
    path : str or path-like
        The file; the commit file of a set.
    check : bool
        Whether to read the commit records of all part files now.

    Attributes
    ----------
    parts : PartList or None
        The part files, and which elements they hold.

    Others are those of `File`; `entries` has all tensors. Those in parts have neither an offset nor a hash.

    Raises
    ------
    CheckpointError
        Also for a part file that is missing, truncated or of another set. It is named, and so are its tensors.
    """

    parts: PartList | None = None

    def __init__(self, path: str | os.PathLike[str], *, check: bool = True) -> None:
        self._sharded: dict[str, Sharded] = {}
        self._opened: dict[int, _Part] = {}
        super().__init__(path)
        if check and self.parts:
            try:
                with self._unless_removed():
                    check_parts(self.path, self.parts)
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        super()._open()
        self.parts = part_list(self.record, self.state)
        if self.parts:
            self._sharded = self.parts.tensors
            both = self._sharded.keys() & self.entries.keys()
            if both:
                raise ValueError(f"tensor {min(both)!r} is here and in a part")
            self.size += sum(file.length for file in self.parts.files)
            for name, one in self._sharded.items():
                length = one.pieces[-1].stop * one.dtype.itemsize if one.pieces else 0
                self.entries[name] = Entry(one.dtype, one.shape, None, length, "")

    def read(self, name: str) -> Array:
        if name not in self._sharded:
            return super().read(name)
        array = np.empty(self.entries[name].shape, self.entries[name].dtype)
        self.read_into([(name, array)])
        return array

    def read_small(self, names: Sequence[str]) -> list[bytes]:
        own = [name for name in names if name not in self._sharded]
        data = dict(zip(own, super().read_small(own), strict=True))
        arrays = {name: np.empty(one.shape, one.dtype) for name in names if (one := self._sharded.get(name))}
        self.read_into([*arrays.items()])
        return [arrays[name].tobytes() if name in arrays else data[name] for name in names]

    def read_into(self, targets: Sequence[tuple[str, Array]]) -> None:
        super().read_into([target for target in targets if target[0] not in self._sharded])
        self.read_ranges([(name, 0, array) for name, array in targets if name in self._sharded])

    def read_ranges(self, targets: Iterable[Target]) -> int:
        """Read ranges of tensors' elements, in C order. Return the bytes read.

        Pieces are read, and verified, as a whole, each once.

        Parameters
        ----------
        targets : iterable of (str, int, ndarray)
            The name of a tensor, the index of the first element, and an array for it and those that follow.

        Raises
        ------
        CheckpointError
            Naming the file and every damaged tensor of it. The arrays may be overwritten then.
        """
        wanted: dict[int, dict[str, list[tuple[slice, Array]]]] = {}  # by part and name: elements of a piece
        own = 0
        for name, start, array in targets:
            flat = array.reshape(-1)
            if name not in self._sharded:
                flat[...] = super().read(name).reshape(-1)[start : start + flat.size]
                own += self.entries[name].length
                continue
            for piece in self._sharded[name].pieces:
                low, high = max(piece.start, start), min(piece.stop, start + flat.size)
                if low < high:
                    place = slice(low - piece.start, high - piece.start), flat[low - start : high - start]
                    wanted.setdefault(piece.part, {}).setdefault(name, []).append(place)
        return own + sum(self._read_part(part, wanted[part]) for part in sorted(wanted))

    def _read_part(self, part: int, wanted: dict[str, list[tuple[slice, Array]]]) -> int:
        """Read what is wanted of a part; where that is a whole piece, straight to its place."""
        file = self._part(part)
        whole = [
            (name, places[0][1])
            for name, places in wanted.items()
            if len(places) == 1 and places[0][1].size == file.entries[name].shape[0]
        ]
        file.read_into(whole)
        for name in wanted.keys() - dict(whole).keys():
            piece = file.read(name)
            for elements, target in wanted[name]:
                target[...] = piece[elements]
        return sum(file.entries[name].length for name in wanted)

    def is_cut(self, name: str) -> bool:
        """Whether a tensor is in part files."""
        return name in self._sharded

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """Return the pieces of a tensor with elements. A tensor in this file is one piece, of no part: -1."""
        if name in self._sharded:
            return self._sharded[name].pieces
        size = math.prod(self.entries[name].shape)
        return (Piece(-1, 0, size),) if size else ()

    def holder(self, part: int) -> File:
        """Return the opened file with the pieces of a part: this one for -1."""
        return self if part < 0 else self._part(part)

    def verify(self, names: Iterable[str] | None = None) -> None:
        everything = names is None
        names = list(self.entries if names is None else names)
        of_parts: dict[int, list[str]] = {}
        if everything and self.parts:  # also parts without tensors
            of_parts = {part: [] for part in range(len(self.parts.files))}
        for name in names:
            for piece in self._sharded[name].pieces if name in self._sharded else ():
                of_parts.setdefault(piece.part, []).append(name)
        errors = [*_error_of(super().verify, [name for name in names if name not in self._sharded])]
        for part, held in sorted(of_parts.items()):
            errors += _error_of(self._verify_part, part, held)
        raise_any(errors, names)

    def _verify_part(self, part: int, names: Iterable[str]) -> None:
        self._part(part).verify(names)

    def _part(self, part: int) -> _Part:
        """Return a part file, verified as far as opening it does, and leave open the last few."""
        if part not in self._opened:
            assert self.parts is not None
            while len(self._opened) >= _OPEN:
                self._opened.pop(next(iter(self._opened))).close()
            with self._unless_removed(), naming(self.path, self.parts, part) as path:
                file = _Part(path)
                try:
                    self._check_part(part, file)
                except BaseException:
                    file.close()
                    raise
            self._opened[part] = file
        return self._opened[part]

    @contextlib.contextmanager
    def _unless_removed(self) -> Iterator[None]:
        """Raise FileNotFoundError for a part that is missing because the whole set has been removed meanwhile."""
        try:
            yield
        except CheckpointError as error:
            if error.errno == errno.ENOENT and not os.path.lexists(self.path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path) from error
            raise

    def _check_part(self, part: int, file: _Part) -> None:
        """Raise ValueError unless a part file is the one that the commit file names, and holds its pieces."""
        assert self.parts is not None
        check_record(file.record, self.parts.files[part])
        for name, piece in self.parts.held[part].items():
            entry, dtype = file.entries.get(name), self._sharded[name].dtype
            if entry is None or (entry.dtype, entry.shape) != (dtype, (piece.stop - piece.start,)):
                raise ValueError(f"does not hold elements {piece.start} to {piece.stop} of {name!r}")

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()
        super().close()


def raise_any(errors: Sequence[CheckpointError], names: Iterable[str]) -> None:
    """Raise one error for those of several files, if any; `names` is in the order of the damaged tensors."""
    if errors:
        damaged = {name for error in errors for name in error.damaged}
        more = f"; and {count(len(errors) - _FEW, 'more file')}" * (len(errors) > _FEW)
        text = "; ".join(map(str, errors[:_FEW])) + more
        raise CheckpointError(text, errno=errors[0].errno, damaged=[n for n in names if n in damaged])


def _error_of(check: Callable[..., None], *arguments: Any) -> Iterator[CheckpointError]:
    """Call a function, and yield the CheckpointError that it raises, if any."""
    try:
        check(*arguments)
    except CheckpointError as error:
        yield error
