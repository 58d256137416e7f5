# Run a rule on one span: a variable, or the rows of it in a sparse gradient.

cdef struct Units:  # factors of a gradient that is treated as matrices, see units.pxi
    Py_ssize_t rows
    Py_ssize_t columns  # 0: it is not
    const char* by_row  # in the type of the variable; NULL: none
    const char* by_column
    const double* most  # the largest product of both


cdef struct Sums:  # the sums of a span, see sums.pxi
    int count
    bint of_rule  # something that the rule makes
    int a[MAX_SUMS]
    int b[MAX_SUMS]


cdef struct Span:  # fields that every step reads come first, on few cache lines
    char* w
    char* g  # NULL: no gradient in this step
    char* clear  # the last gradient address that overlaps nothing; clear_format is its format
    bint wide  # float64 rather than float32
    int format  # of the gradient, in `formats`
    int clear_format
    Py_ssize_t n  # elements of the variable
    Py_ssize_t length  # elements of the gradient: n, or those of its rows
    const cnp.npy_intp* rows  # the rows of a sparse gradient, in rising order; NULL: dense
    Py_ssize_t width  # elements of a row
    const Rule* rule
    const Stages* stages
    const float* c32
    const double* c64
    char* average  # NULL: no moving average
    bint direct  # the rule makes a direction, and w takes a multiple of it; otherwise it updates w
    char* direction  # kept directions, which w takes instead; NULL: none are kept
    int matrices  # the number of `units`
    Units units[MAX_UNITS]
    Sums* sums
    char* slots[MAX_SLOTS]  # those of the rule, and then those that are only summed
    Stored* stored  # how slots are stored (stored.pxi); NULL: all in the type of the variable
    char* saved  # copies of what guarded runs write (guard.pxi)
    bint past_cache  # the copies are larger than the cache
    bint ahead  # the rule prefetches, see `apply_rule`
    int found  # what was wrong
    Py_ssize_t start  # its position in the concatenation of all spans, each of which begins a block


cdef inline void* aligned(char* scratch) noexcept nogil:
    return <void*> ((<uintptr_t> scratch + 63) & ~ <uintptr_t> 63)


cdef const real* read_raw_gradient(
        real* scratch, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t shift, Py_ssize_t n) noexcept nogil:
    # Elements `at` to `at + n` of the variable, which has the weights `w` there. Their gradient lies `shift`
    # elements further on. They are in `scratch`, or in place if they are used as they are; here and below.
    cdef const Format* format = &formats[s.format]
    cdef const char* g = s.g + (at + shift) * format.width
    cdef const real* x = scratch
    check(0 <= at and 0 < n <= TILE and at + n <= s.n and 0 <= at + shift and at + shift + n <= s.length)
    if s.format == (F64 if s.wide else F32) and s.stages.scale == 1:
        x = <const real*> g
    elif real is float:
        format.f32(scratch, g, n, <float> s.stages.scale)
    else:
        format.f64(scratch, g, n, s.stages.scale)
    return penalize(scratch, x, w, n, s.stages)


cdef inline bint in_place(const Span* s) noexcept nogil:
    # Return whether the rule can use the whole gradient in place.
    return (s.format == (F64 if s.wide else F32) and raw_gradient(s.stages) and s.matrices == 0
            and (s.direct or s.stages.size == 1))


cdef const real* read_clipped(
        real* scratch, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t shift, Py_ssize_t n,
        int matrices) noexcept nogil:
    # The gradient with the factors of so many of its units.
    cdef const real* x = clip(scratch, read_raw_gradient(scratch, w, s, at, shift, n), n, s.stages)
    cdef int k
    for k in range(matrices):
        x = rescale(scratch, x, at, n, &s.units[k])
    return x


cdef const real* read_gradient(
        real* scratch, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t shift, Py_ssize_t n) noexcept nogil:
    cdef const real* x = read_clipped(scratch, w, s, at, shift, n, s.matrices)
    return x if s.direct else enlarge(scratch, x, n, <real> s.stages.size)


cdef void run_rule(
        real* w, const real* g, real** slots, Py_ssize_t n, const Span* s, bint measured) noexcept nogil:
    if real is float:
        if measured:
            s.rule.measure32(w, g, slots, n, s.c32)
        else:
            s.rule.f32(w, g, slots, n, s.c32)
    elif measured:
        s.rule.measure64(w, g, slots, n, s.c64)
    else:
        s.rule.f64(w, g, slots, n, s.c64)


