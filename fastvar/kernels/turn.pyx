"""One thread at a time in a step, also when a signal such as Ctrl-C comes."""


cdef class Turn:
    """A context manager that refuses a second entry instead of waiting for the first to leave.

    Compiled, because Python would look at signals between taking the turn and entering the block, and an
    exception raised there (KeyboardInterrupt) would keep the turn for ever.
    """

    cdef bint taken
    cdef str owner

    def __init__(self, str owner not None):
        self.owner = owner

    def __enter__(self):
        if self.taken:
            raise RuntimeError(f"{self.owner}: another thread is in a step of this optimizer; give each its own")
        self.taken = True

    def __exit__(self, kind, error, trace):
        self.taken = False
