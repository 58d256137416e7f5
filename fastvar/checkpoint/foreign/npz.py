"""NumPy's `.npz`: a zip of arrays. Pickles are never loaded."""

from __future__ import annotations

import io
import math
import re
import zipfile
from typing import IO, Any

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint import file_format
from fastvar.checkpoint.foreign.source import Foreign, Spec, Unreadable, check_dtype, check_ratio, fill
from fastvar.kernels.atomic import Uninterrupted
from fastvar.tables import count

_HEADERS = {  # version of the format -> bytes of the header's length, parser
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
_F1 = re.compile(rb"'[<>|=]f1'")


class Npz(Foreign):
    """A file that `np.savez` or `np.savez_compressed` wrote."""

    format = ".npz"
    thing = "array"

    def _open(self) -> None:
        self._zip = zipfile.ZipFile(self._stream)
        self._members: dict[str, zipfile.ZipInfo] = {}
        members = self._zip.infolist()
        if not any(member.filename.endswith(".npy") for member in members):
            raise ValueError("it holds no arrays (of a .keras file, import what model.save_weights writes)")
        if sum(member.compress_size for member in members) > self._size:
            raise ValueError("its members claim more bytes than the file has")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                self.notes.append(f"{name}: not an array")
                continue
            if name in self._members:
                raise ValueError(f"array {name!r} is there twice")
            self._members[name] = member
            try:
                self._add(name, member)
            except Unreadable as error:
                self._leave_out(name, error)
            except (ValueError, TypeError) as error:
                raise ValueError(f"array {name!r}: {error}") from error

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with Uninterrupted():  # Python loses an interrupt in the finalizer of a ZipFile
            vars(self).pop("_zip", None)
        super().close()

    def _add(self, name: str, member: zipfile.ZipInfo) -> None:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable("it is compressed otherwise than NumPy does")
        check_ratio(member.file_size, member.compress_size)
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError("its size in the zip's directory is wrong")
        with self._zip.open(member) as file:
            shape, _, dtype = _header(file)
            left = member.file_size - file.tell()
        if dtype.kind in "US":
            self.notes.append(f"{name}: text")
            return
        if dtype.kind == "V" and dtype.names is None and dtype.subdtype is None:
            dtype = self._types.of(name, dtype.itemsize)
        dtype = check_dtype(dtype)
        if len(shape) > file_format.MAX_RANK or dtype.itemsize * math.prod(n or 1 for n in shape) >= 1 << 63:
            raise ValueError(f"its shape {shape} is too large")
        if dtype.itemsize * math.prod(shape) != left:
            raise ValueError(f"{count(left, 'byte')} cannot be of {dtype} and shape {shape}")
        self.entries[name] = Spec(dtype, shape)

    def _read(self, name: str) -> Array:
        kind, _ = self.entries[name]
        with self._zip.open(self._members[name]) as file:
            shape, fortran, dtype = _header(file)
            stored = kind if dtype.kind == "V" else dtype
            array = fill(file, np.empty(shape[::-1] if fortran else shape, stored))
        return np.ascontiguousarray(array.T if fortran else array, kind).reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise Unreadable(f"its format {version} is not one of arrays of numbers")
    length_size, parse = _HEADERS[version]
    length = file.read(length_size)
    text = file.read(int.from_bytes(length, "little"))
    # np.savez writes float8_e5m2 in a way that np.load cannot read: take it as opaque bytes.
    text = _F1.sub(b"'|V1'", text)
    shape, fortran, dtype = parse(io.BytesIO(length + text))
    if any(n < 0 for n in shape):
        raise ValueError(f"its shape {shape} is negative")
    return shape, fortran, dtype
