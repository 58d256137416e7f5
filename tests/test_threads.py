"""Threads and processes: no hang, no crash, no inconsistent state, the same bits."""

from __future__ import annotations

import os
import platform
import threading
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar import kernels
from tests.support.cases import CASES, Case, assert_same_bits
from tests.support.processes import output

LARGE = 200_003  # elements: enough for two threads
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def train(case: Case, steps: int = 5, size: int = LARGE, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    w = fv.Variable(rng.standard_normal(size).astype(np.float32))
    optimizer = case.make(use_ema=True, global_clipnorm=1.0)
    for _ in range(steps):
        optimizer.apply([rng.standard_normal(size).astype(np.float32)], [w])
    return [w.numpy(), *(v.numpy() for v in optimizer.variables)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_thread_count_changes_no_bit(case: Case) -> None:
    fv.set_num_threads(1)
    expected = train(case)
    for count in (2, 3, 7):
        fv.set_num_threads(count)
        for a, e in zip(train(case), expected, strict=True):
            assert_same_bits(a, e)


def in_threads(act: Any, count: int) -> list[BaseException | None]:
    """Call `act(k)` in `count` threads that start together. Return the exception of each, or None."""
    errors: list[BaseException | None] = [None] * count
    barrier = threading.Barrier(count)

    def work(k: int) -> None:
        barrier.wait()
        try:
            act(k)
        except Exception as error:
            errors[k] = error

    workers = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert not worker.is_alive(), "hangs"
    return errors


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_many_threads_step_optimizers_of_their_own(case: Case) -> None:
    fv.set_num_threads(2)
    sizes = [LARGE, 5, 40_000, 1000, LARGE, 64]
    expected = [train(case, 10, size, k) for k, size in enumerate(sizes)]
    results: list[Any] = [None] * len(sizes)

    def act(k: int) -> None:
        results[k] = train(case, 10, sizes[k], k)

    assert in_threads(act, len(sizes)) == [None] * len(sizes)
    for got, wanted in zip(results, expected, strict=True):
        for a, e in zip(got, wanted, strict=True):
            assert_same_bits(a, e)


def test_threads_that_step_the_same_optimizer_get_a_clear_error_or_their_turn() -> None:
    size, steps, count = LARGE, 40, 4
    w = fv.Variable(np.zeros(size))
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.build([w])
    done = [0] * count

    def act(k: int) -> None:
        for _ in range(steps):
            try:
                optimizer.apply([np.full(size, -1.0)])
                done[k] += 1
            except RuntimeError as error:
                assert "another thread is in a step of this optimizer" in str(error)  # noqa: PT017

    assert in_threads(act, count) == [None] * count
    assert 0 < sum(done) == optimizer.iterations
    assert (w.value == sum(done)).all()  # whole steps, and all of them


def test_step_within_a_step_is_refused_and_undone() -> None:
    class Nested(fv.Optimizer):
        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            variable -= gradient
            self.apply([gradient])

    w = fv.Variable([1.0, 2.0])
    optimizer = Nested()
    with pytest.raises(RuntimeError, match="is in a step of this optimizer"):
        optimizer.apply([[1.0, 1.0]], [w])
    assert w.value.tolist() == [1, 2]
    assert optimizer.iterations == 0


def test_compiled_plan_is_refused_to_a_second_thread() -> None:
    """Without the optimizer's lock, a step raises an error or happens wholly."""
    w, g = np.zeros(LARGE), np.full(LARGE, -1.0)
    module = kernels.load(kernels.supported()[-1])[1]
    plan = module.Plan("test", module.RULES["gradient_descent"], ["w"], [w], [()], [0])
    done = [0] * 4

    def act(k: int) -> None:
        for _ in range(30):
            try:
                plan.bind([g])
                plan.run([(1.0,)], 2)
                done[k] += 1
            except RuntimeError:
                pass

    assert in_threads(act, 4) == [None] * 4
    assert sum(done) > 0
    assert (w == sum(done)).all()


# Processes.

FORK = """
import os, sys, signal
import numpy as np
import fastvar as fv
from fastvar.kernels import crew

fv.set_num_threads(2)
w = fv.Variable(np.zeros(200_003, np.float32))
optimizer = fv.optimizers.Adam(0.1, global_clipnorm=1.0)
g = np.ones(200_003, np.float32)
optimizer.apply([g], [w])  # starts helpers
"""
CHILD = """
def child():
    for _ in range(3):
        optimizer.apply([g])
    return int(optimizer.iterations == 4 and w[0] == w[-1] and crew.helpers_hired() == 1)
"""


@needs_fork
def test_fork_after_threads_works_and_does_not_hang() -> None:
    code = """
for _ in range(3):
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        os._exit(10 + child())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11
    assert optimizer.iterations == 1 and fv.get_num_threads() == 2
optimizer.apply([g])
print(w[0] == w[-1])
"""
    assert output(FORK + CHILD + code) == "True"


@needs_fork
def test_multiprocessing_by_fork_gives_the_same_bits() -> None:
    code = """
import multiprocessing

def work(k):
    child()
    return w.numpy().tobytes()

with multiprocessing.get_context("fork").Pool(2) as pool:
    results = pool.map_async(work, range(2), chunksize=1).get(timeout=60)
for _ in range(3):
    optimizer.apply([g])
print({w.numpy().tobytes()} == set(results[:1]))
"""
    assert output(FORK + CHILD + code) == "True"


@needs_fork
def test_fork_of_a_fork_and_from_a_thread() -> None:
    code = """
import threading

def forks():
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        fine = child()
        again = os.fork()
        if not again:
            optimizer.apply([g])
            os._exit(3)
        fine += os.waitstatus_to_exitcode(os.waitpid(again, 0)[1])
        os._exit(fine)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

codes = []
forks()
thread = threading.Thread(target=forks)
thread.start()
thread.join(90)
print(codes)
"""
    assert output(FORK + CHILD + code) == "[4, 4]"


@needs_fork
def test_forks_during_steps_of_another_thread() -> None:
    code = """
import threading

other = fv.Variable(np.zeros(500_000, np.float32))
stopping = False

def steps():
    of_other = fv.optimizers.SGD(0.1)
    while not stopping:
        of_other.apply([np.ones(500_000, np.float32)], [other])

thread = threading.Thread(target=steps)
thread.start()
codes = set()
for _ in range(100):
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        os._exit(10 + child())
    codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stopping = True
thread.join()
print(codes)
"""
    assert output(FORK + CHILD + code) == "{11}"


def test_more_threads_than_processors_are_survived() -> None:
    code = FORK + "fv.set_num_threads(threads.MOST); optimizer.apply([g]); print(optimizer.iterations)"
    assert output("from fastvar import threads\n" + code) == "2"


def test_steps_go_on_with_fewer_threads_than_they_ask_for() -> None:
    code = """
import resource
import numpy as np, fastvar as fv
from fastvar.kernels import crew
w, g = fv.Variable(np.zeros(300_000)), np.ones(300_000)
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))  # less than the stacks of so many threads
fv.set_num_threads(256)
optimizer = fv.optimizers.SGD(1.0)
for _ in range(3):
    optimizer.apply([g], [w])
print(bool((w.value == -3).all()), crew.helpers_hired() < 255)
"""
    pytest.importorskip("resource")
    assert output(code, OPENBLAS_NUM_THREADS="1") == "True True"


def test_helpers_round_like_the_thread_that_steps() -> None:
    code = """
import ctypes
import numpy as np, fastvar as fv
w, g = fv.Variable(np.full(300_000, 1.0, "f4")), np.full(300_000, 1e-9, "f4")
fv.set_num_threads(2)
optimizer = fv.optimizers.SGD(1.0)
optimizer.build([w])
for mode in (0x400, 0x800, 0):  # FE_DOWNWARD, FE_UPWARD, FE_TONEAREST
    w.assign(np.full(300_000, 1.0, "f4"))
    ctypes.CDLL(None).fesetround(mode)
    optimizer.apply([g])
    ctypes.CDLL(None).fesetround(0)
    print(*{float(x) for x in w.value}, end=" ")
"""
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the modes are those of x86-64")
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    assert output(code) == f"{below} 1.0 1.0"
