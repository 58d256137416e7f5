# The format "8bit": a group of 256 elements (a tile) has one float32 scale, and each element a code c of one byte.
# It stands for (of_bits(TWO + (c << REST)) - 2) * scale: linear near 0, four mantissa bits above. If the group has
# a negative number, c has seven bits and the eighth is the sign; such a scale is negative.

cdef enum:
    CODES = MOST_FORMATS - 1  # the position of this format, which is no dtype
    TWO = 0x40000000  # the bits of 2.0
    REST = 19  # mantissa bits of a float32 that a code leaves out

cdef float MOST_UNSIGNED = of_bits(TWO + (255 << REST)) - 2, MOST_SIGNED = of_bits(TWO + (127 << REST)) - 2
cdef float NO_SCALE = of_bits(0x0D800000)  # 2^-100: below it, a group is stored as 0


cdef void load_codes(real* x, const char* stored, Py_ssize_t n, real scale) noexcept nogil:
    cdef Py_ssize_t i
    cdef const unsigned char* codes = <const unsigned char*> stored
    cdef float unit = <float> scale, two = 2, y
    if scale < 0:
        for i in range(n):
            y = (of_bits(TWO + (<uint32_t> (codes[i] & 127) << REST)) - two) * unit
            x[i] = <real> (y if codes[i] & 128 else -y)
    else:
        for i in range(n):
            y = (of_bits(TWO + (<uint32_t> codes[i] << REST)) - two) * unit
            x[i] = <real> y


cdef inline float inverse_scale(float most, float largest) noexcept nogil:
    # Return the factor for a group. Rounded up, it could make a number greater than that of the last code.
    cdef float inverse = most / largest
    while largest * inverse > most:
        inverse = of_bits(bits_of(inverse) - 1)
    return inverse


cdef float store_codes(
        char* stored, const float* x, Py_ssize_t n, const uint32_t* random, uint32_t key) noexcept nogil:
    cdef Py_ssize_t i
    cdef unsigned char* codes = <unsigned char*> stored
    cdef uint32_t code
    cdef int32_t up, down, above = 0, below = 0  # the bits of the largest numbers: maxima of integers vectorise
    cdef bint negative
    cdef float largest, inverse, two = 2
    for i in range(n):
        up, down = <int32_t> bits_of(x[i]), <int32_t> (bits_of(x[i]) ^ <uint32_t> 0x80000000)
        above = up if up > above else above
        below = down if down > below else below
    largest, negative = of_bits(<uint32_t> max(above, below)), below > 0
    if largest < NO_SCALE or not is_finite(largest):  # something that is not finite spoils its group
        memset(codes, 0, n)
        return 0 if largest < NO_SCALE else of_bits(0x7FC00000)
    inverse = inverse_scale(MOST_SIGNED if negative else MOST_UNSIGNED, largest)
    if negative:
        for i in range(n):
            code = (bits_of(fabsf(x[i]) * inverse + two) + ((random[i] ^ key) >> (32 - REST))) >> REST
            codes[i] = <unsigned char> ((code & 127) | (128 if x[i] < 0 else 0))
        return -(largest / MOST_SIGNED)
    for i in range(n):
        code = (bits_of(x[i] * inverse + two) + ((random[i] ^ key) >> (32 - REST))) >> REST
        codes[i] = <unsigned char> (code | (x[i] > 0 and code == TWO >> REST))  # what is positive stays so
    return largest / MOST_UNSIGNED


formats[CODES] = Format(load_codes[float], load_codes[double], store_codes, 1, cnp.NPY_NOTYPE)