cdef void apply_rule(
        real* w, const real* g, real** slots, Py_ssize_t at, Py_ssize_t n, const Span* s,
        bint measured) noexcept nogil:
    # Run the rule, or what sums run in its place; beyond caches in parts, each after prefetching what a later
    # one needs. While a rule computes, the processor itself looks too few lines ahead for the memory's speed.
    cdef real* rest[MAX_SLOTS]
    cdef Py_ssize_t i = 0, m
    cdef int k
    if not s.ahead or s.rows != NULL:
        run_rule(w, g, slots, n, s, measured)
        return
    while i < n:
        m = min(<Py_ssize_t> PART, n - i)
        if at + i + LATER + PART <= s.n:
            prefetch_part(s, at + i + LATER, measured)
        for k in range(s.rule.slots):
            rest[k] = slots[k] + i
        run_rule(w + i, g + i, rest, m, s, measured)
        i += m


cdef inline void prefetch_lines(const char* memory, Py_ssize_t nbytes) noexcept nogil:
    cdef Py_ssize_t line = 0
    while line < nbytes:
        prefetch_read(memory + line)
        line += LINE


cdef void prefetch_part(const Span* s, Py_ssize_t at, bint measured) noexcept nogil:
    # Prefetch elements from `at` on of all that a dense update, or what is measured for it, reads.
    cdef Py_ssize_t width = width_of(s, format_of_weights(s))
    cdef int k
    prefetch_lines(s.w + at * width, PART * width)
    prefetch_lines(s.g + at * formats[s.format].width, PART * formats[s.format].width)
    for k in range(s.rule.measured if measured else s.rule.slots):
        width = width_of_slot(s, k)
        prefetch_lines(s.slots[k] + at * width, PART * width)
    if s.average != NULL and not measured:
        width = width_of(s, NATIVE)
        prefetch_lines(s.average + at * width, PART * width)
    if s.stored != NULL and s.stored.rest != NULL:
        width = masters[s.stored.weights].width
        prefetch_lines(s.stored.rest + at * width, PART * width)


cdef void apply_direction(
        real* w, const real* g, real** slots, Py_ssize_t at, Py_ssize_t n, const Span* s) noexcept nogil:
    cdef char scratch[TILE_BYTES]
    cdef real* direction = <real*> aligned(scratch)
    memset(direction, 0, n * sizeof(real))
    apply_rule(direction, g, slots, at, n, s, False)
    if s.direction != NULL:
        direction = <real*> s.direction + at
    follow(w, <const real*> direction, n, <real> s.stages.size, <real> s.stages.step)


cdef void update(
        real* w, real* average, real** slots, const real* g, Py_ssize_t at, Py_ssize_t n,
        const Span* s) noexcept nogil:
    # Run the rule on at most a tile, and all stages after those of the gradient; g is NULL if there is none.
    if g != NULL:
        if s.stages.decay != 0:
            shrink(w, n, <real> s.stages.decay)
        if s.direct:
            apply_direction(w, g, slots, at, n, s)
        else:
            apply_rule(w, g, slots, at, n, s, False)
    finish(w, average, n, s.stages, g != NULL)


