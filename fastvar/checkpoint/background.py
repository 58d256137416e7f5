"""Work beside the training thread, whose errors cannot get lost."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from fastvar import buffers, kernels, threads
from fastvar.buffers import Array

T = TypeVar("T")


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


class Turns(Generic[T]):
    """Items that several threads take in turn; after an error in one of them, there are no more."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)

    def end(self) -> None:
        self._items = iter(())


def share(items: Iterable[T], work: Callable[[Turns[T]], object], most: int) -> None:
    """Let `work` take items until there are none, at once in so many threads at most as steps use.

    Only the main thread is helped. Others, such as that of a background save, work alone: they leave the
    processors to the training. So does the main thread once the program ends, when no thread can be started any
    more, and where the system reads and writes only at the one place of a file.
    """
    turns = Turns(items)

    def one() -> None:
        try:
            work(turns)
        finally:
            turns.end()

    main = threading.main_thread()
    helped = threading.current_thread() is main and main.is_alive() and hasattr(os, "preadv")
    more = min(most, threads.get_num_threads()) - 1 if helped else 0
    if more < 1:
        one()
        return
    with ThreadPoolExecutor(more, "fastvar-io") as pool:
        futures = []
        with contextlib.suppress(RuntimeError):  # no thread is to be had: alone, then
            futures += [pool.submit(one) for _ in range(more)]
        one()
        for future in futures:
            future.result()


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
