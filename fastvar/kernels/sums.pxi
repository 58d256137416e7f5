# Sums in fixed lanes, fixed blocks and a fixed order, in double precision: the same on every instruction set and
# any number of threads.

cdef double block_dot(const real* x, const real* y) noexcept nogil:
    # A block in LANES fixed lanes, then the lanes in order.
    cdef double lanes[LANES]
    cdef Py_ssize_t i, j
    for j in range(LANES):
        lanes[j] = 0
    for i in range(BLOCK // LANES):
        for j in range(LANES):
            lanes[j] += <double> x[i * LANES + j] * <double> y[i * LANES + j]
    for j in range(1, LANES):
        lanes[0] += lanes[j]
    return lanes[0]


cdef void as_doubles(double* out, const real* w, const Span* s, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    # Elements lo to hi of the conditioned gradient, row by row where it is sparse.
    cdef char room[ROOM]
    cdef real* x = <real*> aligned(room)
    cdef Py_ssize_t i, n, row, at
    while lo < hi:
        n, at = hi - lo, lo
        if s.rows != NULL:
            row = lo // s.width
            n = min(n, (row + 1) * s.width - lo)
            at = s.rows[row] * s.width + (lo - row * s.width)
        read_gradient(x, w, s, at, lo - at, n)
        for i in range(n):
            out[i] = x[i]
        out += n
        lo += n


cdef double whole_block_sum(const real* w, const Span* s, Py_ssize_t at) noexcept nogil:
    cdef char room[ROOM]
    cdef const real* x = <const real*> aligned(room)
    if in_place(s):
        x = <const real*> s.g + at
    else:
        read_gradient(<real*> x, w, s, at, 0, BLOCK)
    return block_dot(x, x)


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
        begin, end = max(start, lo), min(start + s.length, hi)
        if s.g != NULL and begin < end:
            if end - begin == BLOCK and s.rows == NULL:
                return (whole_block_sum(<const double*> s.w, s, lo - start) if s.wide
                        else whole_block_sum(<const float*> s.w, s, lo - start))
            if s.wide:
                as_doubles(x + (begin - lo), <const double*> s.w, s, begin - start, end - start)
            else:
                as_doubles(x + (begin - lo), <const float*> s.w, s, begin - start, end - start)
        i += 1
    return block_dot(<const double*> x, <const double*> x)


cdef double part_dot(const real* x, const real* y, Py_ssize_t n) noexcept nogil:
    # The dot product of at most a block; what is missing of it counts as zeros.
    cdef char room_x[ROOM]
    cdef char room_y[ROOM]
    if n >= BLOCK:
        return block_dot(x, y)
    memset(room_x, 0, BLOCK * sizeof(real))
    memset(room_y, 0, BLOCK * sizeof(real))
    memcpy(room_x, x, n * sizeof(real))
    memcpy(room_y, y, n * sizeof(real))
    return block_dot(<const real*> room_x, <const real*> room_y)


cdef double nth_dot(const char* x, const char* y, Py_ssize_t at, Py_ssize_t n, bint wide) noexcept nogil:
    if wide:
        return part_dot(<const double*> x + at, <const double*> y + at, n - at)
    return part_dot(<const float*> x + at, <const float*> y + at, n - at)


def dot(x, y, int threads=1):
    cdef Py_ssize_t b, n, blocks
    cdef int workers
    cdef bint wide
    cdef const char* left
    cdef const char* right
    cdef double* partial
    cdef double total = 0
    buffers.check_vectors("dot", x, y)
    n, wide = x.size, x.itemsize == sizeof(double)
    left, right = cnp.PyArray_BYTES(x), cnp.PyArray_BYTES(y)
    blocks = (n + BLOCK - 1) // BLOCK
    workers = min(threads, blocks, MOST_THREADS)
    partials = np.empty(blocks)
    partial = <double*> cnp.PyArray_DATA(partials)
    with nogil:
        if workers <= 1 or n < SERIAL:
            for b in range(blocks):
                partial[b] = nth_dot(left, right, b * BLOCK, n, wide)
        else:
            for b in prange(blocks, num_threads=workers, schedule="dynamic", chunksize=16):
                partial[b] = nth_dot(left, right, b * BLOCK, n, wide)
        for b in range(blocks):
            total += partial[b]
    return total


cdef void square_sums(const real* x, Py_ssize_t n, double* row, double* columns) noexcept nogil:
    # The squares of one row: their sum, and each added to its column's.
    cdef double lanes[LANES]
    cdef Py_ssize_t i, j
    for j in range(LANES):
        lanes[j] = 0
    for i in range(n):
        columns[i] += <double> x[i] * <double> x[i]
    for i in range(n // LANES):
        for j in range(LANES):
            lanes[j] += <double> x[i * LANES + j] * <double> x[i * LANES + j]
    for j in range(n % LANES):
        i = n - n % LANES + j
        lanes[j] += <double> x[i] * <double> x[i]
    row[0] = 0
    for j in range(LANES):
        row[0] += lanes[j]


def unit_sums(x, Py_ssize_t rows, Py_ssize_t columns):
    cdef Py_ssize_t i, count
    cdef bint wide
    cdef char* values
    cdef double* of_row
    cdef double* of_column
    buffers.check_vectors("unit_sums", x, x)
    if rows < 1 or columns < 1 or x.size % (rows * columns):
        raise ValueError(f"unit_sums: {x.size} elements must be matrices of {rows} x {columns}")
    count, wide, values = x.size // columns, x.itemsize == sizeof(double), cnp.PyArray_BYTES(x)
    row_sums, column_sums = np.empty(count), np.zeros(count // rows * columns)
    of_row, of_column = <double*> cnp.PyArray_DATA(row_sums), <double*> cnp.PyArray_DATA(column_sums)
    with nogil:
        for i in range(count):
            if wide:
                square_sums(<double*> values + i * columns, columns, of_row + i, of_column + i // rows * columns)
            else:
                square_sums(<float*> values + i * columns, columns, of_row + i, of_column + i // rows * columns)
    return row_sums.reshape(-1, rows), column_sums.reshape(-1, columns)
