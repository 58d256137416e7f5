# The threads of all compiled code, see crew.pyx.

from libc.stdint cimport uint64_t

ctypedef void (*Job)(void* context, Py_ssize_t task) noexcept nogil

cdef enum:
    MOST_THREADS = 256
    PARALLEL = 1 << 15  # elements from which a second thread pays

cdef void share(Job job, void* context, Py_ssize_t tasks, int workers) noexcept nogil

cdef extern from "crew.h":
    void combine(uint64_t* x, uint64_t bits) nogil
    uint64_t exchange(uint64_t* x, uint64_t value) nogil
    uint64_t load_ordered(uint64_t* x) nogil
    uint64_t load_relaxed(uint64_t* x) nogil
    void store_relaxed(uint64_t* x, uint64_t value) nogil
    void store_ordered(uint64_t* x, uint64_t value) nogil
    bint replace(uint64_t* x, uint64_t* expected, uint64_t value) nogil
    uint64_t add(uint64_t* x, uint64_t value) nogil
