"""Where the bytes go: the tensors' part of a file is laid out once for a set of names, dtypes and shapes.

A file is made of the commit record (HDF5's user block), the superblock, the tensors' part, and a part with the
state's arrays and JSON, the manifest and the root group. In each part there are first the data, small ones without
gaps and then large ones at pages, and then the headers and groups. So nothing in the tensors' part depends on the
state, which may grow with every save.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from fastvar.checkpoint import file_format, hdf5, virtual
from fastvar.checkpoint.file_format import LARGE, USER_BLOCK
from fastvar.checkpoint.virtual import Virtual
from fastvar.checkpoint.workers import throttled

Spec = tuple[str, "np.dtype[Any]", tuple[int, ...]]  # a tensor's name, dtype, shape

_PAGE = 4096
_BRACKETS, _BETWEEN, _END = "{}", ",\n", '"]'  # of the manifest: around, between and at the end of entries
_quoted = json.JSONEncoder().encode  # faster than `json.dumps`


@dataclass(frozen=True)
class Layout:
    """Where everything stands in an HDF5 file of tensors and state.

    Attributes
    ----------
    length : int
        Bytes of the file.
    image : sequence of (offset, bytes)
        HDF5's own metadata. Bytes that are neither metadata nor data are zero.
    metadata : str
        The hash of everything outside the record, the manifest, the state and the tensors.
    manifest, state : (offset, length)
        Where the two JSON texts stand.
    small, large : sequence of (index, offset)
        Where the tensors that have bytes stand, in file order.
    """

    length: int
    image: Sequence[tuple[int, bytes]]
    metadata: str
    manifest: tuple[int, int]
    state: tuple[int, int]
    small: Sequence[tuple[int, int]]
    large: Sequence[tuple[int, int]]
    _heads: Sequence[str]

    def manifest_text(self, hashes: Sequence[str]) -> bytes:
        """Return the manifest, given the hashes of the tensors."""
        return _manifest(self._heads, hashes)


class Tensors:
    """A checked set of tensors. Its part of a file is made when it is first needed.

    Raises
    ------
    ValueError
        If one HDF5 file cannot hold these names or shapes.
    TypeError
        If a dtype cannot be stored.
    """

    def __init__(self, specs: tuple[Spec, ...]) -> None:
        file_format.check_names([name for name, _, _ in specs])
        known = set()
        for name, dtype, shape in specs:
            if (dtype, shape) not in known:
                _check(name, dtype, shape)
                known.add((dtype, shape))
        self.specs = specs

    @functools.cached_property
    def part(self) -> _Part:
        """The part of a file that holds these tensors."""
        part = _Part(self.specs, USER_BLOCK + hdf5.SUPERBLOCK)
        part.finish()
        return part


tensors_of: Callable[..., Tensors] = functools.lru_cache(maxsize=4)(
    Tensors
)  # a run saves the same few sets again and again


def _check(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype.name not in file_format.NATIVE + file_format.EXTENDED:
        raise TypeError(f"tensor {name!r}: dtype {dtype} cannot be stored in a checkpoint")
    if len(shape) > file_format.MAX_RANK:
        raise ValueError(f"tensor {name!r}: rank must be at most 32, got {len(shape)}")


def layout_of(tensors: Tensors, arrays: Tensors, state_length: int, elsewhere: Sequence[Virtual] = ()) -> Layout:
    """Return the layout of a file with these tensors, arrays of the state, and bytes of JSON state.

    Tensors that are `elsewhere`, in other files, may be in no group of `tensors`.

    Raises
    ------
    ValueError
        If manifest or state would be too long.
    """
    first = tensors.part
    last = _Part(arrays.specs, first.end, elsewhere)
    heads = [*first.heads, *last.heads]
    manifest_length = len(_BRACKETS) + sum(map(len, heads))
    manifest_length += len(heads) * (32 + len(_END)) + max(len(heads) - 1, 0) * len(_BETWEEN)
    if max(manifest_length, state_length) > file_format.MAX_JSON:
        raise ValueError(
            f"manifest and state must have at most {file_format.MAX_JSON} bytes each, got "
            f"{manifest_length} and {state_length}; keep arrays among the tensors"
        )
    state = last.add_text(file_format.STATE, state_length)
    manifest = last.add_text(file_format.MANIFEST, manifest_length)
    last.finish()
    root = last.structures.group(first.links | last.links)
    superblock = hdf5.superblock(root, last.end)
    digest = xxhash.xxh3_128(superblock)
    for part in (first, last):
        digest.update(bytes(part.padding))
        digest.update(part.structures.content())
    count = len(first.heads)
    return Layout(
        length=last.end,
        image=[(USER_BLOCK, superblock), first.image, last.image],
        metadata=digest.hexdigest(),
        manifest=manifest,
        state=state,
        small=[*first.small, *((index + count, offset) for index, offset in last.small)],
        large=[*first.large, *((index + count, offset) for index, offset in last.large)],
        _heads=heads,
    )


def _manifest(heads: Iterable[str], hashes: Sequence[str]) -> bytes:
    entries = [f"{head}{digest}{_END}" for head, digest in throttled(zip(heads, hashes, strict=True))]
    return _BETWEEN.join(entries).join(_BRACKETS).encode()


class _Part:
    """Some datasets of a file: their data from `start` on, then their headers and groups.

    Attributes
    ----------
    small, large : list of (index, offset)
        Where the tensors that have bytes stand, in file order.
    heads : list of str
        The entry of each tensor in the manifest up to its hash; it does not change between saves.
    padding : int
        How many zero bytes stand between the data.
    structures : Structures
        The headers and groups, which follow the data.
    links : dict of str to int
        The addresses that the root group must link to, by name.
    """

    def __init__(self, specs: Sequence[Spec], start: int, elsewhere: Sequence[Virtual] = ()) -> None:
        self._elsewhere = elsewhere
        kinds = {kind: _Kind(*kind) for kind in {(dtype, shape) for _, dtype, shape in specs}}
        of_specs = [kinds[dtype, shape] for _, dtype, shape in specs]
        sizes = [kind.size for kind in of_specs]
        self._start, self._data = start, sum(sizes)
        self.small, end = _places([(i, size) for i, size in enumerate(sizes) if 0 < size < LARGE], start, 1)
        self.large, self._end = _places([(i, size) for i, size in enumerate(sizes) if size >= LARGE], end, _PAGE)
        offsets = dict(self.small + self.large)
        self.heads: list[str] = []
        self._datasets: list[tuple[str, bytes, int, int]] = []  # name, form, offset, size
        for index, ((name, _, _), kind) in enumerate(throttled(zip(specs, of_specs, strict=True))):
            offset = offsets.get(index, 0)
            self.heads.append(f'{_quoted(name)}: {kind.head}{offset or "null"}, {kind.size}, "')
            self._datasets.append((name, kind.form, offset, kind.size))

    def add_text(self, name: str, length: int) -> tuple[int, int]:
        """Add a dataset of text, which is not a tensor, and return its offset and length."""
        offset = self._end
        self._datasets.append((name, hdf5.text_form(length), offset, length))
        self._end += length
        self._data += length
        return offset, length

    def finish(self) -> None:
        """Make the headers and groups. No data may be added after this."""
        start = self._end + -self._end % 8
        self.padding = start - self._start - self._data
        self.structures = hdf5.Structures(start - USER_BLOCK)
        groups: dict[str, dict[str, int]] = {"": {}}
        for name, form, offset, size in throttled(self._datasets):
            _link(groups, name, self.structures.place(hdf5.dataset(form, offset - USER_BLOCK, size)))
        for name, address in virtual.place(self.structures, self._elsewhere).items():
            _link(groups, name, address)
        for group in throttled(sorted(groups, key=_depth, reverse=True)):  # inner ones first
            if group:
                _link(groups, group, self.structures.group(groups[group]))
        self.links = groups[""]
        self._datasets.clear()  # no longer needed

    @property
    def image(self) -> tuple[int, bytes]:
        """The offset and bytes of the structures."""
        content = self.structures.content()
        return self.end - len(content), content

    @property
    def end(self) -> int:
        """The offset after everything."""
        return self.structures.end + USER_BLOCK


class _Kind:
    """What tensors of one dtype and shape share: size, beginnings of their headers and manifest entries."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.size = dtype.itemsize * math.prod(shape)
        self.form = hdf5.array_form(dtype, shape)
        self.head = f'["{dtype.name}", {json.dumps(shape)}, '


def _places(sizes: Sequence[tuple[int, int]], at: int, boundary: int) -> tuple[list[tuple[int, int]], int]:
    """Place (index, size) from `at` on, each on a boundary; return (index, offset) of each, and the end."""
    places = []
    for index, size in sizes:
        at += -at % boundary
        places.append((index, at))
        at += size
    return places, at


def _link(groups: dict[str, dict[str, int]], name: str, address: int) -> None:
    """Enter the address of `name` in its group, and new parent groups with the address 0 for now."""
    group, _, last = name.rpartition("/")
    while group not in groups:
        groups[group] = {last: address}
        address = 0
        group, _, last = group.rpartition("/")
    groups[group][last] = address


def _depth(group: str) -> int:
    return group.count("/")
