# Types, constants and the table of rules, which the other files share, and the includes of those files. Compiled
# once per instruction set (baseline.pyx, avx2.pyx, avx512.pyx), with different flags.

cimport cython
from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport INFINITY, fabs, sqrt
from libc.stdint cimport int16_t, int32_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport numpy as cnp

from fastvar.kernels.crew cimport (MOST_THREADS, PARALLEL, combine, exchange, load_relaxed, share, store_ordered,
                                   store_relaxed)

import itertools

import numpy as np

from fastvar import buffers
from fastvar import formats as _declared
from fastvar.buffers import Rows
from fastvar.formats import Codes, Master as MasterArrays
from fastvar.kernels import reference as _reference
from fastvar.kernels import rounding as _rounding
from fastvar.kernels import stages as _stages
from fastvar.kernels import units as _units
from fastvar.tables import count as _count

cdef extern from "<math.h>" nogil:
    float fabsf(float)
    float sqrtf(float)

cdef extern from "prefetch.h":
    void prefetch(const void*) nogil
    void prefetch_read(const void*) nogil

cdef extern from *:
    """
    #include <assert.h>
    #include <float.h>
    #if defined(__SSE2__) || defined(_M_X64)
    #include <emmintrin.h>
    static void stream(char* to, const char* from, Py_ssize_t n) {  /* memcpy past the cache */
        Py_ssize_t head = (16 - (Py_ssize_t) ((uintptr_t) to & 15)) & 15;
        head = n < head ? n : head;
        memcpy(to, from, head);
        for (to += head, from += head, n -= head; n >= 64; to += 64, from += 64, n -= 64)
            for (int k = 0; k < 64; k += 16)
                _mm_stream_si128((__m128i*) (to + k), _mm_loadu_si128((const __m128i*) (from + k)));
        for (; n >= 16; to += 16, from += 16, n -= 16)
            _mm_stream_si128((__m128i*) to, _mm_loadu_si128((const __m128i*) from));
        memcpy(to, from, n);
    }
    #define stream_fence() _mm_sfence()
    #else
    #define stream(to, from, n) memcpy(to, from, n)
    #define stream_fence() ((void) 0)
    #endif
    static const float TINY_F32 = 16384 * FLT_MIN;
    static const double TINY_F64 = 16384 * DBL_MIN;
    """
    const float TINY_F32
    const double TINY_F64
    void check "assert"(bint) nogil
    void stream(char*, const char*, Py_ssize_t) nogil
    void stream_fence() nogil

cdef enum:
    TILE = 256  # elements that are updated together in L1: so few that memory and arithmetic overlap
    BLOCK = 1024  # elements of a partial sum
    LANES = 16
    LEAST = 16  # blocks that a thread takes at a time: enough to hide the overhead
    MOST = 256  # the same: enough for the processor, which fetches ahead only after some of a stream
    SHARES = 16  # tasks for each thread, so that all end at about the same time
    MAX_SLOTS = 8
    MAX_SUMS = 4
    MAX_UNITS = 2
    PAGE = 4096
    TILE_BYTES = 8 * TILE + 64  # bytes of a tile of doubles, at any alignment
    COPY = 8 * TILE
    COPIES = (1 + MAX_SLOTS) * COPY + 64  # bytes of a direction and all slots of a tile, at any alignment
    LINE = 64  # bytes of a cache line
    AHEAD = 8  # how many rows of a sparse gradient ahead to prefetch
    PART = 64  # elements that a rule updates between prefetches: with more, requests wait for each other
    LATER = 1024  # how many elements later they are used
    FETCHED = 512  # bytes of a row to prefetch; the processor fetches the rest

ctypedef fused real:  # the types that rules compute in
    float
    double

ctypedef void (*Rule32)(float*, const float*, float**, Py_ssize_t, const float*) noexcept nogil
ctypedef void (*Rule64)(double*, const double*, double**, Py_ssize_t, const double*) noexcept nogil

cdef struct Rule:
    Rule32 f32
    Rule64 f64
    int slots
    Rule32 measure32  # what sums run in its place: it writes w alone; NULL: the rule, on copies of the slots
    Rule64 measure64
    int measured  # how many slots are read for the sums

cdef dict _rules = {}


cdef register(str name, Rule32 f32, Rule64 f64, Rule32 measure32=NULL, Rule64 measure64=NULL):
    cdef CompiledRule rule = CompiledRule.__new__(CompiledRule)
    twin = _reference.RULES[name]  # it declares the names
    rule.slots, rule.scalars = twin.slots, twin.scalars
    rule.rule = Rule(f32, f64, len(rule.slots), measure32, measure64, twin.measured)
    _rules[name] = rule


cdef class CompiledRule:
    cdef Rule rule
    cdef readonly tuple slots, scalars  # names


include "rules.pxi"
include "formats.pxi"
include "codes.pxi"
include "masters.pxi"
include "rounding.pxi"
include "stages.pxi"

RULES = dict(_rules)
cnp.import_array()
if (sizeof(Stages) != _stages.STAGES.itemsize or BLOCK != _stages.BLOCK or LANES != _stages.LANES
        or TINY_F32 != _stages.TINY[np.dtype("f4")] or TINY_F64 != _stages.TINY[np.dtype("f8")]):
    raise ImportError("fastvar: the compiled kernels do not match kernels/stages.py; build them again")
if sizeof(Patch) != _units.PATCH.itemsize or MAX_UNITS != _units.MOST or MAX_SUMS != buffers.MOST_SUMS or \
        MAX_SLOTS != buffers.MOST_SLOTS:
    raise ImportError("fastvar: the compiled kernels do not match kernels/units.py; build them again")
if sizeof(Seeds) != _rounding.SEEDS.itemsize or TILE != _declared.GROUP:
    raise ImportError("fastvar: the compiled kernels do not match kernels/rounding.py; build them again")
if list(_formats.items()) != list(_declared.FORMATS.items()):
    raise ImportError("fastvar: the compiled kernels do not match formats.py; build them again")


include "spans.pxi"
include "stored.pxi"
include "units.pxi"
include "guard.pxi"
include "rows.pxi"
include "sums.pxi"
include "copies.pxi"
include "memory.pxi"
include "plan.pxi"
