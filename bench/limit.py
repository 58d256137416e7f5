"""Compile and call the limits of limit.c: traffic and arithmetic."""

from __future__ import annotations

import ast
import ctypes
import functools
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastvar.kernels import crew, reference

Array = npt.NDArray[np.floating]

MOST = 5  # arrays that limit.c can update
REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


@functools.cache
def compiled(real: str) -> ctypes.CDLL | None:
    """Return limit.c compiled for this machine. If that fails, print why and return None."""
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the file is no longer needed
        library = Path(folder, "limit.so")
        flags = ["-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", f"-Dreal={real}"]
        command = [os.environ.get("CC", "cc"), *flags, str(Path(__file__).with_suffix(".c")), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            loaded = ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"bench: no limits: {getattr(error, 'stderr', '') or error}", file=sys.stderr)
            return None
    loaded.limit.restype = loaded.arithmetic.restype = ctypes.c_double
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


def operations(function: Callable[..., object]) -> tuple[int, int]:
    """Return how many square roots and divisions a NumPy twin does, with those of the functions that it calls."""
    nodes = [*ast.walk(ast.parse(inspect.getsource(function)))]
    called = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    inner = [operations(vars(reference)[name]) for name in called if inspect.isfunction(vars(reference).get(name))]
    roots = called.count("np.sqrt") + sum(count for count, _ in inner)
    return roots, sum(isinstance(node, ast.Div) for node in nodes) + sum(count for _, count in inner)


def arithmetic(rule: str, dtype: str, elements: int, threads: int) -> Callable[[int], None] | None:
    """Return a function that does the roots and divisions of a rule, or None without them or a compiler."""
    library, (roots, divisions) = compiled(REAL[np.dtype(dtype)]), operations(reference.RULES[rule].block)
    if library is None or roots + divisions == 0:
        return None
    share = compiled_function(crew.__pyx_capi__["share"])

    def run(number: int) -> None:
        size = ctypes.c_ssize_t(elements)
        library.arithmetic(roots, divisions, size, threads, ctypes.c_long(number), share)

    return run
