"""The format of a checkpoint file: commit record, manifest, names, dtypes; and CheckpointError."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import math
import operator
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import xxhash

from fastvar.tables import count

USER_BLOCK = 4096
LARGE = 1 << 16  # bytes; tensors from this size on are aligned to a page and written piece by piece
CHUNK = 1 << 20  # bytes hashed and moved at a time: about the L2 cache; with less, threads wait for the GIL
MAX_JSON = 1 << 26  # bytes of manifest and of state: bounds the cost of reading a hostile file
MAX_NAME = 4096  # bytes: far below HDF5's 64 KB for an object header message
MAX_RANK = 32  # HDF5's

MANIFEST = "manifest"
STATE = "state/json"  # "state" is a group that also holds the arrays of the state

NATIVE = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
EXTENDED = (  # of ml_dtypes; stored as unsigned integers with an attribute "dtype"
    *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)

MAGIC = b"\x89fastvar\r\n\x1a\n"
TORCH = (
    "torch.save wrote it, as a pickle, which fastvar does not load; in PyTorch, write the state_dict by "
    "safetensors.torch.save_file, and import that by Checkpoint.import_weights"
)
VERSION = 2
OF_SETS = 3  # the version of a file that names part files (see parts.py), which older releases must not read alone
READABLE = (1, 2, OF_SETS)  # in version 1, entries of the manifest are objects, not rows (see `parse_manifest`)
# magic, version; file length, step; run, counter; offset, length, hash of manifest and of state;
# hash of the metadata
_FIELDS = struct.Struct("<12sI QQ 16sQ QQ16s QQ16s 16s")
_BODY = USER_BLOCK - 16  # in every version, the last 16 bytes are the hash of those before them
_FORBIDDEN = ("//", "/./", "/../", "\0")  # in a path between slashes
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read. The message names the file and the cause.

    Attributes
    ----------
    errno : int or None
        That of the operating system's error, if one was the cause.
    damaged : tuple of str
        The tensors whose bytes differ from those that were saved.
    """

    def __init__(self, message: str, *, errno: int | None = None, damaged: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.errno = errno
        self.damaged: tuple[str, ...] = tuple(damaged)


def not_a_file(mode: int) -> str | None:
    """Return why something with this mode (of `os.stat`) cannot be read as a file, or None."""
    if stat.S_ISDIR(mode):
        return "a folder, not a file; give one of the files in it"
    return None if stat.S_ISREG(mode) else "not a file"


def checked_step(step: Any) -> int:
    """Return a step, which may be a Variable or a whole float, as an int.

    Raises
    ------
    TypeError, ValueError
        If it is not a whole number from 0 to 2**64 - 1.
    """
    wanted = f"step must be a whole number from 0 to 2**64 - 1, got {step!r}"
    if isinstance(step, (bool, str, bytes)):
        raise TypeError(wanted)
    number: float
    try:
        number = operator.index(step)
    except TypeError:
        try:
            number = float(step)
        except (TypeError, ValueError):
            raise TypeError(wanted) from None
    if not 0 <= number < 1 << 64 or number % 1:
        raise ValueError(wanted)
    return int(step)


@contextlib.contextmanager
def failing(path: str, what: str = "not saved") -> Iterator[None]:
    """Turn an OSError raised inside into a CheckpointError that names the file or folder."""
    try:
        yield
    except (CheckpointError, FileExistsError):
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: {what}: {error.strerror or error}", errno=error.errno) from error


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Suspend garbage collection inside: traversing thousands of new objects takes longer than making them."""
    enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if enabled:
            gc.enable()


MAX_COUNTER = (1 << 64) - 1


class Saved(NamedTuple):
    """Which save wrote a file: the run's random id (32 hex digits) and its count of saves."""

    run: str
    counter: int


class Section(NamedTuple):
    """A stretch of the file and the hash of its bytes."""

    offset: int
    length: int
    hash: str


@dataclass(frozen=True)
class Record:
    """The commit record, which makes a file a checkpoint; it fills the first 4096 bytes.

    `metadata` is the hash of all bytes outside the record, the sections and the tensors. So every bit of the file
    is under some hash.
    """

    length: int
    step: int
    saved: Saved
    manifest: Section
    state: Section
    metadata: str
    version: int = VERSION

    def pack(self) -> bytes:
        """Return the 4096 bytes of the user block."""
        body = self._body()
        return body + xxhash.xxh3_128_digest(body)

    @property
    def root(self) -> str:
        """The root hash: that of the record, and so of everything under its hashes."""
        return xxhash.xxh3_128_hexdigest(self._body())

    def _body(self) -> bytes:
        sections = []
        for section in (self.manifest, self.state):
            sections += [section.offset, section.length, bytes.fromhex(section.hash)]
        run = bytes.fromhex(self.saved.run)
        return _FIELDS.pack(
            *(MAGIC, self.version, self.length, self.step, run, self.saved.counter),
            *(*sections, bytes.fromhex(self.metadata)),
        ).ljust(_BODY, b"\0")

    @classmethod
    def unpack(cls, block: bytes) -> Record:
        """Return the record in `block`, the first bytes of a file.

        Raises
        ------
        ValueError
            If there is no record, or it is damaged or of a newer format.
        """
        if not block.startswith(MAGIC):
            if any(block[at:].startswith(HDF5_SIGNATURE) for at in (0, 512, 1024, 2048, 4096)):
                raise ValueError(
                    "this HDF5 file was not written by fastvar (it has no commit record); import it by "
                    "Checkpoint.import_weights, or read it by checkpoint.load_foreign"
                )
            if is_torch(block):
                raise ValueError(TORCH)
            if block.startswith(b"PK") or block[8:9] == b"{":
                raise ValueError(
                    "not written by fastvar; import .npz and safetensors files by Checkpoint.import_weights"
                )
            if not block:
                raise ValueError("the file is empty; use another checkpoint")
            raise ValueError("not written by fastvar, or destroyed: there is no commit record")
        body, own_hash = block[:_BODY], block[_BODY:USER_BLOCK]
        if xxhash.xxh3_128_digest(body) != own_hash:
            raise ValueError("the commit record is damaged; use another checkpoint")
        version, length, step, run, counter, *places, metadata = _FIELDS.unpack_from(body)[1:]
        if version not in READABLE:
            raise ValueError(f"format version {version} is not among {READABLE}: update fastvar")
        manifest = Section(places[0], places[1], places[2].hex())
        state = Section(places[3], places[4], places[5].hex())
        return cls(length, step, Saved(run.hex(), counter), manifest, state, metadata.hex(), version)


class Entry(NamedTuple):
    """A tensor in the file. One of size zero has no bytes and its offset is None."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int | None
    length: int
    hash: str


_MALFORMED = (TypeError, ValueError, LookupError)


@functools.cache
def dtype_named(name: str) -> np.dtype[Any]:
    """The little-endian dtype that `name` stands for in a manifest; ValueError if none does."""
    if name not in NATIVE + EXTENDED:
        raise ValueError(f"dtype must be one of {', '.join(NATIVE + EXTENDED)}, got {name!r}")
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name) if name in EXTENDED else name)
    return dtype.newbyteorder("<")


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError (TypeError) unless `names` are HDF5 paths that can stand in one file."""
    names = [MANIFEST, STATE, *names]
    if not all(map(isinstance, names, repeat(str))):
        strange_name = next(name for name in names if not isinstance(name, str))
        raise TypeError(f"tensor names must be str, got {strange_name!r}")
    datasets = set(names)
    if len(datasets) != len(names):
        raise ValueError(f"{MANIFEST!r} and {STATE!r} are fastvar's own: choose another name")
    check_paths(names)
    groups: set[str] = set()
    above = datasets
    while above:
        above = {name.rpartition("/")[0] for name in above} - groups
        groups |= above
    both = groups & datasets
    if both:
        group = min(both)
        inside = next(name for name in names if name.startswith(f"{group}/"))
        raise ValueError(f"{group!r} cannot be both a tensor and the group of {inside!r}")


def check_paths(names: Collection[str]) -> None:
    """Raise ValueError unless each of `names` is an HDF5 path."""
    together = f"/{'/'.join(names)}/"  # check all at once, and look for the wrong one only if there is one
    strange = not together.isascii() or len(max(names, key=len, default="")) > MAX_NAME
    if strange or (names and any(part in together for part in _FORBIDDEN)):
        for name in names:
            _check_path(name)


def _check_path(name: str) -> None:
    if any(part in f"/{name}/" for part in _FORBIDDEN):
        raise ValueError(
            f"tensor {name!r}: name must have no NUL, no leading or trailing slash "
            "and no part that is empty, '.' or '..'"
        )
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"tensor {name!r}: name must be valid Unicode") from error
    if size > MAX_NAME:
        raise ValueError(f"tensor {name!r}: name must have at most {MAX_NAME} bytes")


