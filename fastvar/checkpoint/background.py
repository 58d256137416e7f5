"""Copies for a save in the background, and the thread that does it."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastvar import buffers, kernels, threads
from fastvar.buffers import Array
from fastvar.checkpoint.workers import Worker
from fastvar.kernels.atomic import Uninterrupted


class Staging:
    """Memory for a copy of a set of arrays. The next copy of the same shapes and dtypes reuses it."""

    def __init__(self) -> None:
        self._kinds: list[tuple[str, Any, tuple[int, ...]]] = []
        self._copies: dict[str, Array] = {}

    def copy(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Copy the arrays with the threads of the kernels."""
        kinds = [(name, a.dtype, a.shape) for name, a in arrays.items()]
        if kinds != self._kinds:
            self._kinds = []
            self._copies.clear()  # free the old memory first
            self._copies = _empty_like(arrays)
            self._kinds = kinds
        kernels.copy(self._copies.values(), arrays.values(), threads.get_num_threads())
        return self._copies


def _empty_like(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return uninitialised arrays like these; small ones share an allocation, which takes longer than a copy."""
    starts, end = {}, 0
    for name, a in arrays.items():
        if a.nbytes < buffers.LARGE:
            starts[name] = end
            end += a.nbytes + -a.nbytes % buffers.ALIGNMENT
    shared = buffers.empty((end,), np.uint8).data
    return {
        name: np.ndarray(a.shape, a.dtype, shared, starts[name])
        if name in starts
        else buffers.empty(a.shape, a.dtype)
        for name, a in arrays.items()
    }


class Background:
    """Runs one task at a time in a thread. The next `wait` raises its error.

    An error that nobody has waited for is printed when the program ends. The program ends only after the task.
    """

    def __init__(self) -> None:
        self._thread: Worker | None = None
        self._errors: list[BaseException] = []
        weakref.finalize(self, _print_errors, self._errors)

    def start(self, task: Callable[[], object]) -> None:
        """Wait for the previous task, and start this one."""
        self.wait()
        self._thread = Worker(functools.partial(self._run, task))
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.working

    def wait(self) -> None:
        """Wait for the task to end, and raise its error, once."""
        if self._thread is not None:
            self._thread.wait()
            with Uninterrupted():  # Python loses an interrupt that comes while a thread object is deleted
                self._thread = None
        if self._errors:
            error = self._errors[0]
            del self._errors[0]  # a call would let Python handle a signal, and the error would be lost
            raise error

    def _run(self, task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            errors = self._errors
            del self  # the traceback must not keep self alive, whose end prints the error
            errors.append(error)


def _print_errors(errors: list[BaseException]) -> None:
    for error in errors:
        sys.excepthook(type(error), error, error.__traceback__)
