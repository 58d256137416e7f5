# Random bits for stochastic rounding. rounding.py says what they depend on.

cdef struct Seeds:  # of a variable in an update; the order of the fields is that of rounding.SEEDS
    uint64_t shared
    uint64_t own


cdef inline uint64_t hashed(uint64_t h, uint64_t x) noexcept nogil:
    cdef uint64_t z = (h ^ x) + <uint64_t> 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t> 0x94D049BB133111EB
    return z ^ (z >> 31)


cdef void draw(uint32_t* random, uint64_t shared) noexcept nogil:
    # Compute the random numbers that all groups share.
    cdef int i
    for i in range(TILE):
        random[i] = <uint32_t> (hashed(shared, <uint64_t> i) >> 32)
