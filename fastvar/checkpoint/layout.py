"""Where the bytes go: libhdf5 lays a file out in memory, once for a set of names and shapes."""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from h5py import (  # type: ignore[import-untyped]
    h5a,
    h5d,
    h5f,
    h5fd,
    h5g,
    h5p,
    h5s,
    h5t,
)

from fastvar.checkpoint import record

Spec = tuple[str, "np.dtype[Any]", tuple[int, ...]]  # a tensor's name, dtype, shape

_ALIGNMENT = 4096
_MAX_OFFSET = (1 << 63) - 1


@dataclass(frozen=True)
class Layout:
    """The HDF5 file of some tensors, without their bytes.

    Attributes
    ----------
    length : int
        Of the file.
    image : sequence of (offset, bytes)
        HDF5's own metadata; what is neither this nor data is zero.
    metadata : str
        The hash of everything outside the record, the manifest, the state and the tensors.
    manifest, state : (offset, length)
        The room of the two JSON texts, to be filled up with spaces.
    order : sequence of (index, offset)
        The tensors that have bytes, in file order.
    """

    length: int
    image: tuple[tuple[int, bytes], ...]
    metadata: str
    manifest: tuple[int, int]
    state: tuple[int, int]
    order: tuple[tuple[int, int], ...]
    _heads: tuple[str, ...]

    def manifest_text(self, hashes: Sequence[str]) -> bytes:
        """The manifest, given the tensors' hashes, filled up to its room."""
        return _manifest(self._heads, hashes).ljust(self.manifest[1])


@functools.lru_cache(maxsize=4)  # a run saves the same few sets of tensors again and again
def layout_of(specs: tuple[Spec, ...], state_length: int) -> Layout:
    """The layout of a file with these tensors and `state_length` bytes of state.

    Raises
    ------
    ValueError
        If names or shapes cannot stand in one HDF5 file.
    TypeError
        If a dtype cannot be stored.
    """
    record.check_names(name for name, _, _ in specs)
    for name, dtype, shape in specs:
        if dtype.name not in record.NATIVE + record.EXTENDED:
            raise TypeError(f"tensor {name!r}: dtype {dtype} cannot be stored in a checkpoint")
        if len(shape) > record.MAX_RANK:
            raise ValueError(f"tensor {name!r}: rank must be at most 32, got {len(shape)}")
    # Fixed before there are offsets and hashes, by the longest they can be.
    longest = (_head(spec, _MAX_OFFSET) for spec in specs)
    manifest_length = len(_manifest(longest, ["0" * 32] * len(specs)))
    if max(manifest_length, state_length) > record.MAX_JSON:
        raise ValueError(
            f"manifest and state must have at most {record.MAX_JSON} bytes each, got "
            f"{manifest_length} and {state_length}; keep arrays among the tensors"
        )
    file, places = _lay_out(specs, manifest_length, state_length)
    manifest, state, *tensors = places
    gaps = record.uncovered((place for place in places if place[1]), file.length)
    image = [(offset, file.content(offset, length)) for offset, length in gaps]
    return Layout(
        length=file.length,
        image=tuple((offset, data) for offset, data in image if any(data)),
        metadata=xxhash.xxh3_128_hexdigest(b"".join(data for _, data in image)),
        manifest=manifest,
        state=state,
        order=tuple(
            sorted(
                ((index, place[0]) for index, place in enumerate(tensors) if place[1]),
                key=lambda item: item[1],
            )
        ),
        _heads=tuple(
            _head(spec, place[0] if place[1] else None) for spec, place in zip(specs, tensors, strict=True)
        ),
    )


def _head(spec: Spec, offset: int | None) -> str:
    """A tensor's part of the manifest up to its hash: all that does not change between saves."""
    name, dtype, shape = spec
    fields = json.dumps([dtype.name, shape, offset, dtype.itemsize * math.prod(shape)])
    return f'{json.dumps(name)}: {fields[:-1]}, "'


def _manifest(heads: Iterable[str], hashes: Sequence[str]) -> bytes:
    entries = [f'{head}{digest}"]' for head, digest in zip(heads, hashes, strict=True)]
    return ("{" + ",\n".join(entries) + "}").encode()


