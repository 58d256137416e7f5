"""The base of all foreign formats: names, dtypes and shapes first, then one tensor at a time."""

from __future__ import annotations

import errno
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint import file_format
from fastvar.tables import count

Opaque = Any | Mapping[str, Any]  # dtypes or their names

# Bytes that one byte of a file may expand to; deflate reaches at most 1032.
MAX_RATIO = 1100

# What libraries raise for malformed files.
DAMAGE = (
    *(OSError, ValueError, TypeError, KeyError, RuntimeError),
    *(EOFError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


_EXAMPLES = {1: "float8_e4m3fn", 2: "bfloat16"}  # of dtypes that libraries write as opaque bytes


class Unreadable(ValueError):
    """One tensor cannot be read. It is left out; the rest of the file can be read."""


class Spec(NamedTuple):
    """Dtype and shape of a tensor, known before it is read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Types:
    """The dtypes, given by the user, of tensors that are opaque bytes in the file.

    Parameters
    ----------
    opaque : dtype or str, or mapping of str to these or None, optional
        One for all tensors, or one for each name; None leaves a tensor out.
    """

    def __init__(self, opaque: Opaque | None = None) -> None:
        given = opaque if isinstance(opaque, Mapping) else {}
        self._named = {name: None if kind is None else _named(kind) for name, kind in given.items()}
        self._other = None if opaque is None or isinstance(opaque, Mapping) else _named(opaque)
        self._asked: set[str] = set()

    def of(self, name: str, size: int) -> np.dtype[Any]:
        """Return the dtype of a tensor with `size` opaque bytes for each number."""
        self._asked.add(name)
        dtype = self._named.get(name, self._other)
        if name in self._named and dtype is None:
            raise Unreadable("left out, as opaque says")
        if dtype is None or dtype.itemsize != size:
            hint = f"; opaque={_EXAMPLES[size]!r} (or another) would tell" if size in _EXAMPLES else ""
            raise Unreadable(f"its dtype |V{size} is not one of numbers{hint}")
        return dtype

    def check(self, path: str) -> None:
        """Raise ValueError if a name was given that is not that of an opaque tensor."""
        strange = [name for name in self._named if name not in self._asked]
        if strange:
            raise ValueError(f"{path}: opaque names {strange[0]!r}, which is no tensor of opaque bytes here")


def _named(dtype: Any) -> np.dtype[Any]:
    return file_format.dtype_named(dtype if isinstance(dtype, str) else np.dtype(dtype).name)


class HasSpec(Protocol):
    """An entry of any kind of file."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Foreign:
    """A file of another library, opened for reading. It never opens another file.

    Attributes
    ----------
    path : str
    entries : dict of str to Spec
        The tensors, by their names in the file.
    left : dict of str to str
        Tensors that cannot be read, and why. The notes contain them, too.
    notes : list of str
        Everything in the file that was left out.
    """

    format = ""
    thing = "tensor"

    def __init__(self, path: str, stream: BinaryIO, types: Types) -> None:
        self.path = path
        self.entries: dict[str, Spec] = {}
        self.left: dict[str, str] = {}
        self.notes: list[str] = []
        self._types = types
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size
        try:
            self._open()
            if self.left and not self.entries:
                name, reason = next(iter(self.left.items()))
                raise ValueError(f"{self.thing} {name!r}: {reason}")
        except DAMAGE as error:
            self.close()
            raise file_format.CheckpointError(
                f"{path}: cannot be imported as {self.format}: {_reason(error)}"
            ) from error
        except BaseException:
            self.close()
            raise

    def _leave_out(self, name: str, reason: object) -> None:
        self.left[name] = str(reason)
        self.notes.append(f"{name}: {reason}")

    def _open(self) -> None:
        """Fill `entries`; raise an error for what must not be read."""
        raise NotImplementedError

    def _read(self, name: str) -> Array:
        raise NotImplementedError

    def read(self, name: str) -> Array:
        """Return one tensor, as a C-contiguous array in the byte order of this machine.

        Raises
        ------
        CheckpointError
            If there is no tensor of that name, or it cannot be read.
        """
        if name not in self.entries:
            raise file_format.CheckpointError(f"{self.path}: there is no tensor {name!r} in this file")
        try:
            return self._read(name)
        except DAMAGE as error:
            raise file_format.CheckpointError(
                f"{self.path}: tensor {name!r} cannot be read: {_reason(error)}"
            ) from error

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._stream.close()

    def __enter__(self) -> Foreign:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading. Anything else, such as a pipe, is an error at once."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    if problem := file_format.not_a_file(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise file_format.CheckpointError(f"{path}: {problem}", errno=errno.EISDIR)
    return os.fdopen(descriptor, "rb")


def check_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in native byte order; Unreadable if it is not a dtype of numbers."""
    if dtype.hasobject or dtype.name not in file_format.NATIVE + file_format.EXTENDED:
        raise Unreadable(f"its dtype {dtype} is not one of numbers")
    return dtype.newbyteorder("=")


def check_ratio(length: int, stored: int) -> None:
    """Raise ValueError for a decompression bomb."""
    if length > stored * MAX_RATIO:
        raise ValueError(f"{count(stored, 'stored byte')} cannot hold the {length:,} that it claims")


def fill(stream: Any, array: Array) -> Array:
    """Fill a C-contiguous array with bytes from the stream, chunk by chunk, and return it."""
    buffer = array.reshape(-1).view(np.uint8).data
    for start in range(0, buffer.nbytes, file_format.CHUNK):
        part = buffer[start : start + file_format.CHUNK]
        data = stream.read(part.nbytes)
        if len(data) != part.nbytes:
            raise ValueError("the file ends too early")
        part[:] = data
    return array


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, KeyError) and error.args:  # str of a KeyError is in quotation marks
        text = str(error.args[0])
    return text or type(error).__name__
