"""The list of part files in the commit file of a set: names, hashes, and who holds which elements.

Like everything in a file, it is not trusted.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastvar.checkpoint.bookkeeping import PARTS
from fastvar.checkpoint.file_format import (
    MAX_RANK,
    OF_SETS,
    CheckpointError,
    Record,
    check_paths,
    dtype_named,
)
from fastvar.checkpoint.locks import close_read
from fastvar.checkpoint.reader import open_read, peek, read_record

_NAME = re.compile(
    r"(?P<stem>[^/\\\0]+)\.(?P<set>[0-9a-f]{16})\.part-(?P<number>[1-9][0-9]*)-of-(?P<count>[1-9][0-9]*)\.h5"
)
_FEW = 3  # names in a message
_MALFORMED = (TypeError, ValueError, LookupError)


class PartFile(NamedTuple):
    """A part file of a set.

    Attributes
    ----------
    name : str
        It is in the folder of the commit file.
    root : str
        The root hash of its commit record.
    length : int
    """

    name: str
    root: str
    length: int


class Piece(NamedTuple):
    """Elements of a tensor in C order, from `start` to before `stop`, and the index of the part with them."""

    part: int
    start: int
    stop: int


class Sharded(NamedTuple):
    """A tensor whose elements are in part files; its pieces follow one another."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def part_name(path: str, set_id: str, number: int, count: int) -> str:
    """Return the name of a part file, such as `ckpt-7.0123456789abcdef.part-2-of-4.h5`."""
    return f"{_stem(path)}.{set_id}.part-{number}-of-{count}.h5"


def is_part(name: str) -> bool:
    """Whether a file has the name of a part file."""
    return _NAME.fullmatch(name) is not None


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(".h5")


class PartList:
    """Which part files a set has, and what they hold.

    Parameters
    ----------
    value : JSON value
        What `as_json` has returned.

    Attributes
    ----------
    set_id : str
    files : list of PartFile
    tensors : dict of str to Sharded
    held : list of dict of str to Piece
        What each part holds.

    Raises
    ------
    ValueError
        If a list of parts cannot be this; a tensor at fault is named.
    """

    def __init__(self, value: Any) -> None:
        try:
            self.set_id: str = value["set"]
            self.files: list[PartFile] = [PartFile(*row) for row in value["files"]]
            self._check_files()
            tensors: dict[str, Any] = {**value["tensors"]}
            check_paths(tensors)
        except _MALFORMED as error:
            raise ValueError("the list of its parts is malformed") from error
        self.tensors: dict[str, Sharded] = {name: self._sharded(name, row) for name, row in tensors.items()}
        self.held: list[dict[str, Piece]] = [{} for _ in self.files]
        for name, one in self.tensors.items():
            for piece in one.pieces:
                self.held[piece.part][name] = piece

    def _check_files(self) -> None:
        """Raise an error unless the files have the names of parts of one set, and possible hashes and lengths."""
        stems = set()
        for number, (name, root, length) in enumerate(self.files, 1):
            match = _NAME.fullmatch(name)
            wanted = (self.set_id, str(number), str(len(self.files)))
            if match is None or match.group("set", "number", "count") != wanted:
                raise ValueError(name)
            stems.add(match["stem"])
            if type(length) is not int or length < 0 or len(bytes.fromhex(root)) != 16:
                raise ValueError(name)
        if len(stems) != 1:
            raise ValueError(stems)

    def _sharded(self, name: str, row: Any) -> Sharded:
        try:
            kind, shape, pieces = row
            if not {*map(type, shape)} <= {int} or len(shape) > MAX_RANK or min(shape, default=0) < 0:
                raise TypeError
            found = Sharded(dtype_named(kind), tuple(shape), tuple(Piece(*piece) for piece in pieces))
            if not {type(number) for piece in found.pieces for number in piece} <= {int}:
                raise TypeError
            if not all(0 <= piece.part < len(self.files) for piece in found.pieces):
                raise LookupError
        except _MALFORMED as error:
            raise ValueError(f"tensor {name!r}: its entry in the list of parts is malformed") from error
        if found.dtype.itemsize * math.prod(n or 1 for n in shape) >= 1 << 63:
            raise ValueError(f"tensor {name!r}: its shape is too large")
        if len({piece.part for piece in found.pieces}) < len(found.pieces):
            raise ValueError(f"tensor {name!r}: a part has two pieces of it")
        if problem := _uncovered(found):
            raise ValueError(f"tensor {name!r}: {problem}")
        return found

    @property
    def as_json(self) -> dict[str, Any]:
        """The list as JSON values, for the state of the commit file."""
        tensors = {
            name: [one.dtype.name, [*one.shape], [[*piece] for piece in one.pieces]]
            for name, one in self.tensors.items()
        }
        return {"set": self.set_id, "files": [[*file] for file in self.files], "tensors": tensors}


