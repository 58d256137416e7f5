# Guarded runs: save what a step writes and check the result, tile by tile. Restore everything if a gradient was
# not finite, or if something finite became infinite or NaN. Unlike with a trial step, memory is read only once.

cdef enum:
    MAX_WRITTEN = MAX_SLOTS + 2
    STAGGER = 5 * LINE  # offset between saved arrays, which would otherwise begin at the same offset in a page
    IN_CACHE = 1 << 22  # up to this many bytes, saved arrays should stay in the cache
    BAD_GRADIENT = 1  # not finite
    BAD_STATE = 2  # finite before, but not after


cdef inline int written(char** places, const Span* s) noexcept nogil:
    # Find the arrays of a span that a step writes: weights, slots, average. Return their number.
    cdef int k, count = 1 + s.rule.slots
    places[0] = s.w
    for k in range(s.rule.slots):
        places[1 + k] = s.slots[k]
    if s.average != NULL:
        places[count] = s.average
        count += 1
    return count


cdef inline bint is_finite(real x) noexcept nogil:
    if real is float:
        return fabsf(x) <= FLT_MAX
    else:
        return fabs(x) <= DBL_MAX


cdef bint sums_finite(
        const real* a, const real* b, const real* c, const real* d, Py_ssize_t n) noexcept nogil:
    # Return whether all sums of four numbers are finite; then all numbers are.
    cdef Py_ssize_t i
    cdef int bad = 0
    for i in range(n):
        bad |= not is_finite((a[i] + b[i]) + (c[i] + d[i]))
    return not bad


cdef bint spoilt(const real* now, const real* before, Py_ssize_t n) noexcept nogil:
    # Return whether something finite became infinite or NaN; `before` is NULL if all was finite.
    cdef Py_ssize_t i
    for i in range(n):
        if not is_finite(now[i]) and (before == NULL or is_finite(before[i])):
            return True
    return False


cdef int spoils(real** now, real** before, const real* g, int count, Py_ssize_t n) noexcept nogil:
    # Return what is wrong with a tile; g is NULL if there is no gradient.
    cdef int k = 0, bad = 0
    cdef const real* first = g if g != NULL else now[0]
    while k < count and sums_finite(first, now[k], now[min(k + 1, count - 1)], now[min(k + 2, count - 1)], n):
        k += 3
    if k >= count:
        return 0
    if g != NULL and spoilt(g, <const real*> NULL, n):
        bad |= BAD_GRADIENT
    for k in range(count):
        if spoilt(<const real*> now[k], <const real*> before[k], n):
            bad |= BAD_STATE
    return bad


cdef void save(char* to, const char* origin, Py_ssize_t n, bint past_cache) noexcept nogil:
    # Copy n bytes, and prefetch the next n, which the processor does not.
    cdef Py_ssize_t line = 0
    if past_cache:
        stream(to, origin, n)
        return
    memcpy(to, origin, n)
    while line < n:
        prefetch(origin + n + line)
        line += LINE


