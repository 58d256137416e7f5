# Weights of 16 bits. Rules compute with float32 numbers, and a master keeps what 16 bits leave out: of bfloat16
# the lower 16 bits of the number, of float16 the number itself. fastvar/masters.py is the twin.

ctypedef void (*Join)(float*, const char*, const char*, Py_ssize_t) noexcept nogil
ctypedef void (*Split)(char*, char*, const float*, Py_ssize_t) noexcept nogil

cdef struct Master:
    Join join
    Split split
    Py_ssize_t width  # bytes of what it keeps of a number; 0: the format has none

cdef Master[MOST_FORMATS] masters


cdef void join_bfloat16(float* x, const char* weights, const char* rest, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef const uint16_t* high = <const uint16_t*> weights
    cdef const int16_t* low = <const int16_t*> rest
    cdef uint32_t bits
    cdef float whole
    for i in range(n):
        bits = <uint32_t> high[i] << 16
        whole = of_bits(bits + <uint32_t> (<int32_t> low[i]))
        x[i] = whole if whole == whole else of_bits(bits)  # NaN: somebody has written other weights


cdef void split_bfloat16(char* weights, char* rest, const float* x, Py_ssize_t n) noexcept nogil:
    # The upper half is rounded, so the lower half has a sign. With some NaN, rounding would overflow.
    cdef Py_ssize_t i
    cdef uint16_t* high = <uint16_t*> weights
    cdef int16_t* low = <int16_t*> rest
    cdef uint32_t bits
    for i in range(n):
        bits = bits_of(x[i]) if x[i] == x[i] else <uint32_t> 0x7FC00000
        high[i] = <uint16_t> ((bits + 0x8000) >> 16)
        low[i] = <int16_t> bits


cdef inline uint32_t to_float16(float x) noexcept nogil:
    # Round to nearest, ties to even. Adding 0.5 rounds a number below 2^-14 to a multiple of 2^-24, as last bits.
    cdef uint32_t bits = bits_of(x), size = bits & 0x7FFFFFFF
    cdef float half = of_bits(0x3F000000)
    cdef uint32_t denormal = bits_of(of_bits(size) + half) - <uint32_t> 0x3F000000
    cdef uint32_t normal = (size + 0xFFF + ((size >> 13) & 1) - <uint32_t> 0x38000000) >> 13
    cdef uint32_t least = normal if normal < 0x7C00 else <uint32_t> 0x7C00
    cdef uint32_t rounded = denormal if size < 0x38800000 else least
    return (<uint32_t> 0x7E00 if size > 0x7F800000 else rounded) | (bits >> 16 & 0x8000)


cdef void join_float16(float* x, const char* weights, const char* rest, Py_ssize_t n) noexcept nogil:
    # Where somebody has written other weights, these count.
    cdef Py_ssize_t i
    cdef const uint16_t* w = <const uint16_t*> weights
    cdef const float* kept = <const float*> rest
    for i in range(n):
        x[i] = kept[i] if to_float16(kept[i]) == w[i] else of_float16(w[i])


cdef void split_float16(char* weights, char* rest, const float* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef uint16_t* w = <uint16_t*> weights
    for i in range(n):
        w[i] = <uint16_t> to_float16(x[i])
    memcpy(rest, x, n * sizeof(float))


masters[F16] = Master(join_float16, split_float16, sizeof(float))
masters[BF16] = Master(join_bfloat16, split_bfloat16, sizeof(int16_t))
