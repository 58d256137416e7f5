"""Work beside the training thread, whose errors cannot get lost."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from fastvar import buffers, kernels, threads
from fastvar.buffers import Array


class Staging:
    """Room for one copy of a set of arrays, which the next copy of such a set uses again."""

    def __init__(self) -> None:
        self._room: dict[str, Array] = {}

    def copy(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Copy the arrays, by the threads of the kernels."""
        if self._kinds(self._room) != self._kinds(arrays):
            self._room.clear()  # before there is the new
            self._room = {name: buffers.empty(a.shape, a.dtype) for name, a in arrays.items()}
        kernels.copy(self._room.values(), arrays.values(), threads.get_num_threads())
        return self._room

    @staticmethod
    def _kinds(arrays: Mapping[str, Array]) -> list[tuple[str, Any, tuple[int, ...]]]:
        return [(name, a.dtype, a.shape) for name, a in arrays.items()]


class Background:
    """One task at a time, in a thread of its own. Its error is raised by the next `wait`.

    One that nobody waits for is shown when the program ends; the program ends only after the task.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._errors: list[BaseException] = []
        weakref.finalize(self, _show, self._errors)

    def start(self, task: Callable[[], object]) -> None:
        """Wait for the task before, and begin this one."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(task,), name="fastvar-save")
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the task to end, and raise its error, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._errors:
            raise self._errors.pop()

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
