# Guarded runs: save what a step writes and check the result, tile by tile. Restore everything if a gradient was
# not finite, or if something finite became infinite or NaN. Unlike with a trial step, memory is read only once.

cdef enum:
    MAX_CHECKED = MAX_SLOTS + 2
    MAX_WRITTEN = MAX_CHECKED + MAX_SLOTS + 1
    OF_WEIGHTS = MAX_SLOTS  # in place of the number of a slot
    STAGGER = 5 * LINE  # offset between saved arrays, which would otherwise begin at the same offset in a page
    IN_CACHE = 1 << 22  # up to this many bytes, saved arrays should stay in the cache
    IN_LAST_CACHE = 1 << 25  # with more bytes, what a step writes comes from memory
    BAD_GRADIENT = 1  # not finite
    BAD_STATE = 2  # finite before, but not after


cdef struct Written:  # an array that a step writes
    char* memory
    char* saved  # its copy
    Py_ssize_t width  # bytes of an element
    Py_ssize_t share  # variables' elements that share an element: 1, or those of a group
    int slot  # the number of a slot, or OF_WEIGHTS, that is decoded; otherwise NATIVE


cdef struct AllWritten:
    Written arrays[MAX_WRITTEN]  # weights, slots, average; then what a master keeps, scales of slots
    int checked  # how many of the arrays hold numbers to check
    int count
    Py_ssize_t nbytes  # of all copies


cdef inline Py_ssize_t bytes_until(const Written* one, Py_ssize_t at) noexcept nogil:
    return (at + one.share - 1) // one.share * one.width


cdef void add_written(
        AllWritten* all, const Span* s, void* memory, Py_ssize_t width, Py_ssize_t share,
        int slot) noexcept nogil:
    cdef Written* one = &all.arrays[all.count]
    cdef Py_ssize_t nbytes
    one.memory, one.saved, one.width, one.share, one.slot = <char*> memory, NULL, width, share, slot
    if s.saved != NULL:
        one.saved = s.saved + all.nbytes
    nbytes = (bytes_until(one, s.n) + LINE - 1) // LINE * LINE
    all.nbytes += nbytes + (STAGGER if nbytes >= PAGE else 0)
    all.count += 1


cdef Py_ssize_t written(AllWritten* all, const Span* s) noexcept nogil:
    # Find the arrays of a span that a step writes. Return the bytes of their copies.
    cdef Py_ssize_t native = sizeof(double) if s.wide else sizeof(float)
    cdef int k, f = format_of_weights(s)
    all.count, all.nbytes = 0, 0
    add_written(all, s, s.w, width_of(s, f), 1, NATIVE if f == NATIVE else OF_WEIGHTS)
    for k in range(s.rule.slots):
        add_written(all, s, s.slots[k], width_of_slot(s, k), 1, NATIVE if format_of_slot(s, k) == NATIVE else k)
    if s.average != NULL:
        add_written(all, s, s.average, native, 1, NATIVE)
    all.checked = all.count
    if s.stored != NULL and s.stored.rest != NULL:
        add_written(all, s, s.stored.rest, masters[f].width, 1, NATIVE)
    for k in range(s.rule.slots):
        if s.stored != NULL and s.stored.scales[k] != NULL:
            add_written(all, s, s.stored.scales[k], sizeof(float), TILE, NATIVE)
    return all.nbytes

cdef inline bint is_finite(real x) noexcept nogil:
    if real is float:
        return fabsf(x) <= FLT_MAX
    else:
        return fabs(x) <= DBL_MAX


cdef bint sums_finite(
        const real* a, const real* b, const real* c, const real* d, Py_ssize_t n) noexcept nogil:
    # Return whether all sums of four numbers are finite; then all numbers are.
    cdef Py_ssize_t i
    cdef int bad = 0
    for i in range(n):
        bad |= not is_finite((a[i] + b[i]) + (c[i] + d[i]))
    return not bad


cdef bint spoilt(const real* now, const real* before, Py_ssize_t n) noexcept nogil:
    # Return whether something finite became infinite or NaN; `before` is NULL if all was finite.
    cdef Py_ssize_t i
    for i in range(n):
        if not is_finite(now[i]) and (before == NULL or is_finite(before[i])):
            return True
    return False


cdef int spoils(real** now, real** before, const real* g, int count, Py_ssize_t n) noexcept nogil:
    # Return what is wrong with a tile; g is NULL if there is no gradient.
    cdef int k = 0, bad = 0
    cdef const real* first = g if g != NULL else now[0]
    while k < count and sums_finite(first, now[k], now[min(k + 1, count - 1)], now[min(k + 2, count - 1)], n):
        k += 3
    if k >= count:
        return 0
    if g != NULL and spoilt(g, <const real*> NULL, n):
        bad |= BAD_GRADIENT
    for k in range(count):
        if spoilt(<const real*> now[k], <const real*> before[k], n):
            bad |= BAD_STATE
    return bad


