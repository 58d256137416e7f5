# The threads of all compiled code, see crew.pyx.

from libc.stdint cimport uint64_t

ctypedef void (*Job)(void* context, Py_ssize_t task) noexcept nogil

cdef void share(Job job, void* context, Py_ssize_t tasks, int workers) noexcept nogil

cdef extern from "crew.h":
    void combine(uint64_t* x, uint64_t bits) nogil
