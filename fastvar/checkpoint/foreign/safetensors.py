"""Safetensors files. (The library gives NumPy no 8-bit floats, and opens paths, not files.)"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint import file_format
from fastvar.checkpoint.foreign.source import Foreign, Spec, Unreadable, fill
from fastvar.tables import count

METADATA = "__metadata__"  # not a tensor: text of the writer
NAMES = {  # dtype in the file -> NumPy's
    **{"BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}


class Safetensors(Foreign):
    """A header of JSON, then the bytes of the tensors without gaps."""

    format = "safetensors"

    def _open(self) -> None:
        length = int.from_bytes(self._stream.read(8), "little")
        if length > min(self._size - 8, file_format.MAX_JSON):
            raise ValueError("its header is longer than the file, or too large")
        header = file_format.parse_object(self._stream.read(length))
        header.pop(METADATA, None)
        self._start = 8 + length
        self._places: dict[str, int] = {}
        places = []
        for name, fields in header.items():
            try:
                places.append(_place(**fields))
                self.entries[name] = _spec(**fields)
                self._places[name] = places[-1][0]
            except Unreadable as error:
                self._leave_out(name, error)
            except (TypeError, ValueError) as error:
                raise ValueError(f"tensor {name!r}: {error}") from error
        end = 0
        for start, stop in sorted(places):
            if start != end:
                raise ValueError(f"the tensors overlap, or leave a gap, at byte {start} of the data")
            end = stop
        if self._start + end != self._size:
            raise ValueError(
                f"has {count(self._size, 'byte')}, its header is of {self._start + end:,}: truncated?"
            )

    def _read(self, name: str) -> Array:
        spec = self.entries[name]
        self._stream.seek(self._start + self._places[name])
        return fill(self._stream, np.empty(spec.shape, spec.dtype))


def _place(dtype: Any, shape: Any, data_offsets: Any) -> tuple[int, int]:
    """Return the offsets of the beginning and end of a tensor."""
    if type(dtype) is not str or type(shape) is not list or type(data_offsets) is not list:
        raise ValueError("its entry in the header is malformed")
    for number in (*shape, *data_offsets):
        if type(number) is not int or number < 0:
            raise ValueError("its entry in the header is malformed")
    start, stop = data_offsets
    return start, stop


def _spec(dtype: str, shape: list[int], data_offsets: list[int]) -> Spec:
    if dtype not in NAMES:
        raise Unreadable(f"its dtype {dtype} is not one that NumPy can hold")
    kind = file_format.dtype_named(NAMES[dtype])
    if len(shape) > file_format.MAX_RANK or kind.itemsize * math.prod(n or 1 for n in shape) >= 1 << 63:
        raise ValueError("its shape is too large")
    start, stop = data_offsets
    if stop - start != kind.itemsize * math.prod(shape):
        raise ValueError(f"{count(stop - start, 'byte')} cannot be of {dtype} and shape {shape}")
    return Spec(kind, tuple(shape))