def _lay_out(
    specs: Sequence[Spec], manifest_length: int, state_length: int
) -> tuple[_SparseFile, list[tuple[int, int]]]:
    """Make the file; the places of manifest, state and tensors, in this order.

    All headers first, then all room for data: so the metadata is one stretch at the front.
    """
    target = _SparseFile()
    file = _create_file(target)
    links = h5p.create(h5p.LINK_CREATE)
    links.set_char_encoding(h5t.CSET_UTF8)
    _create_groups(file, links, [record.STATE, *(name for name, _, _ in specs)])

    options = h5p.create(h5p.DATASET_CREATE)
    options.set_layout(h5d.CONTIGUOUS)
    options.set_alloc_time(h5d.ALLOC_TIME_LATE)
    options.set_fill_time(h5d.FILL_TIME_NEVER)
    options.set_obj_track_times(False)

    def create(name: str, datatype: Any, space: Any) -> Any:
        return h5d.create(file, name.encode(), datatype, space, options, links)

    scalar = h5s.create(h5s.SCALAR)
    datasets = [
        create(record.MANIFEST, _text(manifest_length), scalar),
        create(record.STATE, _text(state_length), scalar),
    ]
    for name, dtype, shape in specs:
        extended = dtype.name in record.EXTENDED
        stored = np.dtype(f"<u{dtype.itemsize}") if extended else record.dtype_named(dtype.name)
        space = h5s.create_simple(shape) if shape else scalar
        dataset = create(name, h5t.py_create(stored, logical=True), space)
        if extended:
            name_type = _text(len(dtype.name))
            attribute = h5a.create(dataset, b"dtype", name_type, scalar)
            attribute.write(np.array(dtype.name.encode()), name_type)
        datasets.append(dataset)
    places = [_allocate(dataset) for dataset in datasets]
    file.close()  # and, being strong, all that is open in it
    return target, places


def _create_file(target: _SparseFile) -> Any:
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_userblock(record.USER_BLOCK)
    creation.set_obj_track_times(False)
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_alignment(record.LARGE, _ALIGNMENT)  # small tensors stand without gaps
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5fd.fileobj_driver, target)
    return h5f.create(b"layout", h5f.ACC_TRUNC, creation, access)


def _create_groups(file: Any, links: Any, names: Iterable[str]) -> None:
    options = h5p.create(h5p.GROUP_CREATE)
    options.set_obj_track_times(False)
    groups = {""}
    for name in names:
        at = name.find("/")
        while at >= 0:
            group = name[:at]
            if group not in groups:
                groups.add(group)
                h5g.create(file, group.encode(), links, options)
            at = name.find("/", at + 1)


def _text(length: int) -> Any:
    """A string of fixed length: no global heap, and any tool prints it."""
    datatype = h5t.C_S1.copy()
    datatype.set_size(length)
    datatype.set_strpad(h5t.STR_SPACEPAD)
    datatype.set_cset(h5t.CSET_UTF8)
    return datatype


def _allocate(dataset: Any) -> tuple[int, int]:
    """Make libhdf5 give the dataset its room, and tell where. Writing one element does it."""
    space = dataset.get_space()
    shape = space.get_simple_extent_dims()
    if 0 in shape:
        return 0, 0
    if shape:
        space.select_hyperslab((0,) * len(shape), (1,) * len(shape))
    datatype = dataset.get_type()
    one = np.zeros(1, f"V{datatype.get_size()}")
    dataset.write(h5s.create_simple((1,)), space, one, datatype)
    return dataset.get_offset(), dataset.get_storage_size()


class _SparseFile(io.RawIOBase):
    """A file in memory that holds only the pages written to: a terabyte of tensors costs nothing.

    (The core driver of libhdf5 would allocate and clear room for all of them.)
    """

    _PAGE = 4096

    def __init__(self) -> None:
        self.length = 0
        self._at = 0
        self._pages: dict[int, bytearray] = {}

    def content(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.seek(offset)
        self.readinto(data)
        return bytes(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + (self.length if whence == io.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        done = 0
        for page, start, count in self._spans(len(buffer)):
            stored = self._pages.get(page, bytes(self._PAGE))
            buffer[done : done + count] = stored[start : start + count]
            done += count
        self._at += done
        return done

    def write(self, data: Any, /) -> int:
        done = 0
        for page, start, count in self._spans(len(data)):
            stored = self._pages.setdefault(page, bytearray(self._PAGE))
            stored[start : start + count] = data[done : done + count]
            done += count
        self._at += done
        self.length = max(self.length, self._at)
        return done

    def truncate(self, size: int | None = None, /) -> int:
        self.length = self._at if size is None else size
        return self.length

    def _spans(self, count: int) -> Iterator[tuple[int, int, int]]:
        """(page, start in it, bytes in it) of the next `count` bytes."""
        at, end = self._at, self._at + count
        while at < end:
            page, start = divmod(at, self._PAGE)
            size = min(end - at, self._PAGE - start)
            yield page, start, size
            at += size