cdef void save(char* to, const char* origin, Py_ssize_t n, bint past_cache) noexcept nogil:
    # Copy n bytes, and prefetch the next n, which the processor does not.
    cdef Py_ssize_t line = 0
    if past_cache:
        stream(to, origin, n)
        return
    memcpy(to, origin, n)
    while line < n:
        prefetch(origin + n + line)
        line += LINE


cdef void view(real** tiles, char* copies, const AllWritten* all, const Span* s, bint saved, Py_ssize_t at,
               Py_ssize_t n) noexcept nogil:
    # Find the numbers of a tile in what a step writes, or in its copies; those of stored slots are decoded.
    cdef const Written* one
    cdef const char* rest
    cdef int k, more = all.checked
    for k in range(all.checked):
        one = &all.arrays[k]
        rest = NULL
        if one.slot == NATIVE:
            tiles[k] = <real*> (one.saved if saved else one.memory) + at
            continue
        tiles[k] = <real*> (copies + k * COPY)
        if s.stored.rest != NULL if one.slot == OF_WEIGHTS else s.stored.scales[one.slot] != NULL:
            rest = all.arrays[more].saved if saved else all.arrays[more].memory
            more += 1
        if one.slot == OF_WEIGHTS:
            decode_weights(tiles[k], s.stored.weights, one.saved if saved else one.memory, rest, at, n)
        else:
            decode(tiles[k], s.stored.formats[one.slot], one.saved if saved else one.memory, <const float*> rest,
                   at, n)


