# Weights and slots in other formats than the type that rules compute in. Their tiles are decoded before a rule
# runs, and encoded after it. A tile never crosses a multiple of TILE, so that scales and random bits can belong to
# groups.

cdef struct Stored:  # what a span with such arrays has in addition
    int weights  # their format; NATIVE: rules use them in place
    char* rest  # what a master keeps of the weights (masters.pxi); NULL: nothing
    int formats[MAX_SLOTS]  # those of slots
    float* scales[MAX_SLOTS]  # of the groups of a slot; NULL: none
    const Seeds* seeds
    uint32_t random[TILE]  # of this update

cdef enum:
    NATIVE = -1


cdef inline int format_of_weights(const Span* s) noexcept nogil:
    return NATIVE if s.stored == NULL else s.stored.weights


cdef inline Py_ssize_t width_of(const Span* s, int f) noexcept nogil:
    # Return the bytes of an element in a format.
    return formats[f].width if f != NATIVE else <Py_ssize_t> (sizeof(double) if s.wide else sizeof(float))


cdef inline int format_of_slot(const Span* s, int k) noexcept nogil:
    return NATIVE if s.stored == NULL else s.stored.formats[k]


cdef inline Py_ssize_t width_of_slot(const Span* s, int k) noexcept nogil:
    return width_of(s, format_of_slot(s, k))


cdef void decode(
        real* x, int f, const char* memory, const float* scales, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # Decode elements of a tile from `at` on.
    cdef float scale = 1 if scales == NULL else scales[at // TILE]
    check(at % TILE + n <= TILE)
    if real is float:
        formats[f].f32(x, memory + at * formats[f].width, n, scale)
    else:
        formats[f].f64(x, memory + at * formats[f].width, n, scale)


cdef void decode_weights(
        real* x, int f, const char* weights, const char* rest, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    weights += at * formats[f].width
    if real is float:
        if rest == NULL:
            formats[f].f32(x, weights, n, 1)
        else:
            masters[f].join(x, weights, rest + at * masters[f].width, n)
    else:
        check(False)  # weights of 16 bits are computed in float32


cdef inline real* load_weights(real* room, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # Find the weights of at most a tile: in place, or decoded in `room`.
    cdef int f = format_of_weights(s)
    if f == NATIVE:
        return <real*> s.w + at
    decode_weights(room, f, s.w, s.stored.rest, at, n)
    return room


cdef void encode_weights(const real* x, const Span* s, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # Store the weights that `load_weights` has found.
    cdef int f = s.stored.weights
    cdef char* weights
    if real is double or f == NATIVE:
        return
    else:
        weights = s.w + at * formats[f].width
        if s.stored.rest != NULL:
            masters[f].split(weights, s.stored.rest + at * masters[f].width, x, n)
        else:
            formats[f].store(weights, x, n, s.stored.random + at % TILE, key_of(s, MAX_SLOTS, at))


cdef inline uint32_t key_of(const Span* s, int k, Py_ssize_t at) noexcept nogil:
    # Return the random bits of a group of a slot, or of weights, which come after all slots.
    return <uint32_t> (hashed(hashed(s.stored.seeds.own, k), at // TILE) >> 32)


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
        scale = formats[f].store(
            s.slots[k] + at * formats[f].width, x, n, s.stored.random + at % TILE, key_of(s, k, at))
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


cdef bint set_stored(Stored* stored, Span* s, weights, list slots) except -1:
    # Describe the weights and slots of a span. Return whether any is not in place.
    cdef int k
    cdef bint any
    stored.weights, stored.rest = NATIVE, NULL
    if type(weights) is MasterArrays:
        weights, rest = weights
        stored.rest = cnp.PyArray_BYTES(rest)
    if weights.dtype not in buffers.REAL:
        stored.weights = learn_format(weights)
    s.w, any = cnp.PyArray_BYTES(weights), stored.weights != NATIVE
    for k, slot in enumerate(slots):
        stored.formats[k], stored.scales[k] = NATIVE, NULL
        if type(slot) is Codes:
            stored.formats[k], stored.scales[k] = CODES, <float*> cnp.PyArray_DATA(slot.scales)
        elif slot.dtype not in buffers.REAL:
            stored.formats[k] = learn_format(slot)
        any |= stored.formats[k] != NATIVE
        s.slots[k] = cnp.PyArray_BYTES(slot.codes if type(slot) is Codes else slot)
    return any
