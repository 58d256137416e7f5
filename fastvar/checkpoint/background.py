"""Work beside the training thread, whose errors cannot get lost."""

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
    """Room for one copy of a set of arrays, which the next copy of such a set uses again."""

    def __init__(self) -> None:
        self._kinds: list[tuple[str, Any, tuple[int, ...]]] = []
        self._room: dict[str, Array] = {}

    def copy(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Copy the arrays, by the threads of the kernels."""
        kinds = [(name, a.dtype, a.shape) for name, a in arrays.items()]
        if kinds != self._kinds:
            self._kinds = []
            self._room.clear()  # before there is the new
            self._room = _room(arrays)
            self._kinds = kinds
        kernels.copy(self._room.values(), arrays.values(), threads.get_num_threads())
        return self._room


def _room(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return uninitialised arrays like these; small ones share memory: to allocate takes longer than to copy."""
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
    """One task at a time, in a thread of its own. Its error is raised by the next `wait`.

    One that nobody waits for is shown when the program ends; the program ends only after the task.
    """

    def __init__(self) -> None:
        self._thread: Worker | None = None
        self._errors: list[BaseException] = []
        weakref.finalize(self, _show, self._errors)

    def start(self, task: Callable[[], object]) -> None:
        """Wait for the task before, and begin this one."""
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
            with Uninterrupted():  # which Python would lose in what it calls at the end of threads
                self._thread = None
        if self._errors:
            error = self._errors[0]
            del self._errors[0]  # not by a call, after which a signal could come, and the error be lost
            raise error

    def _run(self, task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            errors = self._errors
            del self  # the traceback must not keep it alive: its end shows the error
            errors.append(error)


def _show(errors: list[BaseException]) -> None:
    for error in errors:
        sys.excepthook(type(error), error, error.__traceback__)
