# Gradients given as raw memory: a record of `buffers.MEMORY` for each.

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
