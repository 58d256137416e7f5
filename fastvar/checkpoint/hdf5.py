"""The metadata of an HDF5 file (groups and dataset headers) as bytes.

Every structure has the version without a checksum, which all versions of HDF5 read. Names are those of the "HDF5
File Format Specification". Addresses count from the end of the user block. libhdf5 takes ten times as long, and
holds the GIL meanwhile.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from h5py import h5t  # type: ignore[import-untyped]

from fastvar.checkpoint.file_format import EXTENDED, HDF5_SIGNATURE, USER_BLOCK, dtype_named

SUPERBLOCK = 96  # bytes
_UNDEFINED = (1 << 64) - 1  # the address of nothing
_FEW = 32  # most links in the header of a group; of more there is a B-tree
_HALF = 32  # half the capacity of a node of a B-tree
_NODE = 24 + 16 * _HALF + 8 * (2 * _HALF + 1)  # bytes of an inner node
_LEAF = 8 + 40 * 2 * _HALF

# Types of messages in object headers.
_DATASPACE, _LINK_INFO, _DATATYPE, _FILL_VALUE, _LINK, _STORAGE, _GROUP_INFO, _ATTRIBUTE, _SYMBOL_TABLE = (
    *(0x01, 0x02, 0x03, 0x05, 0x06),
    *(0x08, 0x0A, 0x0C, 0x11),
)
_HEADER = struct.Struct("<BxHII4x")  # version, numbers of messages, of links to it, of bytes
_MESSAGE = struct.Struct("<HHB3x")  # type, size, flags
_NAMED = struct.Struct("<BBBH")  # a link: version, flags, character set, length of the name
_PLACE = struct.Struct("<QQ6x")  # address and size of contiguous storage; ends the header of a dataset


class Structures:
    """Structures one after the other, from some address on.

    Attributes
    ----------
    end : int
        The address after the last one; a multiple of 8.
    """

    def __init__(self, start: int) -> None:
        self.end: int = start
        self._parts: list[bytes] = []

    def place(self, structure: bytes) -> int:
        """Add a structure, and return its address."""
        address = self.end
        self._parts.append(structure)
        self.end += len(structure)
        return address

    def content(self) -> bytes:
        """Return the bytes of all structures."""
        return b"".join(self._parts)

    def group(self, links: Mapping[str, int]) -> int:
        """Add a group, given the addresses of its members by name, and return its address."""
        encoded = {name.encode(): address for name, address in links.items()}
        if len(links) > _FEW:
            return self.place(_header([_message(_SYMBOL_TABLE, struct.pack("<QQ", *self._index(encoded)))]))
        return self.place(_header([*_FEW_LINKS, *(_link(name, address) for name, address in encoded.items())]))

    def _index(self, links: Mapping[bytes, int]) -> tuple[int, int]:
        """Add the B-tree and the local heap of a group with many links, and return their addresses."""
        names = sorted(links)
        at, places, texts = 8, [], [bytes(8)]  # the heap begins with the empty name
        for name in names:
            places.append(at)
            texts.append(_padded(name + b"\0"))
            at += len(texts[-1])
        heap = self.place(struct.pack("<4sB3xQQQ", b"HEAP", 0, at, 1, self.end + 32) + b"".join(texts))
        children = []  # address of each node, and heap offset of its last name
        for first in range(0, len(names), 2 * _HALF):
            part = slice(first, first + 2 * _HALF)
            entries = [
                struct.pack("<QQ24x", place, links[name])
                for place, name in zip(places[part], names[part], strict=True)
            ]
            leaf = struct.pack("<4sBxH", b"SNOD", 1, len(entries)) + b"".join(entries)
            children.append((self.place(leaf.ljust(_LEAF, b"\0")), places[part][-1]))
        level = 0
        while level == 0 or len(children) > 1:
            children, level = self._nodes(children, level), level + 1
        return children[0][0], heap

    def _nodes(self, children: list[tuple[int, int]], level: int) -> list[tuple[int, int]]:
        """Add a level of the B-tree above `children`."""
        nodes = []
        before = 0  # heap offset of the last name of the previous node
        for first in range(0, len(children), 2 * _HALF):
            part = children[first : first + 2 * _HALF]
            left = self.end - _NODE if first else _UNDEFINED
            right = self.end + _NODE if first + 2 * _HALF < len(children) else _UNDEFINED
            head = struct.pack("<4sBBHQQQ", b"TREE", 0, level, len(part), left, right, before)
            node = head + b"".join(struct.pack("<QQ", *child) for child in part)
            before = part[-1][1]
            nodes.append((self.place(node.ljust(_NODE, b"\0")), before))
        return nodes


def superblock(root: int, length: int) -> bytes:
    """Return the superblock, which follows the user block: the addresses of the root group and of the end."""
    return HDF5_SIGNATURE + struct.pack(
        "<8B HHI QQQQ QQ24x",
        *(0, 0, 0, 0, 0, 8, 8, 0),  # versions; bytes of an address, of a length
        *(_HALF, _HALF, 0),
        *(USER_BLOCK, _UNDEFINED, length, _UNDEFINED),
        *(0, root),
    )


def dataset(form: bytes, address: int, size: int) -> bytes:
    """Return the header of a dataset with this `array_form` or `text_form`, and data of this address and size."""
    return form + _PLACE.pack(address if size else _UNDEFINED, size)


def array_form(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the beginning of the headers of all arrays of one dtype and shape."""
    return _form([_message(_DATASPACE, _dataspace(shape)), *_element(dtype)])


