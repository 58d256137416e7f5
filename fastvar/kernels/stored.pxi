# Slots in other formats than the type that rules compute in. Their tiles are decoded before a rule runs, and
# encoded after it. A tile never crosses a multiple of TILE, so that scales and random bits can belong to groups.

cdef struct Stored:  # what a span with such slots has in addition
    int formats[MAX_SLOTS]  # NATIVE: rules use the slot in place
    float* scales[MAX_SLOTS]  # of the groups of a slot; NULL: none
    const Seeds* seeds
    uint32_t random[TILE]  # of this update

cdef enum:
    NATIVE = -1


cdef inline int format_of_slot(const Span* s, int k) noexcept nogil:
    return NATIVE if s.stored == NULL else s.stored.formats[k]


cdef inline Py_ssize_t width_of_slot(const Span* s, int k) noexcept nogil:
    # Return the bytes of an element.
    cdef int f = format_of_slot(s, k)
    return formats[f].width if f != NATIVE else <Py_ssize_t> (sizeof(double) if s.wide else sizeof(float))


cdef void decode(
        real* x, int f, const char* memory, const float* scales, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # Decode elements of a tile from `at` on.
    cdef float scale = 1 if scales == NULL else scales[at // TILE]
    check(at % TILE + n <= TILE)
    if real is float:
        formats[f].f32(x, memory + at * formats[f].width, n, scale)
    else:
        formats[f].f64(x, memory + at * formats[f].width, n, scale)


cdef inline void load_slots(
        real** slots, char* copies, const Span* s, int count, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # Find the first slots of a span from `at` on: in place, or decoded in `copies`.
    cdef int k, f
    for k in range(count):
        f = format_of_slot(s, k)
        if f == NATIVE:
            slots[k] = <real*> s.slots[k] + at
        else:
            slots[k] = <real*> (copies + k * COPY)
            decode(slots[k], f, s.slots[k], s.stored.scales[k], at, n)


cdef void encode_slots(real** slots, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # Store the slots that `load_slots` has decoded.
    cdef float rounded[TILE]
    cdef const float* x
    cdef float scale
    cdef uint32_t key
    cdef int k, f
    cdef Py_ssize_t i
    for k in range(s.rule.slots):
        f = s.stored.formats[k]
        if f == NATIVE:
            continue
        if real is float:
            x = slots[k]
        else:
            for i in range(n):
                rounded[i] = <float> slots[k][i]
            x = rounded
        key = <uint32_t> (hashed(hashed(s.stored.seeds.own, k), at // TILE) >> 32)
        scale = formats[f].store(s.slots[k] + at * formats[f].width, x, n, s.stored.random + at % TILE, key)
        if s.stored.scales[k] != NULL:
            s.stored.scales[k][at // TILE] = scale


cdef void draw_all(Span* spans, Py_ssize_t n) noexcept nogil:
    # Compute the random numbers of an update. Most variables share them.
    cdef const Stored* last = NULL
    cdef Py_ssize_t i
    for i in range(n):
        if spans[i].stored == NULL:
            continue
        if last != NULL and last.seeds.shared == spans[i].stored.seeds.shared:
            memcpy(spans[i].stored.random, last.random, sizeof(last.random))
        else:
            draw(spans[i].stored.random, spans[i].stored.seeds.shared)
        last = spans[i].stored


cdef bint set_stored(Stored* stored, Span* s, list slots) except -1:
    # Describe the slots of a span. Return whether it has any that is not in place.
    cdef int k
    cdef bint any = False
    for k, slot in enumerate(slots):
        stored.formats[k], stored.scales[k] = NATIVE, NULL
        if type(slot) is Codes:
            stored.formats[k], stored.scales[k] = CODES, <float*> cnp.PyArray_DATA(slot.scales)
        elif slot.dtype not in buffers.REAL:
            stored.formats[k] = learn_format(slot)
        any |= stored.formats[k] != NATIVE
        s.slots[k] = cnp.PyArray_BYTES(slot.codes if type(slot) is Codes else slot)
    return any
