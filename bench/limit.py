"""Compile and call the traffic limit of limit.c."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastvar.kernels import crew

Array = npt.NDArray[np.floating]

MOST = 5  # arrays that limit.c can update
REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


@functools.cache
def compiled(real: str) -> ctypes.CDLL | None:
    """Return limit.c compiled for this machine. If that fails, print why and return None."""
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the file is no longer needed
        library = Path(folder, "limit.so")
        flags = ["-O3", "-march=native", "-shared", "-fPIC", f"-Dreal={real}"]
        command = [os.environ.get("CC", "cc"), *flags, str(Path(__file__).with_suffix(".c")), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            loaded = ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"bench: no traffic limit: {getattr(error, 'stderr', '') or error}", file=sys.stderr)
            return None
    loaded.limit.restype = ctypes.c_double
    return loaded


def compiled_function(capsule: object) -> ctypes.c_void_p:
    """Return the address of a function that a compiled module exports."""
    python = ctypes.pythonapi
    python.PyCapsule_GetName.restype, python.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_void_p(python.PyCapsule_GetPointer(capsule, python.PyCapsule_GetName(capsule)))


def runner(
    written: Sequence[Array], g: Array, threads: int, read_first: Sequence[Array] = ()
) -> Callable[[int], None] | None:
    """Return a function that touches the arrays `number` times in one call, or None without a compiler."""
    library = compiled(REAL[g.dtype])
    if library is None:
        return None
    if len(written) > MOST:
        raise ValueError(f"limit.c: can update {MOST} arrays, got {len(written)}")
    pointers = (ctypes.c_void_p * MOST)(*(array.ctypes.data for array in written))
    read = (ctypes.c_void_p * len(read_first))(*(array.ctypes.data for array in read_first))
    share = compiled_function(crew.__pyx_capi__["share"])

    def run(number: int) -> None:
        library.limit(
            *(
                pointers,
                len(written),
                ctypes.c_void_p(g.ctypes.data),
                read,
                len(read_first),
            ),  # which keeps both alive
            *(ctypes.c_ssize_t(g.size), threads, ctypes.c_long(number), share),
        )

    return run
