# How a rule runs over one span: a variable, or the rows of it that a sparse gradient touches.

cdef struct Span:  # what every step reads of it comes first, on as few cache lines as it fits
    char* w
    char* g  # NULL: no gradient in this step
    char* clear  # the last gradient address found to overlap nothing, and its format in clear_format
    bint wide  # float64 rather than float32
    int format  # of the gradient, in `formats`
    int clear_format
    Py_ssize_t n  # elements of the variable
    Py_ssize_t length  # elements of the gradient: n, or those of the touched rows
    const cnp.npy_intp* rows  # the touched rows in rising order; NULL: all
    Py_ssize_t width  # elements of a row
    const Rule* rule
    const Stages* stages
    const float* c32
    const double* c64
    char* average  # NULL: no moving average
    char* direction  # NULL: the rule updates w; otherwise it writes here what it would have added to w
    char* slots[MAX_SLOTS]
    char* saved  # where guarded runs save what they write (guard.pxi): arrays that are `stride` bytes apart
    Py_ssize_t stride
    bint past_cache  # more than the cache holds is saved
    int found  # what was bad
    Py_ssize_t start  # its place in the concatenation of all spans
    Py_ssize_t own  # the same with every span starting a block of its own


cdef inline void* aligned(char* room) noexcept nogil:
    return <void*> ((<uintptr_t> room + 63) & ~ <uintptr_t> 63)


cdef void read_raw_gradient(
        real* x, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t shift, Py_ssize_t n) noexcept nogil:
    # Elements `at` to `at + n` of the variable, whose gradient lies `shift` elements further on.
    cdef const Format* format = &formats[s.format]
    cdef const char* g = s.g + (at + shift) * format.width
    check(0 <= at and 0 < n <= BLOCK and at + n <= s.n and 0 <= at + shift and at + shift + n <= s.length)
    if real is float:
        format.f32(x, g, n, <float> s.stages.scale)
    else:
        format.f64(x, g, n, s.stages.scale)
    penalize(x, w + at, n, s.stages)


cdef inline bint in_place(const Span* s) noexcept nogil:
    # Whether the gradient as it lies is what the rule takes.
    return s.format == (F64 if s.wide else F32) and raw_gradient(s.stages)


cdef void read_gradient(
        real* x, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t shift, Py_ssize_t n) noexcept nogil:
    read_raw_gradient(x, w, s, at, shift, n)
    clip(x, n, s.stages)


cdef inline void find_slots(real** slots, const Span* s, Py_ssize_t at) noexcept nogil:
    cdef int k
    for k in range(s.rule.slots):
        slots[k] = <real*> s.slots[k] + at


cdef void apply_rule(real* w, const real* g, real** slots, Py_ssize_t n, const Span* s) noexcept nogil:
    if real is float:
        s.rule.f32(w, g, slots, n, s.c32)
    else:
        s.rule.f64(w, g, slots, n, s.c64)


cdef void update(
        real* w, real* average, real** slots, const real* g, Py_ssize_t n, const Span* s) noexcept nogil:
    # The rule on at most a tile, and all stages behind the gradient's; g is NULL where there is none.
    if g != NULL:
        if s.stages.decay != 0:
            shrink(w, n, <real> s.stages.decay)
        apply_rule(w, g, slots, n, s)
    finish(w, average, n, s.stages, g != NULL)


