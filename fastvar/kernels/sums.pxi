# Sums over a variable: in double precision, in fixed lanes and blocks and in a fixed order. So they are the same
# on every instruction set and any number of threads.
#
# A sum is of products of two arrays, or of absolute values of one. An array is the weights, the gradient for the
# rule, the direction from the rule, or a slot (a slot of the rule after its update). The rule runs on copies in
# L1, unless it has a `measure`: only `directions` are written.

cdef enum:
    NOTHING = -1
    WEIGHTS = 0
    GRADIENT = 1
    DIRECTION = 2
    FIRST_SLOT = 3
    MAX_ARRAYS = FIRST_SLOT + MAX_SLOTS

_NAMES = {"weights": WEIGHTS, "gradient": GRADIENT, "direction": DIRECTION}

cdef Sums _squares  # of the gradient before its factors and size
_squares.count, _squares.of_rule, _squares.a[0], _squares.b[0] = 1, False, GRADIENT, GRADIENT


cdef Sums sums_of(products, int slots) except *:
    # Read the requested sums: tuples of names and numbers of slots; the first `slots` are the rule's.
    cdef Sums sums
    cdef int k
    sums.count, sums.of_rule = len(products), False
    for k in range(sums.count):
        operands = [FIRST_SLOT + of if type(of) is int else _NAMES[of] for of in products[k]]
        sums.a[k], sums.b[k] = operands[0], operands[1] if len(operands) == 2 else NOTHING
        for of in operands:
            sums.of_rule |= DIRECTION <= of < FIRST_SLOT + slots
    return sums


