"""HDF5's virtual datasets: tensors whose elements are in datasets of other files.

Names are those of the "HDF5 File Format Specification", as in hdf5.py.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvar.checkpoint import hdf5

_LEAST = 4096  # bytes of a global heap; libhdf5 reads so many at once
_FULL = 1 << 20  # bytes of a global heap that gets no further object
_MOST = 1 << 15  # objects in a global heap, of at most 2**16 - 1
_OBJECT = struct.Struct("<HH4xQ")  # in a global heap: its number, references to it, its size
_32 = 0xFFFFFFFF
Box = tuple[tuple[int, ...], tuple[int, ...]]  # its first index along each axis, and its lengths


class Source(NamedTuple):
    """Where elements of a virtual dataset are: in a one-dimensional dataset of a file in the same folder.

    Attributes
    ----------
    file : str
        The name of the file.
    start, stop : int
        Which elements of the tensor it holds, in C order; it holds no others.
    """

    file: str
    start: int
    stop: int


class Virtual(NamedTuple):
    """A virtual dataset. The dataset in each file has its name."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sources: Sequence[Source]


def place(structures: hdf5.Structures, datasets: Iterable[Virtual]) -> dict[str, int]:
    """Add virtual datasets and the heaps with their mappings. Return the addresses of the datasets by name."""
    addresses = {}
    for group in _grouped([(one, _mapping(one)) for one in datasets]):
        heap = structures.place(_heap([mapping for _, mapping in group]))
        for number, (one, _) in enumerate(group, 1):
            form = hdf5.virtual_dataset(one.dtype, one.shape, heap, number)
            addresses[one.name] = structures.place(form)
    return addresses


def _grouped(mapped: Sequence[tuple[Virtual, bytes]]) -> Iterator[list[tuple[Virtual, bytes]]]:
    """Yield what shares a heap: some datasets and their mappings."""
    group: list[tuple[Virtual, bytes]] = []
    size = 0
    for one in mapped:
        if group and (size + len(one[1]) > _FULL or len(group) == _MOST):
            yield group
            group, size = [], 0
        group.append(one)
        size += len(one[1])
    if group:
        yield group


def _heap(objects: Sequence[bytes]) -> bytes:
    """Return a global heap with these objects, numbered from 1."""
    head = struct.Struct("<4sB3xQ")
    parts = [
        _OBJECT.pack(number, 1, len(data)) + data + bytes(-len(data) % 8) for number, data in enumerate(objects, 1)
    ]
    used = head.size + sum(map(len, parts))
    size = max(_LEAST, used + _OBJECT.size)
    free = _OBJECT.pack(0, 0, size - used).ljust(size - used, b"\0")
    return head.pack(b"GCOL", 1, size) + b"".join(parts) + free


def _mapping(one: Virtual) -> bytes:
    """Return the block that says where the elements of a virtual dataset are."""
    dataset = _escaped(one.name)
    entries = []
    for source in one.sources:
        names = _escaped(source.file) + dataset
        first = 0
        for box in boxes(source.start, source.stop, one.shape):
            count = math.prod(box[1])
            entries.append(names + _selection(((first,), (count,))) + _selection(box))
            first += count
    block = struct.pack("<BQ", 0, len(entries)) + b"".join(entries)
    return block + struct.pack("<I", checksum(block))


def _escaped(name: str) -> bytes:
    """Return a name as it stands in a mapping, where %b is the number of a block."""
    return name.replace("%", "%%").encode() + b"\0"


def _selection(box: Box) -> bytes:
    """Return a dataspace selection: a hyperslab of one block, or everything of a dataspace without axes."""
    first, lengths = box
    if not lengths:
        return struct.pack("<IIII", 3, 1, 0, 0)
    fields = [number for start, length in zip(first, lengths, strict=True) for number in (start, 1, 1, length)]
    body = struct.pack(f"<I{len(fields)}Q", len(lengths), *fields)
    return struct.pack("<IIBI", 2, 2, 1, len(body)) + body


def boxes(start: int, stop: int, shape: tuple[int, ...]) -> Iterator[Box]:
    """Yield boxes that hold the elements [start, stop) of an array of this shape, in their order.

    Examples
    --------
    >>> list(boxes(3, 11, (4, 4)))
    [((0, 3), (1, 1)), ((1, 0), (1, 4)), ((2, 0), (1, 3))]
    """
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    (low, before), (high, after) = divmod(start, row), divmod(stop, row)
    if before:
        end = after if low == high else row
        for first, lengths in boxes(before, end, shape[1:]):
            yield (low, *first), (1, *lengths)
        if low == high:
            return
        low += 1
    if high > low:
        yield (low, *(0 for _ in shape[1:])), (high - low, *shape[1:])
    if after:
        for first, lengths in boxes(0, after, shape[1:]):
            yield (high, *first), (1, *lengths)


def checksum(data: bytes) -> int:
    """Return the checksum of HDF5's metadata: Bob Jenkins's lookup3.

    Examples
    --------
    >>> hex(checksum(b"Four score and seven years ago"))
    '0x17770551'
    """
    a = b = c = (0xDEADBEEF + len(data)) & _32
    if not data:
        return c
    blocks: tuple[int, ...] = struct.unpack(f"<{-(-len(data) // 12) * 3}I", data + bytes(-len(data) % 12))
    for at in range(0, len(blocks) - 3, 3):
        a, b, c = a + blocks[at] & _32, b + blocks[at + 1] & _32, c + blocks[at + 2] & _32
        for turn in (4, 6, 8, 16, 19, 4):
            a = (a - c & _32) ^ (c << turn | c >> 32 - turn) & _32
            c = c + b & _32
            a, b, c = b, c, a  # the next round changes b, and uses a and c
    a, b, c = (x + y & _32 for x, y in zip((a, b, c), blocks[-3:], strict=True))
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - (b << turn | b >> 32 - turn) & _32
        a, b, c = b, c, a  # the next round changes a, and uses c
    return b
