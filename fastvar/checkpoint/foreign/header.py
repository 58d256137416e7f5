"""A text of variable length in the header of an HDF5 object, read without libhdf5.

libhdf5 trusts the length of the text and its collection: a file can keep it busy for ever, or make it allocate
gigabytes. (HDF5 File Format Specification 3.0: III.E global heap, IV.A object headers.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

Read = Callable[[int, int], bytes]  # (address, count) -> bytes, fewer at the end of the file

_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10  # types of messages
_MAX_HEADER = 1 << 20  # bytes of an object's header
_MAX_TEXTS = 1 << 16  # in a collection: their numbers have 16 bits


def attribute_text(read: Read, address: int, name: bytes, most: int) -> bytes | None:
    """Return the text of an attribute; None if it has more than `most` bytes or is not where it should be."""
    try:
        for kind, body in _messages(read, address):
            place = _place(body, name) if kind == _ATTRIBUTE else None
            if place is not None:
                length, collection, number = place
                return _text(read, collection, number, length) if length <= most else None
    except (struct.error, IndexError, OverflowError, OSError):  # malformed
        pass
    return None


def _messages(read: Read, address: int) -> Iterator[tuple[int, bytes]]:
    """Yield the types and bodies of the messages in a header and its continuations."""
    head = read(address, 64)
    if head.startswith(b"OHDR"):  # version 2
        flags = head[5]
        at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        size = int.from_bytes(head[at : at + width], "little")
        form, tail, start = struct.Struct("<BHB2x" if flags & 4 else "<BHB"), 4, address + at + width
    else:
        (size,) = struct.unpack_from("<I", head, 8)
        form, tail, start = struct.Struct("<HHB3x"), 0, address + 16
    pending, left = [(start, size)], _MAX_HEADER
    while pending:
        start, size = pending.pop()
        left -= size + form.size
        if size < 0 or left < 0:
            return
        chunk, at = read(start, size), 0
        while at + form.size <= len(chunk):
            kind, length, _ = form.unpack_from(chunk, at)
            body = chunk[at + form.size : at + form.size + length]
            at += form.size + length
            if kind == _CONTINUATION:
                start, size = struct.unpack_from("<QQ", body)
                pending.append((start + tail, size - 2 * tail))  # between signature and checksum
            yield kind, body


def _place(body: bytes, name: bytes) -> tuple[int, int, int] | None:
    """Return length, collection and number of the text of an attribute; None if it has another name."""
    version, shared, *lengths = struct.unpack_from("<BBHHH", body)
    at = 9 if version == 3 else 8
    if body[at : at + lengths[0]].rstrip(b"\0") != name or (version > 1 and shared):
        return None
    step = 8 if version == 1 else 1  # each part is padded to a multiple
    at += sum(-(-length // step) * step for length in lengths)
    length, collection, number = struct.unpack_from("<IQI", body, at)
    return length, collection, number


def _text(read: Read, collection: int, number: int, length: int) -> bytes | None:
    signature, size = struct.unpack("<4s4xQ", read(collection, 16))
    at = 16
    for _ in range(_MAX_TEXTS):
        if signature != b"GCOL" or at >= size:
            break
        found, own = struct.unpack("<H6xQ", read(collection + at, 16))
        if found == number:
            return read(collection + at + 16, length) if own == length else None
        if not found:  # free space, which is the last
            break
        at += 16 + -(-own // 8) * 8
    return None