cdef int guarded(real* w, const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    # Save, update and check elements lo to hi of a variable.
    cdef char scratch[TILE_BYTES]
    cdef const real* g = NULL
    cdef real* now[MAX_WRITTEN]
    cdef real* before[MAX_WRITTEN]
    cdef char* places[MAX_WRITTEN]
    cdef Py_ssize_t at = lo, n
    cdef int k, count = written(places, s), bad = 0
    while at < hi:
        n = min(<Py_ssize_t> TILE, hi - at)
        for k in range(count):
            now[k], before[k] = <real*> places[k] + at, <real*> (s.saved + k * s.stride) + at
            save(<char*> before[k], <const char*> now[k], n * sizeof(real), s.past_cache and s.rows == NULL)
        if s.g != NULL:
            g = read_raw_gradient(<real*> aligned(scratch), w, s, at, shift, n)
        advance(w, s, at, at + n, shift, False)
        bad |= spoils(now, before, g, count, n)
        at += n
    return bad


cdef int guarded_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef int bad
    if s.wide:
        bad = guarded(<double*> s.w, s, lo, hi, shift)
    else:
        bad = guarded(<float*> s.w, s, lo, hi, shift)
    if s.past_cache:
        stream_fence()
    return bad


cdef int look(real* w, const Span* s, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    cdef char* places[MAX_WRITTEN]
    cdef real* before
    cdef int k
    for k in range(written(places, s)):
        before = <real*> (s.saved + k * s.stride) + lo
        if spoilt(<const real*> places[k] + lo, <const real*> before, hi - lo):
            return BAD_STATE
    return 0


cdef int look_at_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    if s.wide:
        return look(<double*> s.w, s, lo, hi)
    return look(<float*> s.w, s, lo, hi)


cdef int look_at_gradient(real* w, const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef char scratch[TILE_BYTES]
    cdef const real* x
    cdef Py_ssize_t n
    while lo < hi and s.g != NULL:
        n = min(<Py_ssize_t> TILE, hi - lo)
        x = read_raw_gradient(<real*> aligned(scratch), w, s, lo, shift, n)
        if spoilt(x, <const real*> NULL, n):
            return BAD_GRADIENT
        lo += n
    return 0


cdef int look_at_gradient_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    if s.wide:
        return look_at_gradient(<double*> s.w, s, lo, hi, shift)
    return look_at_gradient(<float*> s.w, s, lo, hi, shift)


cdef int put_back_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef char* places[MAX_WRITTEN]
    cdef Py_ssize_t width = sizeof(double) if s.wide else sizeof(float)
    cdef int k
    for k in range(written(places, s)):
        memcpy(places[k] + lo * width, s.saved + k * s.stride + lo * width, (hi - lo) * width)
    return 0


cdef int clear_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    if s.g != NULL:
        clear_gradient(s, lo, hi - lo)
    return 0


cdef int on_span(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Part part) noexcept nogil:
    if s.g == NULL and s.average == NULL:
        return 0
    return part(s, lo, hi, 0) if s.rows == NULL else over_rows(s, lo, hi, part)


cdef int on_task(const Span* spans, Py_ssize_t n, Py_ssize_t lo, Part part) noexcept nogil:
    # Run elements lo to lo + TASK of the concatenation.
    cdef Py_ssize_t i = find(spans, n, lo), hi = lo + TASK
    cdef int found = 0
    while i < n and spans[i].start < hi:
        found |= on_span(&spans[i], max(lo - spans[i].start, 0), min(hi - spans[i].start, spans[i].length), part)
        i += 1
    return found


cdef int on_all(const Span* spans, Py_ssize_t n, Py_ssize_t tasks, int workers, Part part) noexcept nogil:
    # Run `part` on all spans. Return the bitwise or of its results.
    cdef Py_ssize_t i
    cdef Parts parts = Parts(spans, n, part, 0)
    if workers > 1:
        share(on_shared_task, &parts, tasks, workers)
        return <int> parts.found
    for i in range(n):
        parts.found |= on_span(&spans[i], 0, spans[i].length, part)
    return <int> parts.found


cdef struct Parts:
    const Span* spans
    Py_ssize_t n
    Part part
    uint64_t found


cdef void on_shared_task(void* context, Py_ssize_t task) noexcept nogil:
    cdef Parts* parts = <Parts*> context
    combine(&parts.found, on_task(parts.spans, parts.n, task * TASK, parts.part))


cdef bint run_guarded(Span* spans, Py_ssize_t n, Py_ssize_t tasks, int workers, bint zero) noexcept nogil:
    # Return whether the step was good. If not, undo it, and set `found` of every span.
    cdef Py_ssize_t i
    if on_all(spans, n, tasks, workers, guarded_part) == 0:
        if zero:
            on_all(spans, n, tasks, workers, clear_part)
        return True
    for i in range(n):
        spans[i].found = on_span(&spans[i], 0, spans[i].length, look_at_part)
    on_all(spans, n, tasks, workers, put_back_part)
    for i in range(n):  # which depend on the weights before the step
        spans[i].found |= on_span(&spans[i], 0, spans[i].length, look_at_gradient_part)
    return False
