# cython: freethreading_compatible = True
"""Threads that share the tasks of a job, and never make the caller wait for one that is not running.

A job is a function, a context and a number of tasks. The caller publishes it, wakes a helper, and takes tasks.
So do helpers as soon as they run. At the end the caller waits only for tasks that a helper has taken and not
finished.

The ticket is one word: the number of the job, how many threads may work on it, and how many tasks are left.
Whoever decreases it by compare-and-swap has taken a task, and may read the fields of the job until the task is
finished:

- No field is stale. The caller writes the fields before the ticket. Taking a task acquires them. The caller
  writes new ones only when `unfinished` is 0, and whoever has a task has not yet subtracted it. A late helper
  finds no tasks left, or the number of another job, and takes nothing.
- No wake is lost. A sleeper sets `asleep` and then reads the ticket. A waker publishes the ticket and then
  takes `asleep` away. All four are sequentially consistent, so one of them sees the other. Only who takes
  `asleep` away releases the lock, once, and the sleeper acquires it once.
- Exactly one end is signalled. `unfinished` begins with one more than the tasks, which is the caller's. So it
  reaches 0 once, by the caller or by the last helper.

Nothing here is ever freed, and helpers never touch Python. So they may outlive the interpreter.
"""

cdef extern from "pythread.h":
    ctypedef void* PyThread_type_lock
    enum: WAIT_LOCK
    unsigned long PYTHREAD_INVALID_THREAD_ID
    PyThread_type_lock PyThread_allocate_lock() nogil
    int PyThread_acquire_lock(PyThread_type_lock, int) nogil
    void PyThread_release_lock(PyThread_type_lock) nogil
    unsigned long PyThread_start_new_thread(void (*)(void*) noexcept nogil, void*) nogil

cdef extern from "crew.h":
    uint64_t load_acquire(uint64_t*) nogil
    uint64_t subtract(uint64_t*, uint64_t) nogil
    uint64_t rounding() nogil
    void set_rounding(uint64_t) nogil
    void relax() nogil
    int processor() nogil
    uint64_t nanoseconds() nogil
    void become_helper() nogil
    void after_fork(void (*)() noexcept nogil) nogil

cdef enum:
    TASK_BITS = 24
    WORKER_BITS = 10
    MOST_TASKS = (1 << TASK_BITS) - 1
    MOST_WORKERS = (1 << WORKER_BITS) - 1
    SPIN = 100_000  # nanoseconds that a thread spins before it sleeps: about what waking it would cost
    LOOKS = 64  # at the ticket, between two looks at the clock

cdef struct Sleeper:
    PyThread_type_lock lock  # held by its owner; a waker releases it
    uint64_t asleep
    char[48] apart  # the next one is on another cache line

cdef struct Crew:
    uint64_t ticket
    char[56] apart
    uint64_t unfinished
    char[56] also_apart
    Job job  # of the ticket, as are the next three
    void* context
    Py_ssize_t tasks
    uint64_t rounding
    uint64_t busy  # whether a caller uses the crew
    uint64_t short_gap  # whether the last job followed the one before at once
    uint64_t caller_at  # the processor of the caller
    uint64_t ended  # when the last job ended
    uint64_t hired  # helpers
    bint refused  # whether the system has refused a thread
    Sleeper caller
    Sleeper[MOST_THREADS - 1] helpers

cdef Crew crew
most_threads, parallel = MOST_THREADS, PARALLEL  # for Python


cdef inline uint64_t tasks_left(uint64_t word) noexcept nogil:
    return word & MOST_TASKS


cdef inline bint open_to(uint64_t word, Py_ssize_t helper) noexcept nogil:
    # Whether there is a task for a helper. The caller is the first of the workers.
    return tasks_left(word) > 0 and helper + 1 < <Py_ssize_t> (word >> TASK_BITS & MOST_WORKERS)


cdef Py_ssize_t work(Py_ssize_t helper) noexcept nogil:
    # Take tasks and run them until none are left. Return how many. The caller is helper -1.
    cdef uint64_t word = load_relaxed(&crew.ticket)
    cdef Py_ssize_t done = 0
    while open_to(word, helper):
        if not replace(&crew.ticket, &word, word - 1):
            continue
        if done == 0 and helper >= 0:
            set_rounding(crew.rounding)
            if open_to(word - 1, helper + 1):  # who has work wakes the next one
                wake(&crew.helpers[helper + 1])
        crew.job(crew.context, crew.tasks - <Py_ssize_t> tasks_left(word))
        done += 1
        word = load_relaxed(&crew.ticket)
    return done


cdef void wake(Sleeper* who) noexcept nogil:
    if load_ordered(&who.asleep) and exchange(&who.asleep, 0):
        PyThread_release_lock(who.lock)


