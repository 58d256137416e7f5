# Storage formats. A format is a width and a function that decodes a tile of numbers to the type that rules compute
# in; formats.py holds its name. The first two are native: rules run on them in place. Formats of slots also have a
# function that encodes a tile; numpy_formats.py is its twin. It rounds stochastically, with one random number per
# element: `random[i] ^ key`. If the numbers of a tile have a scale, it returns it.

cdef enum:
    F32 = 0
    F64 = 1
    F16 = 2
    BF16 = 3
    MOST_FORMATS = 16

ctypedef void (*Load32)(float*, const char*, Py_ssize_t, float) noexcept nogil
ctypedef void (*Load64)(double*, const char*, Py_ssize_t, double) noexcept nogil
ctypedef float (*Store)(char*, const float*, Py_ssize_t, const uint32_t*, uint32_t) noexcept nogil

cdef struct Format:
    Load32 f32
    Load64 f64
    Store store  # NULL: slots cannot have it
    Py_ssize_t width  # bytes of a number
    uint64_t kind  # NumPy's number of the dtype; NPY_NOTYPE until an array of it is seen

cdef Format[MOST_FORMATS] formats
cdef int known_formats = 0  # those that are a dtype
cdef dict _formats = {}  # widths by name


cdef register_format(str name, Load32 f32, Load64 f64, Py_ssize_t width, Store store=NULL):
    global known_formats
    formats[known_formats] = Format(f32, f64, store, width, cnp.NPY_NOTYPE)
    known_formats += 1
    _formats[name] = width


cdef inline float of_bits(uint32_t bits) noexcept nogil:
    cdef float x
    memcpy(&x, &bits, sizeof(x))
    return x


cdef inline uint32_t bits_of(float x) noexcept nogil:
    cdef uint32_t bits
    memcpy(&bits, &x, sizeof(bits))
    return bits


cdef void load_float32(real* x, const char* stored, Py_ssize_t n, real scale) noexcept nogil:
    cdef Py_ssize_t i
    cdef const float* g = <const float*> stored
    for i in range(n):
        x[i] = <real> g[i] * scale


cdef void load_float64(real* x, const char* stored, Py_ssize_t n, real scale) noexcept nogil:
    cdef Py_ssize_t i
    cdef const double* g = <const double*> stored
    for i in range(n):
        x[i] = <real> g[i] * scale


cdef inline float of_float16(uint32_t half) noexcept nogil:
    # Move the exponent from bias 15 to bias 127, which adds 112. Infinity and NaN have exponent 31, which becomes
    # 255: add 112 twice. A denormal is a fraction of 2^-14: add it to 2^-14 as bits, and subtract 2^-14.
    cdef uint32_t rest = (half & 0x7FFF) << 13, exponent = rest & 0x0F800000
    cdef uint32_t more = 0x70000000 if exponent == 0x0F800000 else 0x38000000
    cdef float denormal = of_bits(rest + 0x38800000) - of_bits(0x38800000)
    cdef float x = denormal if exponent == 0 else of_bits(rest + more)
    return -x if half & 0x8000 else x


cdef void load_float16(real* x, const char* stored, Py_ssize_t n, real scale) noexcept nogil:
    cdef Py_ssize_t i
    cdef const uint16_t* g = <const uint16_t*> stored
    for i in range(n):
        x[i] = <real> of_float16(g[i]) * scale


cdef void load_bfloat16(real* x, const char* stored, Py_ssize_t n, real scale) noexcept nogil:
    # The upper half of a float32.
    cdef Py_ssize_t i
    cdef const uint16_t* g = <const uint16_t*> stored
    for i in range(n):
        x[i] = <real> of_bits(<uint32_t> g[i] << 16) * scale


cdef float store_bfloat16(
        char* stored, const float* x, Py_ssize_t n, const uint32_t* random, uint32_t key) noexcept nogil:
    # Add 16 random bits below the upper half. A NaN gets one bit pattern: with some, the sum would overflow.
    cdef Py_ssize_t i
    cdef uint16_t* to = <uint16_t*> stored
    cdef uint32_t rounded
    for i in range(n):
        rounded = bits_of(x[i]) + ((random[i] ^ key) >> 16)
        to[i] = <uint16_t> ((rounded if x[i] == x[i] else 0x7FC00000) >> 16)
    return 1


register_format("float32", load_float32[float], load_float32[double], width=4)
register_format("float64", load_float64[float], load_float64[double], width=8)
register_format("float16", load_float16[float], load_float16[double], width=2)
register_format("bfloat16", load_bfloat16[float], load_bfloat16[double], width=2, store=store_bfloat16)
formats[F32].kind, formats[F64].kind = cnp.NPY_FLOAT, cnp.NPY_DOUBLE


cdef inline int format_of(cnp.ndarray array) noexcept:
    # Return the format of an array, or -1 if it has none or NumPy's number of it is not known yet.
    cdef int f
    cdef uint64_t kind = <uint64_t> cnp.PyArray_TYPE(array)
    for f in range(known_formats):
        if load_relaxed(&formats[f].kind) == kind:
            return f
    return -1


cdef int learn_format(cnp.ndarray array) except -1:
    # Return the format of an array that the gate has accepted. NumPy numbers dtypes of other packages at import.
    cdef int f = format_of(array)
    if f < 0:
        f = list(_formats).index(array.dtype.name)
        store_relaxed(&formats[f].kind, <uint64_t> cnp.PyArray_TYPE(array))
    return f
