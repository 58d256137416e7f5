# Copy the bytes of whole arrays: to take snapshots of state, and to restore it.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE

cdef extern from "numpy/arrayobject.h":
    bint PyDataType_REFCHK(cnp.PyArray_Descr*)

cdef struct Move:
    char* to
    const char* origin
    Py_ssize_t nbytes


def copy(targets, sources, int threads=1):
    cdef list to = list(targets), origins = list(sources)
    cdef Py_ssize_t k, n = len(to)
    cdef Move* moves = NULL
    if len(origins) != n:
        raise ValueError(f"copy: must be given {_count(n, 'source')}, got {len(origins)}")
    try:
        moves = <Move*> calloc(max(n, 1), sizeof(Move))
        if moves == NULL:
            raise MemoryError
        for k in range(n):
            if not fits(&moves[k], to[k], origins[k]):
                buffers.refuse_copy(to[k], origins[k])
        with nogil:
            for k in range(n):
                move(&moves[k], threads)
    finally:
        free(moves)


cdef inline bint plain(object array) noexcept:
    return (cnp.PyArray_Check(array) and cnp.PyArray_IS_C_CONTIGUOUS(array)
            and not PyDataType_REFCHK(cnp.PyArray_DESCR(array)))


cdef inline bint fits(Move* m, object target, object source) noexcept:
    # Return whether the bytes of `source` can be copied to `target`. If so, fill in `m`.
    if not (plain(target) and cnp.PyArray_ISWRITEABLE(target)):
        return False
    m.to, m.nbytes = cnp.PyArray_BYTES(target), cnp.PyArray_NBYTES(target)
    if PyBytes_CheckExact(source):
        m.origin = PyBytes_AS_STRING(source)
        return PyBytes_GET_SIZE(source) == m.nbytes
    if not plain(source):
        return False
    m.origin = cnp.PyArray_BYTES(source)
    return (cnp.PyArray_NBYTES(source) == m.nbytes
            and (m.to + m.nbytes <= m.origin or m.origin + m.nbytes <= m.to))


cdef void move(const Move* m, int threads) noexcept nogil:
    cdef int workers = 1
    cdef Pieces pieces
    if m.nbytes >= PARALLEL * <Py_ssize_t> sizeof(float):
        workers = max(1, min(threads, MOST_THREADS))
    if workers == 1:
        memcpy(m.to, m.origin, m.nbytes)
        return
    pieces.move, pieces.nbytes = m, (m.nbytes // workers // PAGE + 1) * PAGE
    share(move_piece, &pieces, workers, workers)


cdef struct Pieces:
    const Move* move
    Py_ssize_t nbytes  # of each: long, so that memcpy writes past the cache


cdef void move_piece(void* context, Py_ssize_t k) noexcept nogil:
    cdef Pieces* pieces = <Pieces*> context
    cdef const Move* m = pieces.move
    cdef Py_ssize_t at = k * pieces.nbytes
    if at < m.nbytes:
        memcpy(m.to + at, m.origin + at, min(pieces.nbytes, m.nbytes - at))