cdef void help(void* number) noexcept nogil:
    # The life of a helper.
    cdef Py_ssize_t me = <Py_ssize_t> number, done
    become_helper()
    while True:
        done = work(me)
        if done > 0 and subtract(&crew.unfinished, done) == 0:
            wake(&crew.caller)
        if not (load_relaxed(&crew.short_gap) and spins(me)):
            sleep(me)


cdef bint spins(Py_ssize_t me) noexcept nogil:
    # Wait for a job without sleeping. Return whether there is one.
    cdef uint64_t until = nanoseconds() + SPIN
    cdef int _
    while processor() != <int> load_relaxed(&crew.caller_at):  # which it would hold up
        for _ in range(LOOKS):
            if open_to(load_relaxed(&crew.ticket), me):
                return True
            relax()
        if nanoseconds() > until:
            return False
    return False


cdef void sleep(Py_ssize_t me) noexcept nogil:
    store_ordered(&crew.helpers[me].asleep, 1)
    if open_to(load_ordered(&crew.ticket), me) and exchange(&crew.helpers[me].asleep, 0):
        return
    PyThread_acquire_lock(crew.helpers[me].lock, WAIT_LOCK)


cdef void wait_for_helpers() noexcept nogil:
    cdef uint64_t until = nanoseconds() + SPIN
    while load_acquire(&crew.unfinished) != 0:
        relax()
        if nanoseconds() < until:
            continue
        store_ordered(&crew.caller.asleep, 1)
        if load_ordered(&crew.unfinished) == 0 and exchange(&crew.caller.asleep, 0):
            return
        PyThread_acquire_lock(crew.caller.lock, WAIT_LOCK)


cdef void share(Job job, void* context, Py_ssize_t tasks, int workers) noexcept nogil:
    # Run tasks 0 to `tasks` of a job on at most so many threads, in any order.
    cdef Py_ssize_t i
    workers = <int> min(<Py_ssize_t> min(workers, <int> MOST_THREADS), tasks)
    if workers > 1 and tasks <= MOST_TASKS and exchange(&crew.busy, 1) == 0:
        hire(<Py_ssize_t> workers - 1)
        if crew.hired > 0:
            lead(job, context, tasks, min(workers, <int> crew.hired + 1))
            store_ordered(&crew.busy, 0)
            return
        store_ordered(&crew.busy, 0)
    for i in range(tasks):  # alone: another caller has the crew, or there is none
        job(context, i)


cdef void lead(Job job, void* context, Py_ssize_t tasks, int workers) noexcept nogil:
    # Be the caller of a job.
    cdef uint64_t number = (load_relaxed(&crew.ticket) >> (TASK_BITS + WORKER_BITS)) + 1
    cdef Py_ssize_t done
    crew.job, crew.context, crew.tasks, crew.rounding = job, context, tasks, rounding()
    store_relaxed(&crew.unfinished, tasks + 1)
    store_relaxed(&crew.caller_at, <uint64_t> processor())
    store_relaxed(&crew.short_gap, nanoseconds() - crew.ended < SPIN)
    store_ordered(&crew.ticket, (number << WORKER_BITS | <uint64_t> workers) << TASK_BITS | <uint64_t> tasks)
    wake(&crew.helpers[0])
    done = work(-1)
    if subtract(&crew.unfinished, done + 1) != 0:
        wait_for_helpers()
    crew.ended = nanoseconds()


cdef void hire(Py_ssize_t wanted) noexcept nogil:
    # Start helpers. If the system refuses one, go on with fewer.
    if crew.caller.lock == NULL:
        crew.caller.lock = held_lock()
        crew.caller.asleep = 0
    while <Py_ssize_t> crew.hired < wanted and not crew.refused:
        crew.helpers[crew.hired].lock, crew.helpers[crew.hired].asleep = held_lock(), 0
        crew.refused = (
            crew.caller.lock == NULL or crew.helpers[crew.hired].lock == NULL
            or PyThread_start_new_thread(help, <void*> crew.hired) == PYTHREAD_INVALID_THREAD_ID
        )
        if not crew.refused:
            store_relaxed(&crew.hired, crew.hired + 1)  # others may read it


cdef PyThread_type_lock held_lock() noexcept nogil:
    cdef PyThread_type_lock lock = PyThread_allocate_lock()
    if lock != NULL:
        PyThread_acquire_lock(lock, WAIT_LOCK)
    return lock


cdef void forget() noexcept nogil:
    # In a forked child there are no helpers, and no other caller. It hires new ones.
    crew.ticket = crew.unfinished = crew.busy = crew.hired = 0
    crew.refused = False
    crew.caller.lock = NULL


after_fork(forget)


def helpers_hired():
    """Return how many helpers there are."""
    return load_relaxed(&crew.hired)
