# Gradients as matrices (see units.py): sums of squares of rows and columns, and factors for them.

cdef enum:
    ROWS = 4  # that are added to the sums of columns together


cdef struct Patch:  # of a matrix; the order of the fields is that of units.PATCH
    Py_ssize_t variable
    Py_ssize_t row  # in all matrices of the variable, one below the other
    Py_ssize_t row_end
    Py_ssize_t column
    Py_ssize_t column_end
    Py_ssize_t of_row  # the positions of the sums of its rows and columns
    Py_ssize_t of_column
    Py_ssize_t at  # the position of its own sums


cdef const real* rescale(
        real* scratch, const real* x, Py_ssize_t at, Py_ssize_t n, const Units* u) noexcept nogil:
    # Multiply elements `at` to `at + n` by the factors of their columns or, with rows, by the product of both
    # factors, at most `most`.
    cdef Py_ssize_t row, column, i, m
    cdef real* to = scratch
    cdef real factor, most
    cdef const real* by_row = <const real*> u.by_row
    cdef const real* factors
    if u.columns == 0:  # no matrices
        return x
    most = <real> u.most[0]
    row, column = at // u.columns, at % u.columns
    while n > 0:
        factors = <const real*> u.by_column + row // u.rows * u.columns + column
        m = min(n, u.columns - column if u.columns > 1 else u.rows - row % u.rows)
        if u.columns == 1:
            factor = factors[0]
            for i in range(m):
                to[i] = x[i] * (factor if by_row == NULL else minimum(by_row[row + i] * factor, most))
            row += m
        elif by_row != NULL:
            factor = by_row[row]
            for i in range(m):
                to[i] = x[i] * minimum(factor * factors[i], most)
            row, column = row + 1, 0
        else:
            for i in range(m):
                to[i] = x[i] * factors[i]
            row, column = row + 1, 0
        to, x, n = to + m, x + m, n - m
    return scratch


cdef const real* loaded(
        real* scratch, const Span* s, Py_ssize_t at, Py_ssize_t n, int matrices, bint weights) noexcept nogil:
    # The weights, or the gradient with the factors of a number of its units.
    cdef char room[TILE_BYTES]
    if weights:
        return load_weights(scratch, s, at, n)
    return read_clipped(scratch, load_weights(<real*> aligned(room), s, at, n), s, at, 0, n, matrices)


cdef void add_columns(double* sums, const real** x, int rows, Py_ssize_t n, double scale) noexcept nogil:
    # Add the squares of at most a tile of some rows to the sums of their columns, row by row.
    cdef const real* first = x[0]
    cdef const real* second
    cdef const real* third
    cdef const real* fourth
    cdef Py_ssize_t i
    cdef int k
    if rows == ROWS:
        second, third, fourth = x[1], x[2], x[3]
        for i in range(n):
            sums[i] = (sums[i] + square(first[i], scale) + square(second[i], scale) + square(third[i], scale)
                       + square(fourth[i], scale))
    else:
        for k in range(rows):
            for i in range(n):
                sums[i] += square(x[k][i], scale)


cdef inline double square(real x, double scale) noexcept nogil:
    return (<double> x * scale) * (<double> x * scale)


