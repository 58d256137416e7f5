# The stages around a rule, on one tile that fits in L1. A stage is written once, and works with every rule and
# storage format. The order for a tile:
#
#     load      x = g * scale                        from any format (formats.pxi) to the arithmetic type
#     regularize x = x + l2*w + l1*sign(w)           clip      x = x * clip      limit   -limit <= x <= limit
#     units     x = x * min(by_row * by_column, most)  of matrices (units.pxi)
#     size      x = x * size
#     decay     w = w - decay*w                      then the rule on (w, x, slots), then
#     average   a = average*a + (1 - average)*w      overwrite w = a
#     bound     low <= w <= high
#
# If the rule makes a direction d (Span.direct), it runs on (d, x, slots) with d = 0 and x without `size`. Then
# w = w + step * (size * d).
#
# A stage whose field has its neutral value (stages.py) is skipped. numpy_plan.py holds the twin of each stage.
# A stage of the gradient reads x, which may be the user's memory, and writes `scratch`. It returns the one that
# holds its result.

cdef struct Stages:  # the order of the fields is that of stages.STAGES, checked at import
    double scale
    double l2
    double l1
    double clip
    double limit
    double size
    double decay
    double step
    double average
    double overwrite
    double low
    double high


cdef inline bint raw_gradient(const Stages* s) noexcept nogil:
    return s.scale == 1 and s.l2 == 0 and s.l1 == 0 and s.clip == 1 and s.limit == INFINITY


cdef inline bint bounded(const Stages* s) noexcept nogil:
    return s.low != -INFINITY or s.high != INFINITY


cdef const real* penalize(
        real* scratch, const real* x, const real* w, Py_ssize_t n, const Stages* s) noexcept nogil:
    cdef Py_ssize_t i
    cdef real l2 = s.l2, l1 = s.l1
    if l2 != 0:
        for i in range(n):
            scratch[i] = x[i] + l2 * w[i]
        x = scratch
    if l1 != 0:
        for i in range(n):
            scratch[i] = x[i] + (l1 if w[i] > 0 else -l1 if w[i] < 0 else 0)
        x = scratch
    return x


cdef const real* clip(real* scratch, const real* x, Py_ssize_t n, const Stages* s) noexcept nogil:
    cdef Py_ssize_t i
    cdef real limit = s.limit
    x = enlarge(scratch, x, n, <real> s.clip)
    if limit != INFINITY:
        for i in range(n):
            scratch[i] = clamp(x[i], -limit, limit)
        x = scratch
    return x


cdef const real* enlarge(real* scratch, const real* x, Py_ssize_t n, real factor) noexcept nogil:
    cdef Py_ssize_t i
    if factor == 1:
        return x
    for i in range(n):
        scratch[i] = x[i] * factor
    return scratch


cdef void follow(real* w, const real* direction, Py_ssize_t n, real size, real step) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        w[i] = w[i] + step * (size * direction[i])


cdef void shrink(real* w, Py_ssize_t n, real decay) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        w[i] = w[i] - decay * w[i]


cdef void finish(real* w, real* average, Py_ssize_t n, const Stages* s, bint updated) noexcept nogil:
    cdef Py_ssize_t i
    cdef real keep = s.average, take = 1 - s.average, low = s.low, high = s.high
    if average != NULL:
        for i in range(n):
            average[i] = axpby(keep, average[i], take, w[i])
        if s.overwrite != 0:
            for i in range(n):
                w[i] = average[i]
    if updated and bounded(s):
        for i in range(n):
            w[i] = clamp(w[i], low, high)