def uncovered(regions: Iterable[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """Return the (offset, length) of the gaps between regions, from the user block to `end`.

    Raises
    ------
    ValueError
        If regions overlap, or leave the file.
    """
    gaps = []
    at = USER_BLOCK
    for offset, length in sorted(regions):
        if offset < at:
            raise ValueError(f"two parts of the file overlap at byte {offset}")
        if offset > at:
            gaps.append((at, offset - at))
        at = offset + length
    if at > end:
        raise ValueError(f"a part of the file is said to end at byte {at} of {end}")
    if at < end:
        gaps.append((at, end - at))
    return gaps


def parse_manifest(text: bytes, version: int = VERSION) -> dict[str, Entry]:
    """Return the entries by name; ValueError, naming the tensor, for anything impossible.

    The text is a JSON object. The value of each name is a list of the fields of its entry, such as
    `["float32", [3, 2], 8192, 24, "0f..."]`; in format version 1, an object.
    """
    manifest = parse_object(text)
    check_paths(manifest)
    try:
        return dict(zip(manifest, _entries(manifest.values(), version), strict=True))
    except _MALFORMED:
        for name, fields in manifest.items():  # find the wrong one
            try:
                _entries([fields], version)
            except _MALFORMED as error:
                cause = error if type(error) is ValueError else "its entry in the manifest is malformed"
                raise ValueError(f"tensor {name!r}: {cause}") from error
        raise


def parse_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object in `text` as a dict; ValueError if it is anything else."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
    if type(value) is not dict:
        raise ValueError("JSON must be an object")
    return value


def _entries(rows: Collection[Any], version: int) -> list[Entry]:
    """Return the entries of the manifest, checked column by column, as they are many."""
    if not rows:
        return []
    if {*map(len, rows)} != {len(Entry._fields)}:
        raise TypeError
    if version == 1:
        rows = [*map(itemgetter(*Entry._fields), rows)]
    kinds, shapes, offsets, lengths, hashes = zip(*rows, strict=True)
    if {*map(type, shapes)} - {list} or {*map(type, hashes)} - {str}:
        raise TypeError
    if {*map(type, chain(lengths, chain.from_iterable(shapes)))} - {int}:
        raise TypeError
    some = 0 in lengths or None in offsets
    if some and [*map(bool, lengths)] != [offset is not None for offset in offsets]:
        raise ValueError("an entry must have an offset if, and only if, it has bytes")
    if {*map(type, offsets)} - {int, type(None)}:
        raise TypeError
    shapes = tuple(map(tuple, shapes))
    fields = zip(map(_kind, kinds, shapes, lengths), shapes, offsets, lengths, hashes, strict=True)
    return [*map(tuple.__new__, repeat(Entry), fields)]  # faster than Entry._make


@functools.lru_cache  # thousands of entries have few different ones
def _kind(dtype: Any, shape: tuple[int, ...], length: int) -> np.dtype[Any]:
    if len(shape) > MAX_RANK or min((length, *shape)) < 0:
        raise TypeError
    kind = dtype_named(dtype)
    if kind.itemsize * math.prod(n or 1 for n in shape) >= 1 << 63:
        raise ValueError("its shape is too large")
    if length != kind.itemsize * math.prod(shape):
        raise ValueError(f"{count(length, 'byte')} cannot be of {dtype} and shape {[*shape]}")
    return kind


def is_torch(head: bytes) -> bool:
    """Return whether a file with these first bytes is of `torch.save`: a zip that begins with `NAME/data.pkl`."""
    length = int.from_bytes(head[26:28], "little")
    return head.startswith(b"PK") and head[30 : 30 + length].endswith(b"/data.pkl")