cdef int guarded(real* room, const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    # Save, update and check elements lo to hi of a variable.
    cdef char scratch[TILE_BYTES]
    cdef char copies[2 * COPIES]
    cdef char* decoded = <char*> aligned(copies)
    cdef const real* g = NULL
    cdef real* now[MAX_CHECKED]
    cdef real* before[MAX_CHECKED]
    cdef AllWritten all
    cdef const Written* one
    cdef Py_ssize_t at = lo, n, begin
    cdef int k, bad = 0
    written(&all, s)
    while at < hi:
        n = tile_at(s, at, hi)
        for k in range(all.count):
            one = &all.arrays[k]
            begin = at // one.share * one.width
            save(one.saved + begin, one.memory + begin, bytes_until(one, at + n) - begin,
                 s.past_cache and s.rows == NULL)
        if s.g != NULL:
            g = read_raw_gradient(
                <real*> aligned(scratch), load_weights(room, s, at, n), s, at, shift, n)
        advance(room, s, at, at + n, shift, False)
        view(now, decoded, &all, s, False, at, n)
        view(before, decoded + COPIES, &all, s, True, at, n)
        bad |= spoils(now, before, g, all.checked, n)
        at += n
    return bad


cdef int guarded_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef char room[TILE_BYTES]
    cdef int bad
    if s.wide:
        bad = guarded(<double*> aligned(room), s, lo, hi, shift)
    else:
        bad = guarded(<float*> aligned(room), s, lo, hi, shift)
    if s.past_cache:
        stream_fence()
    return bad


cdef int look(real* room, const Span* s, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    # `room` is for two sets of copies.
    cdef char* decoded = <char*> room
    cdef real* now[MAX_CHECKED]
    cdef real* before[MAX_CHECKED]
    cdef AllWritten all
    cdef Py_ssize_t n
    written(&all, s)
    while lo < hi:
        n = tile_at(s, lo, hi)
        view(now, decoded, &all, s, False, lo, n)
        view(before, decoded + COPIES, &all, s, True, lo, n)
        if spoils(now, before, <const real*> NULL, all.checked, n):
            return BAD_STATE
        lo += n
    return 0


cdef int look_at_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef char room[2 * COPIES]
    if s.wide:
        return look(<double*> aligned(room), s, lo, hi)
    return look(<float*> aligned(room), s, lo, hi)


cdef int look_at_gradient(
        real* room, const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef char scratch[TILE_BYTES]
    cdef const real* x
    cdef Py_ssize_t n
    while lo < hi and s.g != NULL:
        n = min(<Py_ssize_t> TILE, hi - lo)
        x = read_raw_gradient(
            <real*> aligned(scratch), load_weights(room, s, lo, n), s, lo, shift, n)
        if spoilt(x, <const real*> NULL, n):
            return BAD_GRADIENT
        lo += n
    return 0


cdef int look_at_gradient_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef char room[TILE_BYTES]
    if s.wide:
        return look_at_gradient(<double*> aligned(room), s, lo, hi, shift)
    return look_at_gradient(<float*> aligned(room), s, lo, hi, shift)


cdef int put_back_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    cdef AllWritten all
    cdef const Written* one
    cdef Py_ssize_t begin
    cdef int k
    written(&all, s)
    for k in range(all.count):
        one = &all.arrays[k]
        begin = lo // one.share * one.width
        memcpy(one.memory + begin, one.saved + begin, bytes_until(one, hi) - begin)
    return 0


cdef int clear_part(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t shift) noexcept nogil:
    if s.g != NULL:
        clear_gradient(s, lo, hi - lo)
    return 0


cdef int on_span(const Span* s, Py_ssize_t lo, Py_ssize_t hi, Part part) noexcept nogil:
    if s.g == NULL and s.average == NULL:
        return 0
    return part(s, lo, hi, 0) if s.rows == NULL else over_rows(s, lo, hi, part)


cdef int on_task(const Span* spans, Py_ssize_t n, Py_ssize_t lo, Py_ssize_t hi, Part part) noexcept nogil:
    # Run elements lo to hi of the concatenation.
    cdef Py_ssize_t i = find(spans, n, lo)
    cdef int found = 0
    while i < n and spans[i].start < hi:
        found |= on_span(&spans[i], max(lo - spans[i].start, 0), min(hi - spans[i].start, spans[i].length), part)
        i += 1
    return found


cdef int on_all(const Span* spans, Py_ssize_t n, const Tasks* tasks, Part part) noexcept nogil:
    # Run `part` on all spans. Return the bitwise or of its results.
    cdef Py_ssize_t i
    cdef Parts parts = Parts(spans, n, tasks.blocks * BLOCK, part, 0)
    if tasks.workers > 1:
        share(on_shared_task, &parts, tasks.count, tasks.workers)
        return <int> parts.found
    for i in range(n):
        parts.found |= on_span(&spans[i], 0, spans[i].length, part)
    return <int> parts.found


cdef struct Parts:
    const Span* spans
    Py_ssize_t n
    Py_ssize_t length  # elements of a task
    Part part
    uint64_t found


cdef void on_shared_task(void* context, Py_ssize_t task) noexcept nogil:
    cdef Parts* parts = <Parts*> context
    combine(&parts.found, on_task(
        parts.spans, parts.n, task * parts.length, (task + 1) * parts.length, parts.part))


cdef bint run_guarded(Span* spans, Py_ssize_t n, const Tasks* tasks, bint zero) noexcept nogil:
    # Return whether the step was good. If not, undo it, and set `found` of every span.
    cdef Py_ssize_t i
    if on_all(spans, n, tasks, guarded_part) == 0:
        if zero:
            on_all(spans, n, tasks, clear_part)
        return True
    for i in range(n):
        spans[i].found = on_span(&spans[i], 0, spans[i].length, look_at_part)
    on_all(spans, n, tasks, put_back_part)
    for i in range(n):  # which depend on the weights before the step
        spans[i].found |= on_span(&spans[i], 0, spans[i].length, look_at_gradient_part)
    return False


cdef list agreed(Span* spans, Py_ssize_t n, list found, agree):
    # Ask others what they have found. If that is anything, or they cannot answer, undo what has been written.
    cdef list of_all = None
    cdef Tasks alone = cut(0, 0, 1)
    try:
        of_all = list(agree(found))
        return of_all
    finally:
        if not found and of_all != []:
            with nogil:
                on_all(spans, n, &alone, put_back_part)


cdef void set_ahead(Span* spans, Py_ssize_t n) noexcept nogil:
    # Set where rules prefetch: not in short variables, which gain nothing.
    cdef AllWritten all
    cdef Py_ssize_t i, size = 0
    for i in range(n):
        size += written(&all, &spans[i])
    for i in range(n):
        spans[i].ahead = size > IN_LAST_CACHE and spans[i].n >= 16 * LATER


cdef allocate_copies(Span* spans, Py_ssize_t n, str owner):
    # Allocate memory for what guarded runs save, and return what holds it.
    cdef AllWritten all
    cdef Py_ssize_t i, size = LINE
    cdef char* at
    for i in range(n):
        size += written(&all, &spans[i])
    try:
        saved = np.empty(size, np.uint8)  # NumPy uses huge pages, which need fewer address translations
    except MemoryError:
        raise MemoryError(f"{owner}: no room for a copy of what a guarded step writes") from None
    at = <char*> aligned(cnp.PyArray_BYTES(saved))
    for i in range(n):
        spans[i].past_cache = size > IN_CACHE
        spans[i].saved = at
        at += written(&all, &spans[i])
    return saved
