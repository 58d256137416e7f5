"""Interrupt (Ctrl-C) at every instant at which Python handles signals, or at random instants by a timer."""

import _thread
import dis
import functools
import gc
import os
import random
import signal
import sys
import time

import pytest

USUAL = 12
MOST = int(os.environ.get("FASTVAR_INTERRUPTS", USUAL))  # the instants to try in each scene

QUIET = (
    "BUILD",
    "CACHE",
    "COPY",
    "KW_NAMES",
    "LOAD_C",
    "LOAD_F",
    "MAKE",
    "NOP",
    "POP_TOP",
    "PRECALL",
    "PUSH",
    "SWAP",
)
LOUD = frozenset(op for name, op in dis.opmap.items() if not name.startswith((*QUIET, "STORE_FAST")))


@functools.cache
def instructions(code):
    """Return the bytecode of a code object, cached: the attribute makes a copy each time."""
    return code.co_code


def heard(frame):
    """Return whether an interrupt here is not lost, as it is in what Python calls itself, such as finalizers."""
    lost = ("__del__", "_remove", "unraisable_hook")
    return frame is None or (frame.f_code.co_name not in lost and heard(frame.f_back))


class Interrupts:
    """Run a function and interrupt it at an instant, and optionally again `later` instants after that.

    An instant is an instruction at which Python may handle signals. Instants are counted until the signal is sent,
    and again from where it was handled: the counting function is Python code, too, and could handle it itself.
    """

    def __init__(self, instant=0, later=0):
        self.waiting = [instant, later]
        self.seen = self.sent = 0

    def trace(self, frame, event, arg):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and instructions(frame.f_code)[frame.f_lasti] in LOUD:
            self.seen += 1
            if self.seen == self.waiting[0] and heard(frame):
                sys.settrace(None)
                self.sent += 1
                # In a list, Python handles no signals here, but in the traced function.
                [*map(_thread.interrupt_main, (signal.SIGINT,))]
        return self.trace

    def taken(self, signum, frame):
        self.waiting, self.seen = self.waiting[1:] or [0], 0
        if frame.f_code is not Interrupts.run.__code__:
            sys.settrace(self.trace)
        while frame.f_code is not Interrupts.run.__code__:
            frame.f_trace = self.trace
            frame = frame.f_back
        raise KeyboardInterrupt

    def run(self, function):
        """Call the function. Return whether KeyboardInterrupt, and nothing else, ended it."""
        handler = signal.signal(signal.SIGINT, self.taken)
        gc.disable()  # Python loses exceptions in callbacks of garbage collection
        try:
            try:
                sys.settrace(self.trace)
                function()
            finally:
                sys.settrace(None)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
            signal.signal(signal.SIGINT, handler)
            gc.enable()
        return False


def check_at_instants(scene):
    """Interrupt a scene at each of its instants, or at some of them. Check that it happened wholly or not at all.

    `scene()` returns a function to call, and a function that returns everything that it changes.
    """
    run, contents = scene()
    before = contents()
    rehearsal = Interrupts()
    assert not rehearsal.run(run)
    after, instants = contents(), range(1, rehearsal.seen + 1)
    for instant in instants if len(instants) <= MOST else sorted(random.sample(instants, MOST)):
        for later in (0, random.randint(1, 50)):
            run, contents = scene()
            assert contents() == before
            interrupts = Interrupts(instant, later)
            assert interrupts.run(run) == (interrupts.sent > 0), (
                f"a KeyboardInterrupt was lost at {instant}, {later}"
            )
            state = contents()
            assert state in (before, after), f"left half-done at {instant}, {later}"
            if state == before:
                run()
                assert contents() == after, f"not done as before after {instant}, {later}"


def interrupted(signum, frame):
    raise KeyboardInterrupt


timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")


def check_at_random_instants(step, check, seconds: float, latest: float = 1e-3) -> None:
    """Interrupt repeated calls of `step` at random instants, for `seconds` or more (as `MOST` says).

    Each interrupt comes at most `latest` seconds after the call begins; then `check` is called. Garbage is not
    collected meanwhile: Python loses exceptions in its callbacks (hypothesis has one).
    """
    before = signal.signal(signal.SIGALRM, interrupted)
    interrupts, end = 0, time.monotonic() + seconds * min(max(MOST / USUAL, 1), 30)
    gc.disable()
    try:
        while time.monotonic() < end or interrupts == 0:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, latest), 1.0)
                while True:
                    step()
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
            interrupts += 1
            check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