cdef inline void fetch_later(const real* x) noexcept nogil:
    # Prefetch LANES elements a block ahead: processors fetch no further than to the end of a page.
    prefetch_read(x + BLOCK)
    if sizeof(real) * LANES > LINE:
        prefetch_read(x + BLOCK + LANES // 2)


cdef void add_products(double* sums, const real* a, const real* b, Py_ssize_t n, double scale) noexcept nogil:
    # Add a * b of at most a block, or |a| if there is no b, to LANES running sums.
    cdef double lanes[LANES]
    cdef Py_ssize_t i, j, whole = n // LANES * LANES
    memcpy(lanes, sums, sizeof(lanes))
    if b == NULL:
        for i in range(n // LANES):
            for j in range(LANES):
                lanes[j] += <double> absolute(a[i * LANES + j])
        for j in range(n - whole):
            lanes[j] += <double> absolute(a[whole + j])
    elif scale == 1 and a == b:  # converted once
        for i in range(n // LANES):
            fetch_later(a + i * LANES)
            for j in range(LANES):
                lanes[j] += <double> a[i * LANES + j] * <double> a[i * LANES + j]
        for j in range(n - whole):
            lanes[j] += <double> a[whole + j] * <double> a[whole + j]
    elif scale == 1:
        for i in range(n // LANES):
            fetch_later(b + i * LANES)
            for j in range(LANES):
                lanes[j] += <double> a[i * LANES + j] * <double> b[i * LANES + j]
        for j in range(n - whole):
            lanes[j] += <double> a[whole + j] * <double> b[whole + j]
    else:
        for i in range(n):
            lanes[i % LANES] += (<double> a[i] * scale) * (<double> b[i] * scale)
    memcpy(sums, lanes, sizeof(lanes))


cdef double in_order(const double* lanes) noexcept nogil:
    cdef double total = lanes[0]
    cdef Py_ssize_t j
    for j in range(1, LANES):
        total += lanes[j]
    return total


cdef void read_rows(real* x, real* room, const Span* s, Py_ssize_t lo, Py_ssize_t n) noexcept nogil:
    # Sum elements lo to lo + n of a sparse gradient, row by row.
    cdef Py_ssize_t row, at, m
    cdef const real* g
    check(n <= TILE)
    while n > 0:
        row = lo // s.width
        m = min(n, (row + 1) * s.width - lo)
        at = s.rows[row] * s.width + (lo - row * s.width)
        g = read_gradient(x, load_weights(room, s, at, m), s, at, lo - at, m)
        if g != x:
            memcpy(x, g, m * sizeof(real))
        x, lo, n = x + m, lo + m, n - m


cdef void run_on_copies(
        real** arrays, char* scratch, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # Run the rule on copies from `at` on, for its direction and its new slots.
    cdef real** slots = arrays + FIRST_SLOT
    cdef real* copy
    cdef int k
    arrays[DIRECTION] = <real*> scratch
    memset(scratch, 0, n * sizeof(real))
    if s.rule.measure32 != NULL:
        apply_rule(arrays[DIRECTION], <const real*> arrays[GRADIENT], slots, at, n, s, True)
    else:
        for k in range(s.rule.slots):
            copy = <real*> (scratch + (1 + k) * COPY)
            if slots[k] != copy:  # it is not decoded
                memcpy(copy, slots[k], n * sizeof(real))
                slots[k] = copy
        apply_rule(arrays[DIRECTION], <const real*> arrays[GRADIENT], slots, at, n, s, False)
    if s.direction != NULL:
        memcpy(<real*> s.direction + at, scratch, n * sizeof(real))


cdef void block_sums(
        double* out, real* room, const Span* s, const Sums* sums, Py_ssize_t lo, double scale) noexcept nogil:
    # Compute the sums of one block of a span; without a gradient, those of slots alone.
    cdef char gradients[TILE_BYTES]
    cdef char copies[COPIES]
    cdef char* scratch = <char*> aligned(copies)
    cdef real* arrays[MAX_ARRAYS]
    cdef double lanes[MAX_SUMS][LANES]
    cdef Py_ssize_t at = lo, hi = min(lo + BLOCK, s.length), n
    cdef int k, a, b
    if sums.count == 0:
        return
    # Longer tiles, where nothing is copied.
    cdef bint whole = in_place(s) and s.rows == NULL and s.stored == NULL and not sums.of_rule
    cdef Py_ssize_t most = BLOCK if whole else TILE
    memset(lanes, 0, sums.count * sizeof(lanes[0]))
    while at < hi:
        n = min(most, hi - at)
        arrays[GRADIENT] = <real*> aligned(gradients)
        if s.rows == NULL:
            arrays[WEIGHTS] = load_weights(room, s, at, n)
        for k in range(MAX_SLOTS):
            arrays[FIRST_SLOT + k] = NULL if s.slots[k] == NULL else <real*> s.slots[k] + at
        if s.stored != NULL and sums != &_squares:
            load_slots(arrays + FIRST_SLOT, scratch + COPY, s, s.rule.slots, at, n)
        if s.g != NULL:
            if s.rows != NULL:
                read_rows(arrays[GRADIENT], room, s, at, n)
            elif in_place(s):
                arrays[GRADIENT] = <real*> s.g + at
            elif sums == &_squares:
                arrays[GRADIENT] = <real*> read_clipped(arrays[GRADIENT], arrays[WEIGHTS], s, at, 0, n, 0)
            else:
                arrays[GRADIENT] = <real*> read_gradient(arrays[GRADIENT], arrays[WEIGHTS], s, at, 0, n)
            if sums.of_rule:
                run_on_copies(arrays, scratch, s, at, n)
        for k in range(sums.count):
            a, b = sums.a[k], sums.b[k]
            if s.g != NULL or (a >= FIRST_SLOT and (b == NOTHING or b >= FIRST_SLOT)):
                add_products(lanes[k], <const real*> arrays[a],
                             <const real*> (NULL if b == NOTHING else arrays[b]), n, scale)
        at += n
    for k in range(sums.count):
        out[k] = in_order(lanes[k])


cdef struct BlockSums:
    const Span* spans
    Py_ssize_t n
    Py_ssize_t blocks
    Py_ssize_t of_task  # blocks
    bint squares
    double scale
    double* out
    int count  # sums of a block


cdef void sums_of_task(void* context, Py_ssize_t task) noexcept nogil:
    # Compute the sums of those blocks of the concatenation that a task has.
    cdef BlockSums* job = <BlockSums*> context
    cdef Py_ssize_t b = task * job.of_task, end = min(b + job.of_task, job.blocks)
    cdef const Span* s
    cdef const Sums* sums
    cdef char room[TILE_BYTES]
    cdef Py_ssize_t i = find(job.spans, job.n, b * BLOCK)
    while b < end:
        while i + 1 < job.n and job.spans[i + 1].start <= b * BLOCK:
            i += 1
        s = &job.spans[i]
        sums = &_squares if job.squares else s.sums
        if s.wide:
            block_sums(job.out + b * job.count, <double*> aligned(room), s, sums, b * BLOCK - s.start, job.scale)
        else:
            block_sums(job.out + b * job.count, <float*> aligned(room), s, sums, b * BLOCK - s.start, job.scale)
        b += 1
