# A plan: the arrays of a step, checked once. Each step binds gradients and runs.

cdef class Plan:
    """All variables of a step and their rules; see numpy_plan.Plan for what each method means."""

    cdef readonly object stages, seeds
    cdef readonly bint rounds
    cdef readonly str owner
    cdef bint rows
    cdef list rules, rule_of, names, likes, held, keep
    cdef object extents
    cdef Span* spans  # one per variable
    cdef float* c32
    cdef double* c64
    cdef Py_ssize_t n, groups
    cdef int* widths  # scalars that the rule of each group, or cohort, takes
    cdef Sums* sums_of_group
    cdef int most_sums  # of a variable
    cdef Py_ssize_t blocks, elements  # of the concatenation, and of its spans
    cdef readonly tuple units
    cdef list factors  # for each of `units`: those of rows and columns, and both in float32
    cdef list sums_of_patches
    cdef bint bound, zero, disjoint, sparse
    cdef uint64_t running  # whether a thread uses it
    cdef const uintptr_t* starts
    cdef const uintptr_t* ends
    cdef Py_ssize_t written
    cdef object saved  # copies of what a guarded run overwrites
    cdef Stored* stored  # one per variable; NULL: none needs it

    def __cinit__(self, str owner, rule not None, names, weights, slots, groups, averages=None, directions=None,
                  bint rows=True, sums=None, direct=None, matrices=()):
        cdef Py_ssize_t i
        table = buffers.plan_table(
            owner, rule, list(names), weights, slots, groups, averages, directions, sums, direct)
        self.owner, self.names, self.rules = owner, list(names), table.rules
        self.rows = rows and not (any(table.sums) or any(table.direct) or matrices)
        self.likes, self.keep, self.extents = table.likes, table.arrays, table.extents
        self.n, self.groups = len(self.likes), len(self.rules)
        self.starts = <const uintptr_t*> cnp.PyArray_DATA(table.extents.starts)
        self.ends = <const uintptr_t*> cnp.PyArray_DATA(table.extents.ends)
        self.written = len(table.extents.names)
        self.stages, self.seeds = _stages.neutral(self.n), np.zeros(self.n, _rounding.SEEDS)
        self.units = _units.checked(owner, [w.size for w in self.likes], matrices)
        exact = [(units.by_row, units.by_column) for units in self.units]
        self.factors = [(*both, *(of.astype("f4") for of in both)) for both in exact]
        self.sums_of_patches = [np.empty(units.length) for units in self.units]
        self.set_rules(table.sums)
        self.spans = <Span*> calloc(max(self.n, 1), sizeof(Span))
        if self.spans == NULL:
            raise MemoryError
        self.rounds = not table.native
        if self.rounds:
            self.stored = <Stored*> calloc(max(self.n, 1), sizeof(Stored))
            if self.stored == NULL:
                raise MemoryError
        first = list(itertools.accumulate([len(given.scalars) for given in self.rules], initial=0))
        for i in range(self.n):
            self.set_span(i, table.group_of[i], first[table.group_of[i]], table.direct[table.group_of[i]])
        self.place()
        set_ahead(self.spans, self.n)
        self.rule_of = [self.rules[group] for group in table.group_of]

    cdef int set_rules(self, sums) except -1:
        # Set what the variables of each group share.
        cdef Py_ssize_t i, width = 0
        self.widths = <int*> calloc(max(self.groups, 1), sizeof(int))
        self.sums_of_group = <Sums*> calloc(max(self.groups, 1), sizeof(Sums))
        if self.widths == NULL or self.sums_of_group == NULL:
            raise MemoryError
        for i in range(self.groups):
            given = self.rules[i]
            if type(given) is not CompiledRule or (<CompiledRule> given).rule.f32 == NULL:
                raise TypeError(f"{self.owner}: rule must be one of RULES, got {given!r}")
            self.widths[i] = len((<CompiledRule> given).scalars)
            self.sums_of_group[i] = sums_of(sums[i], len((<CompiledRule> given).slots))
            self.most_sums = max(self.most_sums, self.sums_of_group[i].count)
            width += self.widths[i]
        self.c32 = <float*> calloc(max(width, 1), sizeof(float))
        self.c64 = <double*> calloc(max(width, 1), sizeof(double))
        if self.c32 == NULL or self.c64 == NULL:
            raise MemoryError
        return 0

    cdef int set_span(self, Py_ssize_t i, Py_ssize_t group, Py_ssize_t scalars, bint direct) except -1:
        cdef int k
        cdef Span* s = &self.spans[i]
        arrays, like = self.keep[i], self.likes[i]
        s.average = NULL if arrays[1] is None else cnp.PyArray_BYTES(arrays[1])
        s.direction = NULL if arrays[2] is None else cnp.PyArray_BYTES(arrays[2])
        s.rule = &(<CompiledRule> self.rules[group]).rule
        if self.stored == NULL:
            s.w = cnp.PyArray_BYTES(arrays[0])
            for k in range(len(arrays) - 3):
                s.slots[k] = cnp.PyArray_BYTES(arrays[3 + k])
        elif set_stored(&self.stored[i], s, arrays[0], list(arrays[3:])):
            s.stored = &self.stored[i]
            s.stored.seeds = <const Seeds*> cnp.PyArray_DATA(self.seeds) + i
        s.n = s.length = like.size
        s.width = s.n // max(len(like), 1) if like.ndim else 1
        s.wide, s.direct = like.itemsize == sizeof(double), direct
        s.c32, s.c64 = self.c32 + scalars, self.c64 + scalars
        s.stages = <const Stages*> cnp.PyArray_DATA(self.stages) + i
        s.sums = &self.sums_of_group[group]
        for k, units in enumerate(self.units):
            if units.shapes[i] is not None and s.n:
                s.matrices = k + 1
                s.units[k].rows, s.units[k].columns = units.shapes[i]
                s.units[k].most = <const double*> cnp.PyArray_DATA(units.most) + i
                by_row, by_column = self.factors[k][:2] if s.wide else self.factors[k][2:]
                s.units[k].by_column = cnp.PyArray_BYTES(units.columns_of(by_column, i))
                if units.rows:
                    s.units[k].by_row = cnp.PyArray_BYTES(units.rows_of(by_row, i))
        return 0

    cdef int round_factors(self) except -1:
        # Round the factors of units, which Python sets, to float32.
        cdef Py_ssize_t i
        cdef const double* factors
        cdef float* rounded
        for of_units in self.factors:
            for origin, to in zip(of_units[:2], of_units[2:], strict=True):
                factors, rounded = <const double*> cnp.PyArray_DATA(origin), <float*> cnp.PyArray_DATA(to)
                for i in range(len(to)):
                    rounded[i] = <float> factors[i]
        return 0

    cdef void place(self) noexcept:
        cdef Py_ssize_t i
        self.blocks, self.elements = place(self.spans, self.n), 0
        for i in range(self.n):
            self.elements += self.spans[i].length

    def share_scalars(self, cohort_of):
        cdef Py_ssize_t i
        cdef list cohorts = [int(cohort) for cohort in cohort_of]
        cdef list rules = buffers.cohort_rules(self.owner, cohorts, self.rule_of)
        cdef list first = list(itertools.accumulate([len(rule.scalars) for rule in rules], initial=0))
        cdef Py_ssize_t nothing = first[len(rules)]  # zeros for variables in no cohort
        cdef Py_ssize_t at, total = nothing + max([len(rule.scalars) for rule in self.rule_of], default=1)
        cdef int* widths = <int*> calloc(max(len(rules), 1), sizeof(int))
        cdef float* c32 = <float*> calloc(max(total, 1), sizeof(float))
        cdef double* c64 = <double*> calloc(max(total, 1), sizeof(double))
        try:
            if widths == NULL or c32 == NULL or c64 == NULL:
                raise MemoryError
            self.enter()
        except BaseException:
            free(widths)
            free(c32)
            free(c64)
            raise
        free(self.widths)
        free(self.c32)
        free(self.c64)
        self.rules, self.groups, self.widths, self.c32, self.c64 = rules, len(rules), widths, c32, c64
        for i in range(self.groups):
            widths[i] = len(rules[i].scalars)
        for i in range(self.n):
            at = nothing if cohorts[i] == -1 else first[cohorts[i]]
            self.spans[i].c32, self.spans[i].c64 = c32 + at, c64 + at
        self.leave()

    def __dealloc__(self):
        free(self.spans)
        free(self.stored)
        free(self.widths)
        free(self.sums_of_group)
        free(self.c32)
        free(self.c64)

    def bind(self, gradients, bint zero=False):
        cdef Py_ssize_t i, bound = 0
        cdef bint sparse = False
        cdef list held
        if is_memory(gradients):
            return self.bind_memory(np.ascontiguousarray(gradients), zero)
        held = list(gradients)
        if len(held) != self.n:
            raise ValueError(f"{self.owner}: must be given {_count(self.n, 'gradient')}, got {len(held)}")
        for i in range(self.n):  # this may run foreign code (__array__), so take no pointers yet
            gradient = held[i]
            if gradient is None:
                continue
            if not readable(gradient, <cnp.ndarray> self.likes[i]):
                held[i] = buffers.as_gradient(gradient, self.likes[i], self.label(i), self.rows)
                if type(held[i]) is Rows:
                    held[i], sparse = merge(held[i], self.spans[i].wide), True
                    buffers.check_row_groups(self.likes[i], self.keep[i], self.label(i))
                learn_format(held[i].values if type(held[i]) is Rows else held[i])
            if zero and not (gradient is held[i] and cnp.PyArray_ISWRITEABLE(gradient)):
                buffers.refuse_zeroing(self.label(i))
            bound += 1
        self.enter()
        try:
            self.bind_arrays(held, zero, sparse)
        finally:
            self.leave()
        return bound

    cdef int bind_arrays(self, list held, bint zero, bint sparse) except -1:
        cdef Py_ssize_t i
        cdef Span* s
        self.bound = False
        for i in range(self.n):  # foreign code may have resized an array that was read before
            gradient = held[i]
            if gradient is not None and not (
                    readable(gradient, <cnp.ndarray> self.likes[i]) if type(gradient) is not Rows
                    else readable_rows(gradient, self.spans[i].width)):
                buffers.refuse_changed(self.label(i))
        self.held = held
        for i in range(self.n):
            s = &self.spans[i]
            gradient = held[i]
            s.rows, s.length = NULL, s.n
            if gradient is None:
                s.g = NULL
                continue
            if sparse and type(gradient) is Rows:
                rows, gradient = gradient
                s.rows, s.length = <const cnp.npy_intp*> cnp.PyArray_DATA(rows), gradient.size
            self.point(i, cnp.PyArray_BYTES(gradient), format_of(<cnp.ndarray> gradient))
        if zero and not self.disjoint:
            buffers.check_disjoint([(self.label(i), held[i]) for i in range(self.n)])
            self.disjoint = True
        if sparse or self.sparse:
            self.place()
        self.sparse, self.zero, self.bound = sparse, zero, True
        return 0

    cdef Py_ssize_t bind_memory(self, cnp.ndarray memory, bint zero) except -1:
        # `bind` for gradients given as raw memory. It makes an array only to refuse a gradient.
        if cnp.PyArray_SIZE(memory) != self.n:
            raise ValueError(
                f"{self.owner}: must be given {_count(self.n, 'gradient')}, got {cnp.PyArray_SIZE(memory)}")
        self.enter()
        try:
            return self.bind_records(memory, zero)
        finally:
            self.leave()

    cdef Py_ssize_t bind_records(self, cnp.ndarray memory, bint zero) except -1:
        cdef Py_ssize_t i, bound = 0
        cdef const Memory* m = <const Memory*> cnp.PyArray_DATA(memory)
        self.bound, self.held = False, None
        for i in range(self.n):
            if m[i].format >= 0 and not readable_memory(&m[i], &self.spans[i], zero):
                buffers.gradient_at(memory[i], self.likes[i], self.label(i), zero)
        for i in range(self.n):
            self.spans[i].rows, self.spans[i].length, self.spans[i].g = NULL, self.spans[i].n, NULL
            if m[i].format >= 0:
                self.point(i, <char*> m[i].address, m[i].format)
                bound += 1
        if zero:
            arrays = [buffers.gradient_at(memory[i], self.likes[i], self.label(i)) for i in range(self.n)]
            buffers.check_disjoint([(self.label(i), arrays[i]) for i in range(self.n)])
        if self.sparse:
            place(self.spans, self.n)
        self.sparse, self.zero, self.bound = False, zero, True
        return bound

    cdef int point(self, Py_ssize_t i, char* g, int format) except -1:
        # Set the gradient of a span. It must not overlap memory that the plan writes.
        cdef Span* s = &self.spans[i]
        cdef Py_ssize_t nbytes
        if g != s.clear or format != s.clear_format or s.rows != NULL:
            nbytes = s.length * formats[format].width
            if self.overlaps(<uintptr_t> g, nbytes):
                self.extents.refuse_at(<uintptr_t> g, nbytes, self.label(i))
            # The next sparse gradient at this address may be longer.
            s.clear, s.clear_format = NULL if s.rows != NULL else g, format
        if g != s.g or format != s.format:
            self.disjoint = False
        s.g, s.format = g, format
        return 0

    cdef str label(self, Py_ssize_t i):
        return f"{self.owner}: gradient of {self.names[i]}"

    cdef bint overlaps(self, uintptr_t start, Py_ssize_t nbytes) noexcept:
        cdef Py_ssize_t low = 0, high = self.written, middle
        while low < high:
            middle = (low + high) // 2
            if self.ends[middle] <= start:
                low = middle + 1
            else:
                high = middle
        return nbytes != 0 and low < self.written and self.starts[low] < start + nbytes

    @cython.boundscheck(True)
    cdef int set_scalars(self, scalars) except -1:
        cdef Py_ssize_t i, k, at = 0
        cdef tuple row
        if len(scalars) != self.groups:
            raise ValueError(
                f"{self.owner}: must be given scalars for {_count(len(self.rules), 'group')}, got {len(scalars)}")
        for i in range(self.groups):
            row = tuple(scalars[i])
            if len(row) != self.widths[i]:
                buffers.refuse_scalars(self.owner, self.rules[i], row)
            for k in range(self.widths[i]):
                self.c64[at] = row[k]
                self.c32[at] = <float> self.c64[at]
                at += 1
        return 0

    def sums_of_squares(self, bint each, int threads=1, double scale=1):
        self.enter_bound()
        try:
            totals = self.block_sums(True, 1, each, threads, scale)
        finally:
            self.leave()
        return totals[:, 0] if each else totals[0]

    def squares_of_blocks(self, int threads=1, double scale=1):
        self.enter_bound()
        try:
            return self.partial_sums(True, 1, threads, scale)[:, 0]
        finally:
            self.leave()

    def sums(self, scalars, int threads=1, double scale=1):
        self.enter_bound()
        try:
            self.set_scalars(scalars)
            self.round_factors()
            return self.block_sums(False, self.most_sums, True, threads, scale)
        finally:
            self.leave()

    cdef block_sums(self, bint squares, int count, bint each, int threads, double scale):
        # Return the sums of each variable or, for squares, of all; added in the order of the blocks.
        cdef Py_ssize_t b, i = 0
        cdef int k
        partials = self.partial_sums(squares, count, threads, scale)
        totals = np.zeros((self.n if each else 1, count))
        cdef const double* partial = <const double*> cnp.PyArray_DATA(partials)
        cdef double* total = <double*> cnp.PyArray_DATA(totals)
        with nogil:
            for b in range(self.blocks):
                while each and i + 1 < self.n and self.spans[i + 1].start <= b * BLOCK:
                    i += 1
                for k in range(count):
                    total[i * count + k] += partial[b * count + k]
        return totals

    cdef partial_sums(self, bint squares, int count, int threads, double scale):
        # Return the sums of each block.
        cdef Tasks tasks = cut(self.blocks, self.elements, threads)
        partials = np.zeros((self.blocks, count))
        cdef BlockSums job = BlockSums(
            self.spans, self.n, self.blocks, tasks.blocks, squares, scale,
            <double*> cnp.PyArray_DATA(partials), count)
        with nogil:
            share(sums_of_task, &job, tasks.count, tasks.workers)
        return partials

    def unit_sums(self, int k, bint weights=False, int threads=1, double scale=1):
        cdef Py_ssize_t b
        if not 0 <= k < len(self.units):
            raise IndexError(f"{self.owner}: has {_count(len(self.units), 'kind')} of matrices, not {k}")
        units = self.units[k]
        of_rows, of_columns = np.zeros(len(units.by_row)), np.zeros(len(units.by_column))
        cdef Py_ssize_t n = len(units.patches)
        cdef int workers = cut(self.blocks, self.elements, threads).workers
        cdef const Patch* patches = <const Patch*> cnp.PyArray_DATA(units.patches)
        cdef double* sums = <double*> cnp.PyArray_DATA(self.sums_of_patches[k])
        cdef PatchSums job = PatchSums(self.spans, patches, sums, k, weights, scale)
        cdef double* rows = <double*> cnp.PyArray_DATA(of_rows)
        cdef double* columns = <double*> cnp.PyArray_DATA(of_columns)
        rows = rows if units.rows else NULL
        self.enter_bound()
        try:
            self.round_factors()
            with nogil:
                share(patch_sums, &job, n, workers)
                for b in range(n):
                    add_patch(rows, columns, sums + patches[b].at, &patches[b])
        finally:
            self.leave()
        return of_rows, of_columns

    def run(self, scalars, int threads=1, list count=None, list commits=None, bint guard=False, agree=None):
        self.enter_bound()
        try:
            self.set_scalars(scalars)
            self.round_factors()
            if commits is not None:
                for kept, value in commits:
                    buffers.check_update(kept, value, f"{self.owner}: state")
            if guard and self.saved is None:
                self.saved = allocate_copies(self.spans, self.n, self.owner)
            return self.update(threads, count, commits, guard, agree)
        finally:
            self.leave()

    cdef list update(self, int threads, list count, list commits, bint guard, agree):
        cdef bint good = True
        cdef list found = []
        cdef Py_ssize_t i
        cdef Tasks tasks = cut(self.blocks, self.elements, threads)
        cdef Run job = Run(self.spans, self.n, tasks.blocks * BLOCK, self.zero)
        try:
            with nogil:
                if self.stored != NULL:
                    draw_all(self.spans, self.n)
                if guard:
                    good = run_guarded(self.spans, self.n, &tasks, self.zero)
                elif tasks.workers > 1:
                    share(run_shared_task, &job, tasks.count, tasks.workers)
                else:
                    for i in range(self.n):
                        run_span(&self.spans[i], 0, self.spans[i].length, self.zero)
            if not good:
                found = [(i, self.spans[i].found & BAD_GRADIENT != 0)
                         for i in range(self.n) if self.spans[i].found]
            if guard and agree is not None:
                found = agreed(self.spans, self.n, found, agree)
            if found:
                return found
            if commits is not None:
                for kept, value in commits:
                    cnp.PyArray_CopyInto(kept, value)
            if count is not None:
                count[0] += 1  # here no signal can be handled between the update and its count
            return []
        finally:
            self.bound = False
            self.held = None

    cdef int enter(self) except -1:
        # Begin to use the spans: alone until `leave`, also when foreign code runs meanwhile.
        if exchange(&self.running, 1):
            raise RuntimeError(f"{self.owner}: is in use, by another thread or by a step that this is part of")
        return 0

    cdef int enter_bound(self) except -1:
        self.enter()
        if not self.bound:
            self.leave()
            raise RuntimeError(f"{self.owner}: bind gradients first")
        return 0

    cdef void leave(self) noexcept:
        store_ordered(&self.running, 0)
