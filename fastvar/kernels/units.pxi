# Gradients as matrices (see units.py): sums of squares of rows and columns, and factors for them.

cdef struct Patch:  # of a matrix; the order of the fields is that of units.PATCH
    Py_ssize_t variable
    Py_ssize_t row  # in all matrices of the variable, one below the other
    Py_ssize_t row_end
    Py_ssize_t column
    Py_ssize_t column_end
    Py_ssize_t of_row  # the positions of the sums of its rows and columns
    Py_ssize_t of_column
    Py_ssize_t at  # the position of its own sums


cdef void rescale(real* x, Py_ssize_t at, Py_ssize_t n, const Units* u) noexcept nogil:
    # Multiply elements `at` to `at + n` by the factors of their rows, and then by those of their columns.
    cdef Py_ssize_t row, column, i, m
    cdef real factor
    cdef const double* factors
    if u.columns == 0:  # no matrices
        return
    row, column = at // u.columns, at % u.columns
    while n > 0:
        factors = u.by_column + row // u.rows * u.columns + column
        m = min(n, u.columns - column if u.columns > 1 else u.rows - row % u.rows)
        if u.by_row != NULL and u.columns > 1:
            factor = <real> u.by_row[row]
            for i in range(m):
                x[i] = x[i] * factor
        elif u.by_row != NULL:
            for i in range(m):
                x[i] = x[i] * <real> u.by_row[row + i]
        if u.columns > 1:
            for i in range(m):
                x[i] = x[i] * <real> factors[i]
            row, column = row + 1, 0
        else:
            factor = <real> factors[0]
            for i in range(m):
                x[i] = x[i] * factor
            row += m
        x, n = x + m, n - m


cdef const real* loaded(
        real* room, const real* w, const Span* s, Py_ssize_t at, Py_ssize_t n, int matrices,
        bint weights) noexcept nogil:
    # Load the weights, or the gradient with the factors of a number of its units.
    if weights:
        return w + at
    if matrices == 0 and s.format == (F64 if s.wide else F32) and raw_gradient(s.stages):
        return <const real*> s.g + at
    read_clipped(room, w, s, at, 0, n, matrices)
    return room


cdef void add_squares(double* lanes, double* each, const real* x, Py_ssize_t n, double scale) noexcept nogil:
    # Add the squares of at most a tile to LANES running sums, and to the sums of their columns (unless NULL).
    cdef double squares[TILE]
    cdef Py_ssize_t i, j, whole = n // LANES * LANES
    for i in range(n):
        squares[i] = (<double> x[i] * scale) * (<double> x[i] * scale)
    if each != NULL:
        for i in range(n):
            each[i] += squares[i]
    if lanes != NULL:
        for i in range(n // LANES):
            for j in range(LANES):
                lanes[j] += squares[i * LANES + j]
        for j in range(n - whole):
            lanes[j] += squares[whole + j]


cdef void column_patch(
        double* rows, double* columns, const real* w, const Span* s, const Patch* p, int matrices, bint weights,
        double scale) noexcept nogil:
    # Sum a patch of one column like a row.
    cdef char room[ROOM]
    cdef double lanes[LANES]
    cdef Py_ssize_t at = p.row, n
    memset(lanes, 0, sizeof(lanes))
    while at < p.row_end:
        n = min(<Py_ssize_t> TILE, p.row_end - at)
        add_squares(lanes, NULL if rows == NULL else rows + (at - p.row),
                    loaded(<real*> aligned(room), w, s, at, n, matrices, weights), n, scale)
        at += n
    columns[0] = in_order(lanes)


cdef void matrix_patch(
        double* rows, double* columns, const real* w, const Span* s, const Patch* p, Py_ssize_t row_length,
        int matrices, bint weights, double scale) noexcept nogil:
    cdef char room[ROOM]
    cdef double lanes[LANES]
    cdef const real* x
    cdef Py_ssize_t width = p.column_end - p.column, row = p.row, at, n, m, i
    while row < p.row_end:  # several short rows at a time
        m = max(TILE // width, 1) if width == row_length else 1
        m = min(m, p.row_end - row)
        at = 0
        memset(lanes, 0, sizeof(lanes))
        while at < width:
            n = min(<Py_ssize_t> TILE, width - at)
            x = loaded(<real*> aligned(room), w, s, row * row_length + p.column + at, m * n, matrices, weights)
            for i in range(m):
                if i > 0:
                    memset(lanes, 0, sizeof(lanes))
                add_squares(NULL if rows == NULL else lanes, columns + at, x + i * n, n, scale)
                if rows != NULL and at + n == width:
                    rows[row - p.row + i] = in_order(lanes)
            at += n
        row += m


cdef void patch_sums(
        double* rooms, const Span* spans, const Patch* p, int matrices, bint weights, double scale) noexcept nogil:
    # Sum the columns of a patch and, if rows have factors, its rows.
    cdef double* room = rooms + p.at
    cdef const Span* s = &spans[p.variable]
    cdef const Units* u = &s.units[matrices]
    cdef Py_ssize_t width = p.column_end - p.column, height = 0 if u.by_row == NULL else p.row_end - p.row
    cdef double* rows = NULL if u.by_row == NULL else room + width
    memset(room, 0, (width + height) * sizeof(double))
    if s.g == NULL and not weights:
        return
    if u.columns == 1 and s.wide:
        column_patch(rows, room, <const double*> s.w, s, p, matrices, weights, scale)
    elif u.columns == 1:
        column_patch(rows, room, <const float*> s.w, s, p, matrices, weights, scale)
    elif s.wide:
        matrix_patch(rows, room, <const double*> s.w, s, p, u.columns, matrices, weights, scale)
    else:
        matrix_patch(rows, room, <const float*> s.w, s, p, u.columns, matrices, weights, scale)


cdef void add_patch(double* of_rows, double* of_columns, const double* room, const Patch* p) noexcept nogil:
    cdef Py_ssize_t i, width = p.column_end - p.column
    for i in range(width):
        of_columns[p.of_column + i] += room[i]
    if of_rows != NULL:
        for i in range(p.row_end - p.row):
            of_rows[p.of_row + i] += room[width + i]