def _uncovered(one: Sharded) -> str | None:
    """Return what is wrong with the pieces of a tensor; None if they hold every element once, in order."""
    at, size = 0, math.prod(one.shape)
    for piece in one.pieces:
        if piece.start < at:
            return f"elements from {piece.start} to {at} are in two parts"
        if piece.start > at:
            return f"elements from {at} to {piece.start} are in no part"
        if piece.stop <= piece.start:
            return f"the piece from {piece.start} to {piece.stop} has no elements"
        at = piece.stop
    if at > size:
        return f"there are elements up to {at}, and it has {size}"
    return f"elements from {at} to {size} are in no part" if at < size else None


def part_list(record: Record, state: Mapping[str, Any]) -> PartList | None:
    """Return the list in the state of a file, or None if it is not of a set; ValueError if it is malformed."""
    return PartList(state.get(PARTS)) if record.version == OF_SETS else None


def beside(path: str, name: str) -> str:
    """Return the path of a part file, given that of the commit file, which may be a link to it."""
    return os.path.join(os.path.dirname(os.path.realpath(path)), name)


@contextlib.contextmanager
def naming(path: str, parts: PartList, part: int) -> Iterator[str]:
    """Give the path of a part file, and turn errors with it into one that names it and what it holds."""
    own = beside(path, parts.files[part].name)
    try:
        yield own
    except (OSError, ValueError) as error:
        names = [*parts.held[part]]
        shown = ", ".join(map(repr, names[:_FEW])) + f" and {len(names) - _FEW} more" * (len(names) > _FEW)
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{own}: ")
        if getattr(error, "errno", None) == errno.ELOOP:
            reason = "a link, which is not followed"
        whose = f"a part of {os.path.basename(path)}, with {shown or 'no tensor'}"
        raise CheckpointError(
            f"{own}: {reason} ({whose})", errno=getattr(error, "errno", None), damaged=names
        ) from error


def check_record(record: Record, file: PartFile) -> None:
    """Raise ValueError unless a part file has the commit record that the set names."""
    if (record.root, record.length) != (file.root, file.length):
        raise ValueError("not the file that was saved with this set; use another checkpoint")


def check_parts(path: str, parts: PartList) -> None:
    """Read the commit records of all part files of a set.

    Raises
    ------
    CheckpointError
        If a part is missing, is not a regular file, has another length, or belongs to another set.
    """
    for part, file in enumerate(parts.files):
        with naming(path, parts, part) as own:
            descriptor = open_read(own, follow=False)
            try:
                check_record(read_record(descriptor), file)
            finally:
                close_read(descriptor)


def set_of(path: str) -> str | None:
    """Return the id of the set whose commit file this is; None for another file, one that is damaged, or none."""
    try:
        if not any(map(is_part, os.listdir(os.path.dirname(path) or "."))):
            return None
        parts = part_list(*peek(path))
    except (OSError, ValueError):
        return None
    return parts.set_id if parts else None


def remove_debris(directory: str, ours: Callable[[str], bool], set_id: str | None = None) -> None:
    """Remove part files that no commit file in the folder names, as a killed save leaves them.

    Only the holder of the folder's lock may call this, and not while parts are being written. The parts of a
    commit file that cannot be read stay.

    Parameters
    ----------
    directory : str
        The folder.
    ours : callable
        Whether a commit file of this name, such as `ckpt-7.h5`, would be of the same run.
    set_id : str, optional
        Remove parts of this set only, which has existed. Then nobody is writing them, and no lock is needed.
    """
    names = os.listdir(directory)
    candidates = [match for match in map(_NAME.fullmatch, names) if match and ours(f"{match['stem']}.h5")]
    candidates = [match for match in candidates if set_id in {None, match["set"]}]
    if not candidates:
        return
    known: set[str] = set()
    for name in names:
        if name.endswith(".h5") and not is_part(name):
            try:
                parts = part_list(*peek(os.path.join(directory, name)))
                known |= {parts.set_id} if parts else set()
            except (OSError, ValueError):
                known.add(_stem(name))
    for match in candidates:
        path = os.path.join(directory, match[0])
        if not known & {match["set"], match["stem"]} and os.path.isfile(path):
            with contextlib.suppress(OSError):  # another user's
                os.unlink(path)
