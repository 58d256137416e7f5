# Merge sparse gradients: rows in rising order, the values of each row summed in the given order.

cdef enum:
    DIGIT = 11  # one pass sorts by this many bits of the row number: its counters fit in L1


cdef struct Entry:
    cnp.npy_intp row
    cnp.npy_intp at  # the position of its values


cdef void sort_by_digit(Entry* out, const Entry* entries, Py_ssize_t n, int shift) noexcept nogil:
    # Stable counting sort by DIGIT bits of the row numbers.
    cdef Py_ssize_t[1 << DIGIT] begins
    cdef Py_ssize_t i, digit, count, total = 0
    memset(begins, 0, sizeof(begins))
    for i in range(n):
        begins[(entries[i].row >> shift) & ((1 << DIGIT) - 1)] += 1
    for digit in range(1 << DIGIT):
        count = begins[digit]
        begins[digit] = total
        total += count
    for i in range(n):
        digit = (entries[i].row >> shift) & ((1 << DIGIT) - 1)
        out[begins[digit]] = entries[i]
        begins[digit] += 1


cdef Py_ssize_t sum_rows(
        real* sums, cnp.npy_intp* rows, const Entry* entries, const real* values, Py_ssize_t n,
        Py_ssize_t width) noexcept nogil:
    # Sum the values of each row of the sorted entries, and return how many rows there are.
    cdef Py_ssize_t i, j, k = -1
    cdef const real* value
    for i in range(n):
        value = values + entries[i].at * width
        if k >= 0 and entries[i].row == rows[k]:
            for j in range(width):
                sums[k * width + j] += value[j]
        else:
            k += 1
            rows[k] = entries[i].row
            memcpy(sums + k * width, value, width * sizeof(real))
    return k + 1


cdef bint rising(const cnp.npy_intp* rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(1, n):
        if rows[i] <= rows[i - 1]:
            return False
    return True


cdef native(cnp.ndarray values, bint wide):
    # Return numbers that can be added: unchanged in a native format, otherwise decoded.
    cdef int f = learn_format(values)
    if f == F32 or f == F64:
        return values
    decoded = np.empty((<object> values).shape, np.float64 if wide else np.float32)
    if wide:
        formats[f].f64(<double*> cnp.PyArray_DATA(decoded), cnp.PyArray_BYTES(values), decoded.size, 1)
    else:
        formats[f].f32(<float*> cnp.PyArray_DATA(decoded), cnp.PyArray_BYTES(values), decoded.size, 1)
    return decoded


def merge(gradient, bint wide):
    cdef Py_ssize_t i, n, width, count, largest = 0
    cdef int shift = 0
    cdef const cnp.npy_intp* given
    cdef cnp.npy_intp* row
    cdef Entry* entries
    cdef Entry* other
    cdef const void* value
    cdef void* sums
    rows, values = gradient
    buffers.check_rows("merge", rows, values)
    given, n = <const cnp.npy_intp*> cnp.PyArray_DATA(rows), len(rows)
    if rising(given, n):
        return gradient
    values = native(values, wide)
    width, wide = values.size // n, values.itemsize == sizeof(double)
    buffer, merged, summed = np.empty(4 * n, np.intp), np.empty(n, np.intp), np.empty_like(values)
    entries, row = <Entry*> cnp.PyArray_DATA(buffer), <cnp.npy_intp*> cnp.PyArray_DATA(merged)
    other = entries + n
    value, sums = cnp.PyArray_DATA(values), cnp.PyArray_DATA(summed)
    with nogil:
        for i in range(n):
            entries[i] = Entry(given[i], i)
            largest = max(largest, given[i])
        while largest >> shift:
            sort_by_digit(other, entries, n, shift)
            entries, other = other, entries
            shift += DIGIT
        if wide:
            count = sum_rows(<double*> sums, row, entries, <const double*> value, n, width)
        else:
            count = sum_rows(<float*> sums, row, entries, <const float*> value, n, width)
    return Rows(merged[:count], summed[:count])
