# cython: freethreading_compatible = True
"""Changes that happen wholly or not at all, also after a signal such as Ctrl-C.

Python handles signals only between its own instructions, so compiled code is never interrupted.
"""

cimport numpy as cnp

import _signal
import threading
from signal import valid_signals

cnp.import_array()

cdef extern from "Python.h":
    int PyObject_GenericSetAttr(object, object, object) except -1
    int PyErr_SetInterruptEx(int)

cdef list SIGNALS = [int(number) for number in valid_signals()]
cdef enum:
    TRIES = 1000  # of setting handlers while signals arrive


cdef class Atomic:
    """A context manager whose block happens wholly or not at all, whatever exceptions interrupt it.

    `before` and `after` are lists of pairs: a target, and its value before or after the block. If the block raises
    an error, the exit writes the values of `before`. If it ends, or if `count[0]` has already changed, the exit
    writes those of `after`. A target is an array, with an array of the same dtype as its value, to be broadcast;
    or a list or dict, with another as its value; or an object, with a dict of attributes.
    """

    cdef list before, after, count
    cdef object first

    def __init__(self, list before not None, list after not None, list count=None):
        self.before, self.after, self.count = before, after, count
        self.first = None if count is None else count[0]

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        cdef bint done = kind is None or (self.count is not None and self.count[0] != self.first)
        put(self.after if done else self.before)


cdef int put(list pairs) except -1:
    cdef object place, value, name, attribute
    for place, value in pairs:
        if cnp.PyArray_Check(place):
            cnp.PyArray_CopyInto(place, value)
        elif type(place) is list:
            (<list> place)[:] = value
        elif type(place) is dict:
            (<dict> place).clear()
            (<dict> place).update(value)
        else:
            for name, attribute in (<dict> value).items():
                PyObject_GenericSetAttr(place, name, attribute)
    return 0


cdef class Uninterrupted:
    """A context manager that delays signals: their Python handlers are called at the end of the block.

    Entering it does not fail: an error that a signal raises then is raised at the end. Outside the main thread it
    does nothing, because signals never interrupt other threads.
    """

    cdef dict handlers  # of delayed signals
    cdef list came  # the numbers of the signals that have arrived
    cdef object note, error

    def __cinit__(self):
        self.handlers, self.came = {}, []

    def noted(self, number, frame):
        if number not in self.came:
            self.came.append(number)

    def __enter__(self):
        cdef Py_ssize_t k = 0
        cdef int tries = 0
        self.note = self.noted
        while k < len(SIGNALS) and tries < TRIES:
            try:
                if threading.current_thread() is not threading.main_thread():
                    return
                while k < len(SIGNALS):
                    handler = _signal.getsignal(SIGNALS[k])
                    if callable(handler):
                        _signal.signal(SIGNALS[k], self.note)
                        self.handlers[SIGNALS[k]] = handler
                    k += 1
            except BaseException as error:  # raised by a signal that arrived before
                self.error = error
                tries += 1

    def __exit__(self, kind, error, trace):
        cdef int tries = 0
        while self.handlers and tries < TRIES:
            number = min(self.handlers, key=self.came.__contains__)  # arrived ones last, to handle them once
            try:
                if _signal.getsignal(number) is self.note:
                    _signal.signal(number, self.handlers[number])
                del self.handlers[number]
            except BaseException as raised:  # raised by a signal that arrives now
                self.error = raised
                tries += 1
        error, came = self.error, self.came
        self.note, self.error, self.came = None, None, []
        for number in came:
            if number != _signal.SIGINT or not isinstance(error, KeyboardInterrupt):
                PyErr_SetInterruptEx(number)  # Python handles it next
        if error is not None:
            raise error
