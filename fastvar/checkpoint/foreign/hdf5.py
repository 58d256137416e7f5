"""HDF5 files of h5py, Keras (`.weights.h5`) and other tools. Everything is checked before data are read."""

from __future__ import annotations

import math
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z

from fastvar.buffers import Array
from fastvar.checkpoint import file_format
from fastvar.checkpoint.foreign.header import attribute_text
from fastvar.checkpoint.foreign.source import MAX_RATIO, Foreign, Spec, Unreadable, check_dtype
from fastvar.tables import count

_COMPRESSIONS = {h5z.FILTER_DEFLATE, h5z.FILTER_LZF}
_FILTERS = _COMPRESSIONS | {
    h5z.FILTER_SHUFFLE,
    h5z.FILTER_FLETCHER32,
}  # other filters would load the code of a plugin
_MAX_ATTRIBUTE = 64  # bytes of a dtype's name
_MAX_EXTENDED = 2  # bytes of the largest dtype that HDF5 lacks
_MAX_UNWRITTEN = 1 << 28  # bytes of fill values, which take no space in the file


class Hdf5(Foreign):
    """An HDF5 file without a commit record.

    libhdf5 gets the open file, never a path. Links to other files, external storage and virtual datasets are
    errors before anything follows them. Datasets with filters other than h5py's own are left out.
    """

    format = "HDF5"
    thing = "dataset"

    def _open(self) -> None:
        self._datasets: dict[str, Any] = {}
        self._stored = self._unwritten = 0
        self._file = h5py.File(self._stream, "r")
        seen = {h5o.get_info(self._file.id).addr}
        pending: list[tuple[str, Any]] = [("", h5g.open(self._file.id, b"/"))]
        while pending:
            prefix, group = pending.pop()
            inner = []
            for name in self._names(prefix, group):
                thing = h5o.open(group, name.encode())
                path = f"{prefix}{name}"
                address = h5o.get_info(thing).addr
                if isinstance(thing, h5g.GroupID):
                    if address in seen:
                        raise ValueError(f"group {path!r} has two names, or holds itself (hard links)")
                    inner.append((f"{path}/", thing))
                elif isinstance(thing, h5d.DatasetID):
                    self._add(path, thing, again=address in seen)
                seen.add(address)
            pending += reversed(inner)

    def _names(self, prefix: str, group: Any) -> list[str]:
        """Return the names of the hard links in a group; links out of the file are errors."""
        names: list[str] = []
        links: list[tuple[bytes, int]] = []
        group.links.iterate(lambda name, info: links.append((name, info.type)), info=True)
        for raw, kind in links:
            name = raw.decode()
            if kind == h5l.TYPE_SOFT:
                self.notes.append(f"{prefix}{name}: a soft link; import what it names instead")
            elif kind != h5l.TYPE_HARD:
                raise ValueError(f"{prefix + name!r} is a link out of the file; nothing follows such links")
            else:
                names.append(name)
        return names

    def _add(self, name: str, dataset: Any, again: bool) -> None:
        try:
            if again:
                self.notes.append(f"{name}: another name of a tensor that is taken (a hard link)")
                return
            _check_place(dataset)
            space = dataset.get_space()
            if space.get_simple_extent_type() == h5s.NULL:
                self.notes.append(f"{name}: empty (a null dataspace)")
                return
            datatype = dataset.get_type()
            if isinstance(datatype, h5t.TypeStringID):
                self.notes.append(f"{name}: text")
                return
            shape = tuple(space.get_simple_extent_dims())
            dtype = self._dtype(name, dataset, datatype)
            self._check_size(dataset, datatype.get_size(), shape)
        except Unreadable as error:
            self._leave_out(name, error)
            return
        except (ValueError, TypeError) as error:
            raise ValueError(f"dataset {name!r}: {error}") from error
        self._datasets[name] = dataset
        self.entries[name] = Spec(dtype, shape)

    def _check_size(self, dataset: Any, itemsize: int, shape: tuple[int, ...]) -> None:
        """Raise an error for data that claim more space than the file has, or that are stored twice."""
        length = itemsize * math.prod(shape)
        if len(shape) > file_format.MAX_RANK or itemsize * math.prod(n or 1 for n in shape) >= 1 << 63:
            raise ValueError(f"its shape {shape} is too large")
        stored = dataset.get_storage_size()
        self._stored += stored
        if self._stored > self._size:
            raise ValueError("the file is shorter than the data that it claims to hold")
        options = dataset.get_create_plist()
        least = length
        if options.get_layout() == h5d.CHUNKED:  # a chunk is unpacked as a whole
            least = max(length, itemsize * math.prod(options.get_chunk()))
        if not length:
            return
        compressed = bool(_COMPRESSIONS.intersection(_filters(options)))
        claim = (
            f"{count(stored, 'stored byte')} cannot {'hold' if compressed else 'be'} the {least:,} that it claims"
        )
        if stored not in (0, length) and options.get_layout() != h5d.CHUNKED:
            raise ValueError(claim)
        unwritten = max(0, least - stored * (MAX_RATIO if compressed else 1))
        if self._unwritten + unwritten > _MAX_UNWRITTEN:
            raise Unreadable(claim)
        self._unwritten += unwritten

    def _dtype(self, name: str, dataset: Any, datatype: Any) -> np.dtype[Any]:
        """Return the dtype; an attribute may name one that HDF5 lacks, as fastvar and Keras write it."""
        if isinstance(datatype, h5t.TypeReferenceID):
            raise Unreadable("it holds references, not numbers")
        try:
            dtype = datatype.dtype
        except TypeError as error:  # NumPy has no such type
            raise Unreadable(f"it is not one of numbers: {error}") from error
        opaque = isinstance(datatype, h5t.TypeOpaqueID) and dtype.kind == "V"
        if opaque or (dtype.kind == "u" and dtype.itemsize <= _MAX_EXTENDED):
            marked = self._marked(dataset, variable=opaque)
            if marked is not None and marked.itemsize == dtype.itemsize:
                return marked
        return self._types.of(name, dtype.itemsize) if opaque else check_dtype(dtype)

    def _marked(self, dataset: Any, variable: bool) -> np.dtype[Any] | None:
        """Return the dtype that the attribute "dtype" names, if it is one that HDF5 lacks.

        Keras writes text of variable length (read if `variable`), fastvar of fixed length.
        """
        if not h5a.exists(dataset, b"dtype"):
            return None
        attribute = h5a.open(dataset, b"dtype")
        text, space = attribute.get_type(), attribute.get_space()
        if not isinstance(text, h5t.TypeStringID) or space.get_simple_extent_type() != h5s.SCALAR:
            return None
        found: bytes | None = None
        if not text.is_variable_str():
            if text.get_size() <= _MAX_ATTRIBUTE:
                value = np.empty((), f"S{text.get_size()}")
                attribute.read(value)
                found = value.item()
        elif variable:
            found = attribute_text(self._bytes, h5o.get_info(dataset).addr, b"dtype", _MAX_ATTRIBUTE)
        name = (found or b"").decode("ascii", "replace")
        return file_format.dtype_named(name) if name in file_format.EXTENDED else None

    def _bytes(self, address: int, count: int) -> bytes:
        """Return the bytes at an address, which counts from the end of the user block."""
        self._stream.seek(self._file.userblock_size + address)
        return self._stream.read(count)

    def _read(self, name: str) -> Array:
        spec, dataset = self.entries[name], self._datasets[name]
        array = np.zeros(spec.shape, spec.dtype)  # data that were never written may have no fill value
        if array.size:
            datatype = dataset.get_type()
            if isinstance(datatype, h5t.TypeOpaqueID):
                dataset.read(h5s.ALL, h5s.ALL, array.view(f"V{spec.dtype.itemsize}"), datatype)
            else:
                stored = (
                    array.view(f"u{spec.dtype.itemsize}") if spec.dtype.name in file_format.EXTENDED else array
                )
                dataset.read(h5s.ALL, h5s.ALL, stored, h5t.py_create(stored.dtype, logical=True))
        return array

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if hasattr(self, "_file"):
            self._datasets.clear()
            self._file.close()
        super().close()


def _check_place(dataset: Any) -> None:
    """Raise an error for data outside the dataset, and for filters whose code would be loaded."""
    options = dataset.get_create_plist()
    if options.get_external_count():
        raise ValueError("its data are in another file (external storage)")
    if options.get_layout() == h5d.VIRTUAL:
        raise ValueError("its data are in other datasets (a virtual dataset)")
    filters = _filters(options)
    if not _FILTERS.issuperset(filters):
        raise Unreadable("it needs a filter other than gzip, lzf, shuffle and fletcher32")
    if len(set(filters)) != len(filters) or _COMPRESSIONS.issubset(filters):
        raise ValueError("it is compressed twice")


def _filters(options: Any) -> list[int]:
    return [options.get_filter(i)[0] for i in range(options.get_nfilters())]