cdef void clear_gradient(const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t width = formats[s.format].width
    memset(s.g + at * width, 0, n * width)  # zero in every format


cdef inline Py_ssize_t tile_at(const Span* s, Py_ssize_t at, Py_ssize_t hi) noexcept nogil:
    # Return the elements of the tile that begins at `at`.
    return min(<Py_ssize_t> TILE - (0 if s.stored == NULL else at % TILE), hi - at)


cdef void advance(
        real* room, const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift, bint zero) noexcept nogil:
    # Run elements lo to hi of a variable: in place, or tile by tile through the stages. `room` is for a tile of
    # weights; here and below.
    cdef char scratch[TILE_BYTES]
    cdef char copies[COPIES]
    cdef const real* x = NULL
    cdef real* w
    cdef real* average = <real*> s.average
    cdef real* slots[MAX_SLOTS]
    cdef Py_ssize_t at = lo, n
    check(0 <= lo <= hi <= s.n)
    if (s.g != NULL and average == NULL and not zero and in_place(s) and s.stages.decay == 0
            and not bounded(s.stages) and not s.direct and s.stored == NULL):
        load_slots(slots, copies, s, s.rule.slots, lo, hi - lo)
        if s.rule.slots == 0:  # it computes too little to gain from prefetching
            run_rule(<real*> s.w + lo, <const real*> s.g + lo + shift, slots, hi - lo, s, False)
        else:
            apply_rule(<real*> s.w + lo, <const real*> s.g + lo + shift, slots, lo, hi - lo, s, False)
        return
    while at < hi:
        n = tile_at(s, at, hi)
        w = load_weights(room, s, at, n)
        if s.g != NULL:
            x = read_gradient(<real*> aligned(scratch), w, s, at, shift, n)
            load_slots(slots, <char*> aligned(copies), s, s.rule.slots, at, n)
        update(w, NULL if average == NULL else average + at, slots, x, at, n, s)
        if s.stored != NULL:
            encode(w, slots, s, at, n)
        if zero and s.g != NULL:
            clear_gradient(s, at, n)
        at += n


cdef inline void encode(const real* w, real** slots, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    if s.g != NULL or s.stages.overwrite != 0:
        encode_weights(w, s, at, n)
    if s.g != NULL:
        encode_slots(slots, s, at, n)


cdef void run_span(const Span* s, Py_ssize_t lo, Py_ssize_t hi, bint zero) noexcept nogil:
    cdef char room[TILE_BYTES]
    if s.rows != NULL:
        over_rows(s, lo, hi, advance_part)
    elif s.g != NULL or s.average != NULL:
        if s.wide:
            advance(<double*> aligned(room), s, lo, hi, 0, zero)
        else:
            advance(<float*> aligned(room), s, lo, hi, 0, zero)


ctypedef int (*Part)(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil


cdef int advance_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef char room[TILE_BYTES]
    if s.wide:
        advance(<double*> aligned(room), s, lo, hi, shift, False)
    else:
        advance(<float*> aligned(room), s, lo, hi, shift, False)
    return 0


cdef int over_rows(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Part part) noexcept nogil:
    # Run elements lo to hi of a sparse gradient, row by row. Return the bitwise or of the results of `part`.
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
    # Rows are scattered, and the processor cannot predict the next ones.
    cdef Py_ssize_t width = s.width * <Py_ssize_t> (sizeof(double) if s.wide else sizeof(float)), line = 0
    cdef Py_ssize_t of_weights = s.width * width_of(s, format_of_weights(s))
    cdef int k
    while line < width and line < FETCHED:
        if line < of_weights:
            prefetch(s.w + row * of_weights + line)
        for k in range(s.rule.slots):
            if line < s.width * width_of_slot(s, k):
                prefetch(s.slots[k] + row * s.width * width_of_slot(s, k) + line)
        line += LINE


cdef Py_ssize_t find(const Span* spans, Py_ssize_t n, Py_ssize_t at) noexcept nogil:
    # Return the last span that starts at or before `at` in the concatenation.
    cdef Py_ssize_t low = 0, high = n, middle
    while high - low > 1:
        middle = (low + high) // 2
        if spans[middle].start <= at:
            low = middle
        else:
            high = middle
    return low


cdef struct Tasks:  # how threads share the concatenation
    int workers
    Py_ssize_t blocks  # of each task but the last
    Py_ssize_t count


cdef Tasks cut(Py_ssize_t blocks, Py_ssize_t elements, int threads) noexcept nogil:
    cdef Tasks tasks
    tasks.workers = threads if elements >= PARALLEL else 1
    tasks.blocks = max(<Py_ssize_t> LEAST, min(<Py_ssize_t> MOST, blocks // (SHARES * tasks.workers)))
    tasks.count = (blocks + tasks.blocks - 1) // tasks.blocks
    return tasks


cdef void run_task(const Span* spans, Py_ssize_t n, Py_ssize_t lo, Py_ssize_t hi, bint zero) noexcept nogil:
    # Run elements lo to hi of the concatenation.
    cdef Py_ssize_t i = find(spans, n, lo)
    while i < n and spans[i].start < hi:
        run_span(&spans[i], max(lo - spans[i].start, 0), min(hi - spans[i].start, spans[i].length), zero)
        i += 1


cdef struct Run:
    const Span* spans
    Py_ssize_t n
    Py_ssize_t length  # elements of a task
    bint zero


cdef void run_shared_task(void* context, Py_ssize_t task) noexcept nogil:
    cdef Run* run = <Run*> context
    run_task(run.spans, run.n, task * run.length, (task + 1) * run.length, run.zero)


cdef Py_ssize_t place(Span* spans, Py_ssize_t n) noexcept nogil:
    # Set the positions of the spans in the concatenation, each on whole blocks. Return the number of blocks.
    cdef Py_ssize_t i, blocks = 0
    for i in range(n):
        spans[i].start = blocks * BLOCK
        blocks += (spans[i].length + BLOCK - 1) // BLOCK
    return blocks