def text_form(length: int) -> bytes:
    """Return the same for UTF-8 text of fixed length, which needs no heap and which any tool prints."""
    return _form([_message(_DATASPACE, _dataspace(())), _message(_DATATYPE, _text(length)), _UNFILLED])


def virtual_dataset(dtype: np.dtype[Any], shape: tuple[int, ...], heap: int, number: int) -> bytes:
    """Return the header of a virtual dataset, whose mapping is an object in the global heap at this address."""
    storage = struct.pack("<BBQI", 4, 3, heap, number)
    return _header([_message(_DATASPACE, _dataspace(shape)), *_element(dtype), _message(_STORAGE, storage)])


def _element(dtype: np.dtype[Any]) -> list[bytes]:
    """Return the messages that describe an element."""
    if dtype.name not in EXTENDED:
        return [_message(_DATATYPE, _encoded(dtype_named(dtype.name))), _UNFILLED]
    text = dtype.name.encode()
    parts = [b"dtype\0", _text(len(text)), _dataspace(())]
    fields = struct.pack("<BxHHH", 1, *map(len, parts)) + b"".join(map(_padded, parts)) + text
    stored = np.dtype(f"<u{dtype.itemsize}")
    return [_message(_DATATYPE, _encoded(stored)), _UNFILLED, _message(_ATTRIBUTE, fields)]


def _form(messages: list[bytes]) -> bytes:
    """Return the header of a dataset in contiguous storage up to its place."""
    return _header([*messages, _message(_STORAGE, bytes([3, 1]) + _PLACE.pack(0, 0))])[: -_PLACE.size]


def _dataspace(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<BB6x{len(shape)}Q", 1, len(shape), *shape)


@functools.cache
def _encoded(dtype: np.dtype[Any]) -> bytes:
    """Return the datatype message of a dtype, as libhdf5 encodes it (after two bytes of its own)."""
    encoded: bytes = h5t.py_create(dtype, logical=True).encode()[2:]
    return encoded


def _text(length: int) -> bytes:
    """Return the datatype of a string: class 3, padded by spaces (2), UTF-8 (0x10)."""
    return struct.pack("<BBHI", 0x13, 0x12, 0, length)


def _link(name: bytes, address: int) -> bytes:
    """Return the message of a link with a character set (0x10), UTF-8 (1), and a length of two bytes (0x01)."""
    return _message(_LINK, _NAMED.pack(1, 0x11, 1, len(name)) + name + address.to_bytes(8, "little"))


def _header(messages: Sequence[bytes]) -> bytes:
    """Return an object header with these messages and one link to it."""
    body = b"".join(messages)
    return _HEADER.pack(1, len(messages), 1, len(body)) + body


def _message(kind: int, fields: bytes) -> bytes:
    fields = _padded(fields)
    return _MESSAGE.pack(kind, len(fields), 0) + fields


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


_UNFILLED = _message(_FILL_VALUE, bytes([2, 2, 1, 1, 0, 0, 0, 0]))  # allocated late, never filled; default value
_FEW_LINKS = (  # the messages of a group before its links
    _message(_LINK_INFO, struct.pack("<BBQQ", 0, 0, _UNDEFINED, _UNDEFINED)),
    _message(_GROUP_INFO, bytes(2)),
)
