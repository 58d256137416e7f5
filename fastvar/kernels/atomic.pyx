"""All or nothing, also when a signal such as Ctrl-C comes.

Python looks at signals between its own instructions only, so that compiled code is never interrupted.
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
    TRIES = 1000  # of setting handlers while signals come


cdef class Atomic:
    """A context manager whose block happens wholly or not at all, whatever it raises, and however often.

    `before` and `after` are lists of pairs: a place, and what it holds before the block or is to hold after it.
    The one are put if the block raises, the other if it ends, or raises when `count[0]` has changed already. A
    place is an array and its value another of the same dtype, broadcast to it; a list or dict and another; or an
    object and a dict of attributes.
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
    """A context manager that lets signals wait: what handles them in Python is called when its block is left.

    Entering it does not fail either: what a signal raises then is raised at the end. Outside of the main thread it
    does nothing, as there signals never interrupt.
    """

    cdef dict handlers  # of the signals that wait
    cdef list came  # the numbers of those that have come
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
            except BaseException as error:  # of a signal that came before
                self.error = error
                tries += 1

    def __exit__(self, kind, error, trace):
        cdef int tries = 0
        while self.handlers and tries < TRIES:
            number = min(self.handlers, key=self.came.__contains__)  # those that came go last, so as to come once
            try:
                if _signal.getsignal(number) is self.note:
                    _signal.signal(number, self.handlers[number])
                del self.handlers[number]
            except BaseException as raised:  # of a signal that comes now
                self.error = raised
                tries += 1
        error, came = self.error, self.came
        self.note, self.error, self.came = None, None, []
        for number in came:
            if number != _signal.SIGINT or not isinstance(error, KeyboardInterrupt):
                PyErr_SetInterruptEx(number)  # which is taken as soon as Python looks
        if error is not None:
            raise error
