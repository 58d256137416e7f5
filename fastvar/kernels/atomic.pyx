"""All or nothing, also when a signal such as Ctrl-C comes.

Python looks at signals between its own instructions only, so that compiled code is never interrupted.
"""

cimport numpy as cnp

cnp.import_array()

cdef extern from "Python.h":
    int PyObject_GenericSetDict(object, object, void*) except -1


cdef class Atomic:
    """A context manager whose block happens wholly or not at all, whatever it raises, and however often.

    `before` and `after` are lists of pairs: a place, and what it holds before the block or is to hold after it.
    The one are put if the block raises, the other if it ends, or raises when `count[0]` has changed already. A
    place is an array and its value another of the same dtype, broadcast to it; a list and another; or an object and
    the dict of its attributes.
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
    cdef object place, value
    for place, value in pairs:
        if cnp.PyArray_Check(place):
            cnp.PyArray_CopyInto(place, value)
        elif type(place) is list:
            (<list> place)[:] = value
        else:
            PyObject_GenericSetDict(place, value, NULL)
    return 0
