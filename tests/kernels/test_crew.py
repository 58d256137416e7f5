"""The crew where it is hard: many threads, one processor, forks, signals, modes, the end of the program."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from fastvar.kernels import crew
from fastvar.kernels.turn import Turn
from tests.support.processes import output

START = """
import os, signal, sys, threading, time
import numpy as np
import fastvar as fv
from fastvar.kernels import crew
from fastvar.kernels.turn import Turn

def trained(size=200_003, steps=3):
    w = fv.Variable(np.linspace(-1, 1, size, dtype="f4"))
    optimizer = fv.optimizers.Adam(0.1, global_clipnorm=1.0)
    for _ in range(steps):
        optimizer.apply([np.linspace(1, -2, size, dtype="f4")], [w])
    return w.numpy().tobytes()
"""
KERNELS = Path(__file__).parent.parent.parent / "fastvar" / "kernels"
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or asks for processors")


def test_kernels_need_no_openmp() -> None:
    folder = Path(crew.__file__).parent
    compiled = [path for suffix in EXTENSION_SUFFIXES for path in folder.glob(f"*{suffix}")]
    assert "crew" in [path.name.split(".")[0] for path in compiled]
    for path in compiled:
        content = path.read_bytes()
        assert not any(name in content for name in (b"GOMP_", b"__kmpc_", b"libgomp", b"libomp")), path


@pytest.mark.skipif(not FREE, reason="this Python always has the GIL")
@pytest.mark.skipif("PYTHON_GIL" in os.environ, reason="the environment says whether there is a GIL")
def test_an_import_leaves_the_gil_off() -> None:
    code = "import sys, fastvar, fastvar.torch; print(sys._is_gil_enabled())"
    assert output(code) == "False"


@pytest.mark.skipif(not (KERNELS / "crew.pyx").exists(), reason="needs the sources")
def test_every_kernel_says_whether_it_needs_the_gil() -> None:
    silent = {p.name for p in KERNELS.glob("*.pyx") if "freethreading_compatible = True" not in p.read_text()}
    assert silent == {"tensors.pyx"}  # which has not been tested with PyTorch on such a Python


def test_a_turn_lets_one_thread_in() -> None:
    """With the GIL this shows little; without it, two were inside when the turn was checked and then set."""
    turn, start, inside, met = Turn("test"), threading.Barrier(4), [], []

    def enter() -> None:
        start.wait()
        for _ in range(20_000):
            with contextlib.suppress(RuntimeError), turn:
                inside.append(0)
                met.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(met) == {1}


def test_many_more_threads_than_processors_change_no_bit() -> None:
    code = """
results = []
for count in (1, 2, 3, 4, 8, 16, 64):
    fv.set_num_threads(count)
    copy = np.empty(3_000_001)
    fv.kernels.copy([copy], [np.arange(3_000_001.0)], count)
    results.append((trained(3_000_001), trained(1_000_000, 5), copy.tobytes()))
print(len(set(results)), crew.helpers_hired())
"""
    assert output(START + code) == "1 63"


@linux
def test_steps_on_one_processor() -> None:
    """Helpers that share the caller's processor are not waited for."""
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import fastvar
print(fastvar.get_num_threads())
"""
    results = """
alone = trained()
fv.set_num_threads(8)
print(all(trained() == alone for _ in range(20)))
"""
    assert output(code + START + results) == "1\nTrue"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_may_choose_another_number_of_threads() -> None:
    code = """
fv.set_num_threads(2)
before = trained()
pid = os.fork()
if not pid:
    fv.set_num_threads(4)
    os._exit(10 * (trained() == before) + crew.helpers_hired())
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(code, fv.get_num_threads(), crew.helpers_hired(), trained() == before)
"""
    assert output(START + code) == "13 2 1 True"


@linux
def test_helpers_get_no_signals() -> None:
    code = """
fv.set_num_threads(4)
trained()
kept = []
while len(kept) < 3:  # until they have begun
    texts = [open(f"/proc/self/task/{task}/status").read() for task in os.listdir("/proc/self/task")]
    kept = [text for text in texts if int(text.split("SigBlk:")[1].split()[0], 16) >> signal.SIGINT - 1 & 1]
print(len(kept))
"""
    assert output(START + code, OPENBLAS_NUM_THREADS="1") == "3"


@linux
def test_a_stopped_program_goes_on() -> None:
    code = """
fv.set_num_threads(4)
first = trained()
print("begun", flush=True)
end = time.monotonic() + 1
while time.monotonic() < end:
    assert trained() == first
print("the same")
"""
    command = [sys.executable, "-c", START + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        for _ in range(20):
            program.send_signal(signal.SIGSTOP)
            program.send_signal(signal.SIGCONT)
        assert program.communicate(timeout=60)[0] == "the same\n"


@pytest.mark.skipif(FREE, reason="Python 3.13t sometimes hangs at its end: with NumPy alone in such threads, too")
def test_the_program_ends_during_steps_of_other_threads() -> None:
    code = """
fv.set_num_threads(4)
def forever():
    while True:
        trained()
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
print("ends")
"""
    assert output(START + code) == "ends"


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="MXCSR is set by its place")
def test_helpers_flush_denormals_like_the_thread_that_steps() -> None:
    code = """
import ctypes
fv.set_num_threads(2)
w, g = fv.Variable(np.zeros(300_000, "f4")), np.full(300_000, 1e-40, "f4")
optimizer = fv.optimizers.SGD(1.0)
optimizer.build([w])
libm, modes = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
libm.fegetenv(modes)
for flush in (0x8040, 0):  # FTZ and DAZ, then neither
    for _ in range(20):
        w.assign(np.zeros(300_000, "f4"))
        modes[7] = modes[7] & ~0x8040 | flush
        libm.fesetenv(modes)
        optimizer.apply([g])
        modes[7] &= ~0x8040
        libm.fesetenv(modes)
        assert len(set(w.numpy().tolist())) == 1
    print(w.numpy()[0] == 0, end=" ")
"""
    assert output(START + code) == "True False"


def test_steps_while_threads_take_turns_all_the_time() -> None:
    code = """
fv.set_num_threads(3)
expected, right = trained(), []
sys.setswitchinterval(1e-6)
def train():
    for _ in range(20):
        right.append(trained() == expected)
threads = [threading.Thread(target=train) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(right), all(right))
"""
    assert output(START + code) == "80 True"