cdef void add_pair(
        double* of_first, double* of_second, double* of_columns, const real* first, const real* second,
        Py_ssize_t n, double scale) noexcept nogil:
    # Add the squares of at most a tile of two rows to the lanes of both rows and to the sums of their columns.
    # Converting to double costs more than adding; so do it once.
    cdef double a[LANES]
    cdef double b[LANES]
    cdef double x, y
    cdef Py_ssize_t i, j, whole = n // LANES * LANES
    memcpy(a, of_first, sizeof(a))
    memcpy(b, of_second, sizeof(b))
    for i in range(n // LANES):
        for j in range(LANES):
            x, y = square(first[i * LANES + j], scale), square(second[i * LANES + j], scale)
            a[j] += x
            b[j] += y
            of_columns[i * LANES + j] = of_columns[i * LANES + j] + x + y
    for j in range(n - whole):
        x, y = square(first[whole + j], scale), square(second[whole + j], scale)
        a[j] += x
        b[j] += y
        of_columns[whole + j] = of_columns[whole + j] + x + y
    memcpy(of_first, a, sizeof(a))
    memcpy(of_second, b, sizeof(b))


cdef void add_rows(
        double[LANES]* lanes, double* columns, const real** x, int rows, Py_ssize_t n,
        double scale) noexcept nogil:
    # Add the squares of at most a tile of some rows to the lanes of each row and to the sums of their columns.
    cdef int k
    for k in range(0, rows - 1, 2):
        add_pair(lanes[k], lanes[k + 1], columns, x[k], x[k + 1], n, scale)
    if rows % 2:
        add_products(lanes[rows - 1], x[rows - 1], x[rows - 1], n, scale)
        add_columns(columns, x + rows - 1, 1, n, scale)


cdef void column_patch(
        double* rows, double* columns, real* scratch, const Span* s, const Patch* p, int matrices, bint weights,
        double scale) noexcept nogil:
    # Sum a patch of one column like a row.
    cdef double lanes[LANES]
    cdef const real* x
    cdef Py_ssize_t at = p.row, n
    memset(lanes, 0, sizeof(lanes))
    while at < p.row_end:
        n = min(<Py_ssize_t> TILE, p.row_end - at)
        x = loaded(scratch, s, at, n, matrices, weights)
        add_products(lanes, x, x, n, scale)
        if rows != NULL:
            add_columns(rows + (at - p.row), &x, 1, n, scale)
        at += n
    columns[0] = in_order(lanes)


cdef void matrix_patch(
        double* rows, double* columns, real* scratch, const Span* s, const Patch* p, Py_ssize_t row_length,
        int matrices, bint weights, double scale) noexcept nogil:
    cdef double lanes[ROWS][LANES]
    cdef const real* x[ROWS]
    cdef Py_ssize_t width = p.column_end - p.column, row = p.row, at, n
    cdef int k, m
    while row < p.row_end:
        m = <int> min(<Py_ssize_t> ROWS, p.row_end - row)
        at = 0
        memset(lanes, 0, sizeof(lanes))
        while at < width:
            n = min(<Py_ssize_t> TILE, width - at)
            for k in range(m):
                x[k] = loaded(scratch + k * TILE, s, (row + k) * row_length + p.column + at, n, matrices, weights)
            if rows == NULL:
                add_columns(columns + at, x, m, n, scale)
            else:
                add_rows(lanes, columns + at, x, m, n, scale)
            at += n
        for k in range(m):
            if rows != NULL:
                rows[row - p.row + k] = in_order(lanes[k])
        row += m


cdef struct PatchSums:
    const Span* spans
    const Patch* patches
    double* out
    int matrices
    bint weights
    double scale


cdef void patch_sums(void* context, Py_ssize_t task) noexcept nogil:
    # Sum the columns of a patch and, if rows have factors, its rows.
    cdef PatchSums* job = <PatchSums*> context
    cdef const Patch* p = &job.patches[task]
    cdef double* sums = job.out + p.at
    cdef const Span* s = &job.spans[p.variable]
    cdef int matrices = job.matrices
    cdef bint weights = job.weights
    cdef double scale = job.scale
    cdef const Units* u = &s.units[matrices]
    cdef Py_ssize_t width = p.column_end - p.column, height = 0 if u.by_row == NULL else p.row_end - p.row
    cdef char scratch[ROWS * COPY + 64]
    cdef double* rows = NULL if u.by_row == NULL else sums + width
    memset(sums, 0, (width + height) * sizeof(double))
    if s.g == NULL and not weights:
        return
    if u.columns == 1 and s.wide:
        column_patch(rows, sums, <double*> aligned(scratch), s, p, matrices, weights, scale)
    elif u.columns == 1:
        column_patch(rows, sums, <float*> aligned(scratch), s, p, matrices, weights, scale)
    elif s.wide:
        matrix_patch(rows, sums, <double*> aligned(scratch), s, p, u.columns, matrices, weights, scale)
    else:
        matrix_patch(rows, sums, <float*> aligned(scratch), s, p, u.columns, matrices, weights, scale)


cdef void add_patch(double* of_rows, double* of_columns, const double* sums, const Patch* p) noexcept nogil:
    cdef Py_ssize_t i, width = p.column_end - p.column
    for i in range(width):
        of_columns[p.of_column + i] += sums[i]
    if of_rows != NULL:
        for i in range(p.row_end - p.row):
            of_rows[p.of_row + i] += sums[width + i]
