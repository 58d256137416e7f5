# How a rule runs over one span: a variable, or one row of it that a sparse gradient touches.

cdef struct Span:  # what every step reads of it comes first, on as few cache lines as it fits
    char* w
    char* g  # NULL: no gradient in this step
    char* clear  # the last gradient address found to overlap nothing, and its format in wide_clear
    bint wide  # float64 rather than float32
    bint wide_g
    bint wide_clear
    Py_ssize_t n
    const Rule* rule
    const Stages* stages
    const float* c32
    const double* c64
    char* average  # NULL: no moving average
    char* direction  # NULL: the rule updates w; otherwise it writes here what it would have added to w
    char* slots[MAX_SLOTS]
    Py_ssize_t start  # its place in the concatenation of all spans
    Py_ssize_t own  # the same with every variable starting a block of its own
    Py_ssize_t variable


cdef inline void* aligned(char* room) noexcept nogil:
    return <void*> ((<uintptr_t> room + 63) & ~ <uintptr_t> 63)


cdef void read_gradient(real* x, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    check(0 <= at and 0 < n <= BLOCK and at + n <= s.n)
    if s.wide_g:
        load(x, <const double*> s.g + at, n, <real> s.stages.scale)
    else:
        load(x, <const float*> s.g + at, n, <real> s.stages.scale)
    condition(x, w + at, n, s.stages)


cdef void apply_rule(real* w, const real* g, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    cdef real* slots[MAX_SLOTS]
    cdef int k
    for k in range(s.rule.slots):
        slots[k] = <real*> s.slots[k] + at
    if real is float:
        s.rule.f32(w, g, slots, n, s.c32)
    else:
        s.rule.f64(w, g, slots, n, s.c64)


cdef void clear_gradient(const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t width = sizeof(double) if s.wide_g else sizeof(float)
    memset(s.g + at * width, 0, n * width)


cdef void direct(real* w, const Span* s, Py_ssize_t lo, Py_ssize_t hi, bint zero) noexcept nogil:
    # Elements lo to hi of one span: what the rule would add to the weights, which stay as they are.
    cdef char room[ROOM]
    cdef real* x = <real*> aligned(room)
    cdef real* direction = <real*> s.direction
    cdef Py_ssize_t at = lo, n
    check(0 <= lo <= hi <= s.n)
    while at < hi:
        n = min(<Py_ssize_t> BLOCK, hi - at)
        read_gradient(x, w, s, at, n)
        memset(direction + at, 0, n * sizeof(real))
        apply_rule(direction + at, <const real*> x, s, at, n)
        if zero:
            clear_gradient(s, at, n)
        at += n


cdef void advance(real* w, const Span* s, Py_ssize_t lo, Py_ssize_t hi, bint zero) noexcept nogil:
    # Elements lo to hi of one span: straight on the user's memory, or block by block through the stages.
    cdef char room[ROOM]
    cdef real* x = <real*> aligned(room)
    cdef real* average = <real*> s.average
    cdef Py_ssize_t at = lo, n
    check(0 <= lo <= hi <= s.n)
    if (s.g != NULL and average == NULL and not zero and s.wide == s.wide_g and raw_gradient(s.stages)
            and s.stages.decay == 0 and s.stages.nonneg == 0):
        apply_rule(w + lo, <const real*> s.g + lo, s, lo, hi - lo)
        return
    while at < hi:
        n = min(<Py_ssize_t> BLOCK, hi - at)
        if s.g != NULL:
            read_gradient(x, w, s, at, n)
            if s.stages.decay != 0:
                shrink(w + at, n, <real> s.stages.decay)
            apply_rule(w + at, <const real*> x, s, at, n)
        finish(w + at, NULL if average == NULL else average + at, n, s.stages, s.g != NULL)
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
    elif s.g != NULL or s.average != NULL:
        if s.wide:
            advance(<double*> s.w, s, lo, hi, zero)
        else:
            advance(<float*> s.w, s, lo, hi, zero)


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
        run_span(&spans[i], max(lo - spans[i].start, 0), min(hi - spans[i].start, spans[i].n), zero)
        i += 1


cdef inline Py_ssize_t whole_blocks(Py_ssize_t n) noexcept nogil:
    return (n + BLOCK - 1) // BLOCK * BLOCK


cdef void place(Span* s, const Span* before) noexcept nogil:
    # Put a span behind the one before it in both concatenations.
    s.start = s.own = 0
    if before != NULL:
        s.start = before.start + before.n
        s.own = before.own + before.n
        if before.variable != s.variable:
            s.own = whole_blocks(s.own)


cdef void narrow(Span* s, Py_ssize_t row, Py_ssize_t k, Py_ssize_t n) noexcept nogil:
    # Make the span of a variable that of its row of n elements which row k of its gradient is for.
    cdef Py_ssize_t width = sizeof(double) if s.wide else sizeof(float)
    cdef int slot
    check(0 <= row and (row + 1) * n <= s.n)
    s.n = n
    s.w += row * n * width
    s.g += k * n * (sizeof(double) if s.wide_g else sizeof(float))
    if s.average != NULL:
        s.average += row * n * width
    for slot in range(s.rule.slots):
        s.slots[slot] += row * n * width
