# What kernels can read in place: arrays, and raw memory, a record of `buffers.MEMORY` for each gradient.

cdef struct Memory:
    uintptr_t address
    Py_ssize_t size  # elements
    int format  # in `formats`; negative: no gradient
    int writable

if sizeof(Memory) != buffers.MEMORY.itemsize:
    raise ImportError("fastvar: the compiled kernels do not match buffers.MEMORY; build them again")


cdef inline bint is_memory(object gradients) noexcept:
    return cnp.PyArray_CheckExact(gradients) and (<cnp.ndarray> gradients).dtype is buffers.MEMORY


cdef inline bint readable_memory(const Memory* m, const Span* s, bint zero) noexcept:
    # Return whether kernels can read it in place; otherwise buffers.gradient_at says what is wrong.
    return (
        0 <= m.format < known_formats
        and m.size == s.n
        and (m.address != 0 or m.size == 0)
        and m.address % <uintptr_t> formats[m.format].width == 0
        and (m.writable or not zero)
    )


cdef inline bint readable(object gradient, cnp.ndarray like) noexcept:
    # Return whether kernels can read it in place; otherwise buffers.as_gradient converts or refuses it.
    return (
        cnp.PyArray_CheckExact(gradient)
        and format_of(<cnp.ndarray> gradient) >= 0
        and cnp.PyArray_ISCARRAY_RO(gradient)
        and cnp.PyArray_NDIM(gradient) == cnp.PyArray_NDIM(like)
        and cnp.PyArray_CompareLists(
            cnp.PyArray_DIMS(gradient), cnp.PyArray_DIMS(like), cnp.PyArray_NDIM(like))
    )


cdef inline bint readable_rows(object gradient, Py_ssize_t width) noexcept:
    # Return whether the values of a sparse gradient are still those that were checked.
    return (format_of(gradient.values) >= 0 and cnp.PyArray_ISCARRAY_RO(gradient.values)
            and cnp.PyArray_SIZE(gradient.values) == cnp.PyArray_SIZE(gradient.rows) * width)
