# Applies any rule to any list of variables: one call, one parallel region, the GIL released.
# Compiled once per instruction set (baseline.pyx, avx2.pyx, avx512.pyx), each with its own flags.

cimport cython
from cython.parallel cimport prange
from libc.math cimport INFINITY, fabs, sqrt
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

cimport numpy as cnp

import numpy as np

from fastvar import buffers
from fastvar.kernels import stages as _stages

cdef extern from "<math.h>" nogil:
    float fabsf(float)
    float sqrtf(float)

cdef extern from *:
    """
    #include <assert.h>
    #include <float.h>
    #ifdef _OPENMP
    #include <omp.h>
    #define FV_OPENMP 1
    #else
    #define omp_get_max_threads() 1
    #define FV_OPENMP 0
    #endif
    static const float TINY_F32 = 1024 * FLT_MIN;
    static const double TINY_F64 = 1024 * DBL_MIN;
    """
    bint FV_OPENMP
    const float TINY_F32
    const double TINY_F64
    int omp_get_max_threads() nogil
    void check "assert"(bint) nogil

cdef enum:
    BLOCK = 1024
    LANES = 16
    TASK = 16 * BLOCK  # what a thread takes at a time: large enough to hide the taking, small enough to balance
    SERIAL = 2 * TASK  # below this many elements a parallel region costs more than it saves
    MAX_SLOTS = 8
    MOST_THREADS = 1024
    ROOM = 8 * BLOCK + 64  # bytes of a block of doubles, however it is aligned

ctypedef fused real:  # what rules compute in
    float
    double

ctypedef fused stored:  # what a gradient may be stored as
    float
    double

ctypedef void (*Rule32)(float*, const float*, float**, Py_ssize_t, const float*) noexcept nogil
ctypedef void (*Rule64)(double*, const double*, double**, Py_ssize_t, const double*) noexcept nogil

cdef struct Rule:
    Rule32 f32
    Rule64 f64
    int slots
    int scalars

cdef dict _rules = {}


cdef register(str name, Rule32 f32, Rule64 f64, int slots, int scalars):
    cdef CompiledRule rule = CompiledRule.__new__(CompiledRule)
    rule.rule = Rule(f32, f64, slots, scalars)
    _rules[name] = rule


cdef class CompiledRule:
    cdef Rule rule

    @property
    def slots(self):
        return self.rule.slots

    @property
    def scalars(self):
        return self.rule.scalars


include "rules.pxi"
include "stages.pxi"

RULES = dict(_rules)
cnp.import_array()
if (sizeof(Stages) != _stages.STAGES.itemsize or BLOCK != _stages.BLOCK or LANES != _stages.LANES
        or TINY_F32 != _stages.TINY[np.dtype("f4")] or TINY_F64 != _stages.TINY[np.dtype("f8")]):
    raise ImportError("fastvar: the compiled kernels do not match kernels/stages.py; build them again")


cdef struct Span:  # one variable of a plan, and its gradient of this step
    char* w
    char* g  # NULL: no gradient in this step
    char* average  # NULL: no moving average
    char* slots[MAX_SLOTS]
    Py_ssize_t n
    Py_ssize_t start  # its place in the concatenation of all variables
    Py_ssize_t own  # the same with every variable starting a block of its own
    bint wide  # float64 rather than float32
    bint wide_g
    char* clear  # the last gradient address found to overlap nothing, and its format
    bint wide_clear
    const float* c32
    const double* c64
    const Stages* stages


cdef inline void* aligned(char* room) noexcept nogil:
    return <void*> ((<uintptr_t> room + 63) & ~ <uintptr_t> 63)


