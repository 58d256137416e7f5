# Copies of whole arrays: snapshots of a training program's state.

def copy(target, source, int threads=1):
    cdef Py_ssize_t nbytes, part, at
    cdef int k, workers
    cdef char* to
    cdef const char* origin
    buffers.check_copy("copy", target, source)
    nbytes = source.nbytes
    to, origin = cnp.PyArray_BYTES(target), cnp.PyArray_BYTES(source)
    workers = 1 if nbytes < SERIAL * <Py_ssize_t> sizeof(float) else max(1, min(threads, MOST_THREADS))
    part = (nbytes // workers // PAGE + 1) * PAGE
    with nogil:
        if workers == 1:
            memcpy(to, origin, nbytes)
        else:
            for k in prange(workers, num_threads=workers, schedule="static", chunksize=1):
                at = k * part
                if at < nbytes:  # one long piece each: memcpy then writes past the cache
                    memcpy(to + at, origin + at, min(part, nbytes - at))
