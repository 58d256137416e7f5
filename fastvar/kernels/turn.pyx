"""Locks that let one thread at a time step, save or restore, also when signals such as Ctrl-C arrive.

They are compiled, because Python handles signals between taking a turn and entering the block: an exception there
(KeyboardInterrupt) would keep the turn forever. Here only `pause` handles signals.
"""

from cpython.exc cimport PyErr_CheckSignals
from time import sleep

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

cdef double PAUSE = 0.001  # seconds between two checks whether a turn is free
cdef int POLITE = 50  # the most pauses that a step makes for a save that is still waiting


cdef int pause() except -1:
    sleep(PAUSE)
    PyErr_CheckSignals()  # `sleep` does so only if this thread got the signal
    return 0


cdef class Turn:
    """A context manager for a step. It waits for a save to end, and refuses a second step."""

    cdef bint taken
    cdef bint held  # taken by a `Hold`
    cdef int wanted  # the number of `Hold`s that wait for it
    cdef unsigned long thread  # the thread that has it
    cdef str owner

    def __init__(self, str owner not None):
        self.owner = owner

    def __enter__(self):
        if self.taken or self.wanted:
            self.wait()
        self.taken = True
        self.thread = PyThread_get_thread_ident()

    def __exit__(self, kind, error, trace):
        self.taken = False

    cdef int wait(self) except -1:
        cdef int left = POLITE
        while self.taken or (self.wanted and left):
            if self.taken and not self.held:
                raise RuntimeError(
                    f"{self.owner}: another thread is in a step of this optimizer; give each its own"
                )
            self.refuse_own("step within a save or restore")
            left -= not self.taken
            pause()
        return 0

    cdef int refuse_own(self, str what) except -1:
        if self.taken and self.thread == PyThread_get_thread_ident():
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
            turn.wanted += 1
        try:
            while not self.free():
                pause()
            for turn in self.turns:
                turn.taken = turn.held = True
                turn.thread = PyThread_get_thread_ident()
        finally:
            for turn in self.turns:
                turn.wanted -= 1

    def __exit__(self, kind, error, trace):
        cdef Turn turn
        for turn in self.turns:
            turn.taken = turn.held = False

    cdef bint free(self) except -1:
        cdef Turn turn
        for turn in self.turns:
            turn.refuse_own("save or restore within a step")
        for turn in self.turns:
            if turn.taken:
                return False
        return True