cdef void read_gradient(real* x, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    check(0 <= at and 0 < n <= BLOCK and at + n <= s.n)
    if s.wide_g:
        load(x, <const double*> s.g + at, n, <real> s.stages.scale)
    else:
        load(x, <const float*> s.g + at, n, <real> s.stages.scale)
    condition(x, w + at, n, s.stages)


cdef void apply_rule(real* w, const real* g, const Rule* rule, const Span* s, Py_ssize_t at,
                     Py_ssize_t n) noexcept nogil:
    cdef real* slots[MAX_SLOTS]
    cdef int k
    for k in range(rule.slots):
        slots[k] = <real*> s.slots[k] + at
    if real is float:
        rule.f32(w + at, g, slots, n, s.c32)
    else:
        rule.f64(w + at, g, slots, n, s.c64)


cdef void advance(real* w, const Rule* rule, const Span* s, Py_ssize_t lo, Py_ssize_t hi,
                  bint zero) noexcept nogil:
    # Elements lo to hi of one variable: straight on the user's memory, or block by block through the stages.
    cdef char room[ROOM]
    cdef real* x = <real*> aligned(room)
    cdef real* average = <real*> s.average
    cdef Py_ssize_t at = lo, n, width = sizeof(double) if s.wide_g else sizeof(float)
    check(0 <= lo <= hi <= s.n)
    if (s.g != NULL and average == NULL and not zero and s.wide == s.wide_g and raw_gradient(s.stages)
            and s.stages.decay == 0 and s.stages.nonneg == 0):
        apply_rule(w, <const real*> s.g + lo, rule, s, lo, hi - lo)
        return
    while at < hi:
        n = min(<Py_ssize_t> BLOCK, hi - at)
        if s.g != NULL:
            read_gradient(x, w, s, at, n)
            if s.stages.decay != 0:
                shrink(w + at, n, <real> s.stages.decay)
            apply_rule(w, x, rule, s, at, n)
        finish(w + at, NULL if average == NULL else average + at, n, s.stages, s.g != NULL)
        if zero and s.g != NULL:
            memset(s.g + at * width, 0, n * width)
        at += n


cdef void advance_any(const Rule* rule, const Span* s, Py_ssize_t lo, Py_ssize_t hi, bint zero) noexcept nogil:
    if s.g == NULL and s.average == NULL:
        return
    if s.wide:
        advance(<double*> s.w, rule, s, lo, hi, zero)
    else:
        advance(<float*> s.w, rule, s, lo, hi, zero)


cdef Py_ssize_t find(const Span* spans, Py_ssize_t n, Py_ssize_t at, bint own) noexcept nogil:
    # The last span that starts at or before `at` of the concatenation.
    cdef Py_ssize_t low = 0, high = n, middle
    while high - low > 1:
        middle = (low + high) // 2
        if (spans[middle].own if own else spans[middle].start) <= at:
            low = middle
        else:
            high = middle
    return low


cdef void run_task(const Rule* rule, const Span* spans, Py_ssize_t n, Py_ssize_t lo, bint zero) noexcept nogil:
    # Elements lo to lo + TASK of the concatenation.
    cdef Py_ssize_t i = find(spans, n, lo, False), hi = lo + TASK
    while i < n and spans[i].start < hi:
        advance_any(rule, &spans[i], max(lo - spans[i].start, 0), min(hi - spans[i].start, spans[i].n), zero)
        i += 1


cdef void as_doubles(double* out, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    cdef char room[ROOM]
    cdef real* x = <real*> aligned(room)
    cdef Py_ssize_t i
    read_gradient(x, w, s, at, n)
    for i in range(n):
        out[i] = x[i]


cdef double whole_block_sum(const real* w, const Span* s, Py_ssize_t at) noexcept nogil:
    cdef char room[ROOM]
    cdef real* x = <real*> aligned(room)
    if s.wide == s.wide_g and raw_gradient(s.stages):
        return sum_of_squares(<const real*> s.g + at)
    read_gradient(x, w, s, at, BLOCK)
    return sum_of_squares(<const real*> x)


cdef double block_sum(const Span* spans, Py_ssize_t n, Py_ssize_t lo, bint own) noexcept nogil:
    # Sum of squares of the conditioned gradients of one block of the concatenation; gaps count as zeros.
    cdef char room[ROOM]
    cdef double* x = <double*> aligned(room)
    cdef Py_ssize_t i = find(spans, n, lo, own), start, begin, end, hi = lo + BLOCK
    cdef const Span* s
    memset(x, 0, BLOCK * sizeof(double))
    while i < n:
        s = &spans[i]
        start = s.own if own else s.start
        if start >= hi:
            break
        begin, end = max(start, lo), min(start + s.n, hi)
        if s.g != NULL and begin < end:
            if end - begin == BLOCK:
                return (whole_block_sum(<const double*> s.w, s, lo - start) if s.wide
                        else whole_block_sum(<const float*> s.w, s, lo - start))
            if s.wide:
                as_doubles(x + (begin - lo), <const double*> s.w, s, begin - start, end - begin)
            else:
                as_doubles(x + (begin - lo), <const float*> s.w, s, begin - start, end - begin)
        i += 1
    return sum_of_squares(<const double*> x)


cdef class Plan:
    """All variables of a step and one rule; see reference.Plan for what each method means."""

    cdef readonly CompiledRule rule
    cdef readonly object stages
    cdef readonly str owner
    cdef list names, weights, held, keep
    cdef object extents
    cdef Span* spans
    cdef float* c32
    cdef double* c64
    cdef Py_ssize_t n, groups, total, own_total
    cdef bint bound, zero, disjoint, running
    cdef const uintptr_t* starts
    cdef const uintptr_t* ends
    cdef Py_ssize_t written

    def __cinit__(self, str owner, CompiledRule rule not None, names, weights, slots, groups, averages=None):
        cdef Py_ssize_t i, k
        cdef Span* s
        cdef const Stages* records
        if rule.rule.f32 == NULL:
            raise ValueError(f"{owner}: rule must be one of RULES")
        self.owner, self.rule, self.names = owner, rule, list(names)
        table = buffers.plan_table(owner, rule.slots, self.names, weights, slots, groups, averages)
        self.weights, self.keep, self.extents = table.weights, table.arrays, table.extents
        self.n, self.groups = len(self.weights), table.groups
        self.starts = <const uintptr_t*> cnp.PyArray_DATA(table.extents.starts)
        self.ends = <const uintptr_t*> cnp.PyArray_DATA(table.extents.ends)
        self.written = len(table.extents.names)
        self.stages = _stages.neutral(self.n)
        records = <const Stages*> cnp.PyArray_DATA(self.stages)
        self.spans = <Span*> calloc(max(self.n, 1), sizeof(Span))
        self.c32 = <float*> calloc(max(self.groups * rule.scalars, 1), sizeof(float))
        self.c64 = <double*> calloc(max(self.groups * rule.scalars, 1), sizeof(double))
        if self.spans == NULL or self.c32 == NULL or self.c64 == NULL:
            raise MemoryError
        for i in range(self.n):
            s = &self.spans[i]
            arrays = self.keep[i]
            s.w = cnp.PyArray_BYTES(arrays[0])
            s.average = NULL if arrays[1] is None else cnp.PyArray_BYTES(arrays[1])
            for k in range(rule.slots):
                s.slots[k] = cnp.PyArray_BYTES(arrays[2 + k])
            s.n, s.wide = arrays[0].size, arrays[0].itemsize == sizeof(double)
            s.start, s.own = self.total, self.own_total
            self.total += s.n
            self.own_total += (s.n + BLOCK - 1) // BLOCK * BLOCK
            k = <Py_ssize_t> table.group_of[i] * rule.rule.scalars
            s.c32, s.c64 = self.c32 + k, self.c64 + k
            s.stages = &records[i]

    def __dealloc__(self):
        free(self.spans)
        free(self.c32)
        free(self.c64)

    def bind(self, gradients, bint zero=False):
        cdef Py_ssize_t i, bound = 0
        cdef bint wide
        cdef char* g
        cdef list held = list(gradients)
        cdef Span* s
        if len(held) != self.n:
            raise ValueError(f"{self.owner}: must be given {self.n} gradients, got {len(held)}")
        for i in range(self.n):  # may run foreign code (__array__), so no pointer is taken yet
            gradient = held[i]
            if gradient is None:
                continue
            if not readable(gradient, <cnp.ndarray> self.weights[i]):
                held[i] = buffers.as_gradient(gradient, self.weights[i], self.label(i))
            if zero and not (gradient is held[i] and cnp.PyArray_ISWRITEABLE(gradient)):
                buffers.refuse_zeroing(self.label(i))
            bound += 1
        if self.running:
            raise RuntimeError(f"{self.owner}: another thread is in a step with it")
        self.bound, self.held = False, held
        for i in range(self.n):
            s = &self.spans[i]
            gradient = held[i]
            if gradient is None:
                s.g = NULL
                continue
            g, wide = cnp.PyArray_BYTES(gradient), cnp.PyArray_TYPE(gradient) == cnp.NPY_DOUBLE
            if g != s.clear or wide != s.wide_clear:
                if self.overlaps(<uintptr_t> g, s.n * (sizeof(double) if wide else sizeof(float))):
                    self.extents.refuse(gradient, self.label(i))
                s.clear, s.wide_clear = g, wide
            if g != s.g or wide != s.wide_g:
                self.disjoint = False
            s.g, s.wide_g = g, wide
        if zero and not self.disjoint:
            buffers.check_disjoint([(self.label(i), held[i]) for i in range(self.n)])
            self.disjoint = True
        self.zero, self.bound = zero, True
        return bound

    cdef str label(self, Py_ssize_t i):
        return f"{self.owner}: gradient of {self.names[i]}"

    cdef bint overlaps(self, uintptr_t start, Py_ssize_t nbytes) noexcept:
        cdef Py_ssize_t low = 0, high = self.written, middle
        while low < high:
            middle = (low + high) // 2
            if self.ends[middle] <= start:
                low = middle + 1
            else:
                high = middle
        return nbytes != 0 and low < self.written and self.starts[low] < start + nbytes

    def sums_of_squares(self, bint each, int threads=1):
        cdef Py_ssize_t i, b, size = self.own_total if each else self.total
        cdef Py_ssize_t blocks = (size + BLOCK - 1) // BLOCK
        cdef int workers = min(threads, blocks, MOST_THREADS)
        partials, totals = np.empty(blocks), np.zeros(self.n if each else 1)
        cdef double* partial = <double*> cnp.PyArray_DATA(partials)
        cdef double* sums = <double*> cnp.PyArray_DATA(totals)
        self.enter()
        try:
            with nogil:
                if workers <= 1 or size < SERIAL:
                    for b in range(blocks):
                        partial[b] = block_sum(self.spans, self.n, b * BLOCK, each)
                else:
                    for b in prange(blocks, num_threads=workers, schedule="dynamic", chunksize=16):
                        partial[b] = block_sum(self.spans, self.n, b * BLOCK, each)
                i = 0
                for b in range(blocks):
                    while each and i + 1 < self.n and self.spans[i + 1].own <= b * BLOCK:
                        i += 1
                    sums[i] += partial[b]
        finally:
            self.running = False
        return totals

    @cython.boundscheck(True)
    def run(self, scalars, int threads=1, list count=None):
        cdef Py_ssize_t i, k, tasks = (self.total + TASK - 1) // TASK
        cdef int workers = min(threads, tasks, MOST_THREADS)
        cdef int width = self.rule.rule.scalars
        if len(scalars) != self.groups:
            raise ValueError(f"{self.owner}: must be given scalars for {self.groups} groups, got {len(scalars)}")
        for i in range(self.groups):
            row = tuple(scalars[i])
            if len(row) != width:
                raise ValueError(f"{self.owner}: the rule takes {width} scalars, got {len(row)}")
            for k in range(width):
                self.c64[i * width + k] = row[k]
                self.c32[i * width + k] = <float> self.c64[i * width + k]
        self.enter()
        try:
            with nogil:
                if workers <= 1 or self.total < SERIAL:
                    for i in range(self.n):
                        advance_any(&self.rule.rule, &self.spans[i], 0, self.spans[i].n, self.zero)
                else:
                    for i in prange(tasks, num_threads=workers, schedule="dynamic"):
                        run_task(&self.rule.rule, self.spans, self.n, i * TASK, self.zero)
            if count is not None:
                count[0] += 1  # here, where no signal can come between the update and its count
        finally:
            self.running = False
            self.bound = False
            self.held = None

    cdef int enter(self) except -1:
        if self.running:
            raise RuntimeError(f"{self.owner}: another thread is in a step with it")
        if not self.bound:
            raise RuntimeError(f"{self.owner}: bind gradients first")
        self.running = True
        return 0


cdef inline bint readable(object gradient, cnp.ndarray like) noexcept:
    # Whether kernels can read it in place; otherwise buffers.as_gradient converts or refuses it.
    cdef int kind
    if not cnp.PyArray_CheckExact(gradient):
        return False
    kind = cnp.PyArray_TYPE(gradient)
    return (
        (kind == cnp.NPY_FLOAT or kind == cnp.NPY_DOUBLE)
        and cnp.PyArray_ISCARRAY_RO(gradient)
        and cnp.PyArray_NDIM(gradient) == cnp.PyArray_NDIM(like)
        and memcmp(cnp.PyArray_DIMS(gradient), cnp.PyArray_DIMS(like),
                   cnp.PyArray_NDIM(like) * sizeof(cnp.npy_intp)) == 0
    )


def openmp():
    """Whether these kernels were built with OpenMP."""
    return bool(FV_OPENMP)


def max_threads():
    """How many threads OpenMP would use now; 1 in a serial build."""
    return omp_get_max_threads()
