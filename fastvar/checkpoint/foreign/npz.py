"""NumPy's `.npz`: a zip of arrays. Pickles are never loaded."""

from __future__ import annotations

import math
import zipfile
from typing import IO, Any

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint import record
from fastvar.checkpoint.foreign.source import Foreign, Spec, check_dtype, check_ratio, fill

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Npz(Foreign):
    """A file that `np.savez` or `np.savez_compressed` wrote."""

    format = ".npz"

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
            except (ValueError, TypeError) as error:
                raise ValueError(f"array {name!r}: {error}") from error

    def _add(self, name: str, member: zipfile.ZipInfo) -> None:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed otherwise than NumPy does")
        check_ratio(member.file_size, member.compress_size)
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError("its size in the zip's directory is wrong")
        with self._zip.open(member) as file:
            shape, _, dtype = _header(file)
            left = member.file_size - file.tell()
        if dtype.kind in "US":
            self.notes.append(f"{name}: text")
            return
        dtype = check_dtype(dtype)
        if len(shape) > record.MAX_RANK or dtype.itemsize * math.prod(n or 1 for n in shape) >= 1 << 63:
            raise ValueError(f"its shape {shape} is too large")
        if dtype.itemsize * math.prod(shape) != left:
            raise ValueError(f"{left} bytes cannot be of {dtype} and shape {shape}")
        self.entries[name] = Spec(dtype, shape)

    def _read(self, name: str) -> Array:
        with self._zip.open(self._members[name]) as file:
            shape, fortran, dtype = _header(file)
            array = fill(file, np.empty(shape[::-1] if fortran else shape, dtype))
        return np.ascontiguousarray(array.T if fortran else array, self.entries[name].dtype).reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its format {version} is not one of arrays of numbers")
    shape, fortran, dtype = _HEADERS[version](file)
    if any(n < 0 for n in shape):
        raise ValueError(f"its shape {shape} is negative")
    return shape, fortran, dtype
