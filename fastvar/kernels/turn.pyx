# cython: freethreading_compatible = True
"""Locks that let one thread at a time step, save or restore, also when signals such as Ctrl-C arrive.

They are compiled, because Python handles signals between taking a turn and entering the block: an exception there
(KeyboardInterrupt) would keep the turn forever. Here only `pause` handles signals.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint64_t

from fastvar.kernels.crew cimport add, load_ordered, replace, store_ordered

from time import sleep

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

cdef double PAUSE = 0.001  # seconds between two checks whether a turn is free
cdef enum:  # who has a turn
    NOBODY
    STEP
    SAVE  # or a restore

cdef int POLITE = 50  # the most pauses that a step makes for a save that is still waiting


cdef int pause() except -1:
    sleep(PAUSE)
    PyErr_CheckSignals()  # `sleep` does so only if this thread got the signal
    return 0


cdef class Turn:
    """A context manager for a step. It waits for a save to end, and refuses a second step."""

    cdef uint64_t taken  # by whom
    cdef uint64_t wanted  # the number of `Hold`s that wait for it
    cdef uint64_t thread  # the thread that has it
    cdef str owner

    def __init__(self, str owner not None):
        self.owner = owner

    def __enter__(self):
        if load_ordered(&self.wanted) or not self.take(STEP):
            self.wait()

    def __exit__(self, kind, error, trace):
        self.give_back()

    cdef bint take(self, uint64_t who) noexcept:
        # Take the turn if nobody has it; return whether it was taken.
        cdef uint64_t found = NOBODY
        if not replace(&self.taken, &found, who):
            return False
        store_ordered(&self.thread, PyThread_get_thread_ident())
        return True

    cdef void give_back(self) noexcept:
        store_ordered(&self.thread, 0)  # first: the next thread sets it
        store_ordered(&self.taken, NOBODY)

    cdef int wait(self) except -1:
        # Take the turn when it is free.
        cdef int left = POLITE
        while (load_ordered(&self.wanted) and left) or not self.take(STEP):
            if load_ordered(&self.taken) == STEP:
                raise RuntimeError(
                    f"{self.owner}: another thread is in a step of this optimizer; give each its own"
                )
            self.refuse_own("step within a save or restore")
            left -= left > 0 and load_ordered(&self.taken) == NOBODY
            pause()
        return 0

    cdef int refuse_own(self, str what) except -1:
        if load_ordered(&self.thread) == PyThread_get_thread_ident():
            raise RuntimeError(
                f"{self.owner}: {what} of this optimizer, in the same thread; do one after the other"
            )
        return 0


cdef class Hold:
    """A context manager that takes several turns for a save or restore: it waits for steps, and they wait.

    It takes all turns at once when all are free. Meanwhile new steps wait only for a while. So a thread that steps
    one optimizer inside a step of another cannot cause a deadlock.
    """

    cdef list turns

    def __init__(self, turns):
        self.turns = [*turns]

    def __enter__(self):
        cdef Turn turn
        for turn in self.turns:
            add(&turn.wanted, 1)
        try:
            while not self.take_all():
                pause()
        finally:
            for turn in self.turns:
                add(&turn.wanted, <uint64_t> -1)

    def __exit__(self, kind, error, trace):
        self.give_back(len(self.turns))

    cdef bint take_all(self) except -1:
        # Take every turn, or none if one is taken; return whether they were taken.
        cdef Turn turn
        cdef Py_ssize_t i
        for turn in self.turns:
            turn.refuse_own("save or restore within a step")
        for i in range(len(self.turns)):
            turn = self.turns[i]
            if not turn.take(SAVE):
                self.give_back(i)
                return False
        return True

    cdef int give_back(self, Py_ssize_t count) except -1:
        cdef Turn turn
        for turn in self.turns[:count]:
            turn.give_back()
        return 0