cdef void clear_gradient(const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t width = formats[s.format].width
    memset(s.g + at * width, 0, n * width)  # zero in every format


cdef void direct(real* w, const Span* s, Py_ssize_t lo, Py_ssize_t hi, bint zero) noexcept nogil:
    # Elements lo to hi of one span: what the rule would add to the weights, which stay as they are.
    cdef char room[ROOM]
    cdef real* x = <real*> aligned(room)
    cdef real* direction = <real*> s.direction
    cdef real* slots[MAX_SLOTS]
    cdef Py_ssize_t at = lo, n
    check(0 <= lo <= hi <= s.n)
    while at < hi:
        n = min(<Py_ssize_t> TILE, hi - at)
        read_gradient(x, w, s, at, 0, n)
        memset(direction + at, 0, n * sizeof(real))
        find_slots(slots, s, at)
        apply_rule(direction + at, <const real*> x, slots, n, s)
        if zero:
            clear_gradient(s, at, n)
        at += n


cdef void advance(
        real* w, const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift, bint zero) noexcept nogil:
    # Elements lo to hi of a variable: straight on the user's memory, or tile by tile through the stages.
    cdef char room[ROOM]
    cdef real* x = <real*> aligned(room)
    cdef real* average = <real*> s.average
    cdef real* slots[MAX_SLOTS]
    cdef Py_ssize_t at = lo, n
    check(0 <= lo <= hi <= s.n)
    find_slots(slots, s, lo)
    if (s.g != NULL and average == NULL and not zero and in_place(s) and s.stages.decay == 0
            and s.stages.nonneg == 0):
        apply_rule(w + lo, <const real*> s.g + lo + shift, slots, hi - lo, s)
        return
    while at < hi:
        n = min(<Py_ssize_t> TILE, hi - at)
        if s.g != NULL:
            read_gradient(x, w, s, at, shift, n)
        find_slots(slots, s, at)
        update(w + at, NULL if average == NULL else average + at, slots,
               <const real*> (NULL if s.g == NULL else x), n, s)
        if zero and s.g != NULL:
            clear_gradient(s, at, n)
        at += n


cdef void run_span(const Span* s, Py_ssize_t lo, Py_ssize_t hi, bint zero) noexcept nogil:
    if s.direction != NULL:
        if s.g == NULL:
            return
        if s.wide:
            direct(<double*> s.w, s, lo, hi, zero)
        else:
            direct(<float*> s.w, s, lo, hi, zero)
    elif s.rows != NULL:
        over_rows(s, lo, hi, advance_part)
    elif s.g != NULL or s.average != NULL:
        if s.wide:
            advance(<double*> s.w, s, lo, hi, 0, zero)
        else:
            advance(<float*> s.w, s, lo, hi, 0, zero)


ctypedef int (*Part)(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil


cdef int advance_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    if s.wide:
        advance(<double*> s.w, s, lo, hi, shift, False)
    else:
        advance(<float*> s.w, s, lo, hi, shift, False)
    return 0


cdef int over_rows(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Part part) noexcept nogil:
    # Elements lo to hi of a sparse gradient, row by row; what `part` returns of each, or'ed.
    cdef Py_ssize_t k, count, end, at
    cdef int found = 0
    if lo >= hi:  # rows may have no elements
        return 0
    k, count = lo // s.width, s.length // s.width
    while lo < hi:
        end = min((k + 1) * s.width, hi)
        at = s.rows[k] * s.width + (lo - k * s.width)
        if k + AHEAD < count:
            prefetch_row(s, s.rows[k + AHEAD])
        found |= part(s, at, at + (end - lo), lo - at)
        lo = end
        k += 1
    return found


cdef inline void prefetch_row(const Span* s, Py_ssize_t row) noexcept nogil:
    # Rows are scattered: the processor does not foresee where the next ones lie.
    cdef Py_ssize_t width = s.width * <Py_ssize_t> (sizeof(double) if s.wide else sizeof(float)), line = 0
    cdef int k
    while line < width and line < FETCHED:
        prefetch(s.w + row * width + line)
        for k in range(s.rule.slots):
            prefetch(s.slots[k] + row * width + line)
        line += LINE


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


cdef void run_task(const Span* spans, Py_ssize_t n, Py_ssize_t lo, bint zero) noexcept nogil:
    # Elements lo to lo + TASK of the concatenation.
    cdef Py_ssize_t i = find(spans, n, lo, False), hi = lo + TASK
    while i < n and spans[i].start < hi:
        run_span(&spans[i], max(lo - spans[i].start, 0), min(hi - spans[i].start, spans[i].length), zero)
        i += 1


cdef inline Py_ssize_t whole_blocks(Py_ssize_t n) noexcept nogil:
    return (n + BLOCK - 1) // BLOCK * BLOCK


cdef void place(Span* spans, Py_ssize_t n) noexcept nogil:
    # Put the spans one behind the other in both concatenations.
    cdef Py_ssize_t i, start = 0, own = 0
    for i in range(n):
        spans[i].start, spans[i].own = start, own
        start += spans[i].length
        own += whole_blocks(spans[i].length)
