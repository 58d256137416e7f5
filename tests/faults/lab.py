"""A process in which faulty.c can make system calls on files fail, and attempts in forks of it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
ACTIONS = ("watch", "fail", "kill before", "kill amid", "kill after", "short")  # faulty.c's
ALWAYS = 1 << 40
available = sys.platform == "linux" and shutil.which("gcc") is not None


@functools.cache
def library() -> str:
    """Compile faulty.c if it has changed. Return the path of the library."""
    source, target = Path(__file__).with_name("faulty.c"), ROOT / "build" / "faulty.so"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O1", "-Wall", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
        made.replace(target)
    return str(target)


def run(fault: str, format: str, amount: int = 0) -> dict[str, Any]:
    """Put a format to a fault, in a process of its own with faulty.c loaded. Return the counts."""
    environment = {
        **os.environ,
        "LD_PRELOAD": library(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "KERAS_BACKEND": "numpy",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.faults", fault, format, str(amount)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{fault}, {format}: {ended.stderr}")
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    print(f"{fault}, {format}: {figures['counts']}")
    return figures


def arm(
    folder: str,
    action: str = "watch",
    first: int = 1,
    last: int = 0,
    code: int = 0,
    room: int = -1,
    reserves: bool = True,
    log: int = -1,
) -> None:
    """From now on act on the calls on files in `folder`, see faulty.c."""
    ctypes.CDLL(None).faulty_set(
        folder.encode(),
        ACTIONS.index(action),
        ctypes.c_long(first),
        ctypes.c_long(last),
        code,
        ctypes.c_longlong(room),
        int(reserves),
        log,
    )


def disarm() -> int:
    """Stop acting on calls. Return how many there were."""
    met = ctypes.CDLL(None).faulty_calls
    met.restype = ctypes.c_long
    count = int(met())
    arm("")
    return count


class Ended(NamedTuple):
    """How a forked process ended: its signal (0: none), and what it said before."""

    signal: int
    text: str


def forked(work: Callable[[Callable[[str], None]], object], kill_after: float | None = None) -> Ended:
    """Run `work(say)` in a fork. With `kill_after`, kill it that many seconds after its first word."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.close(read)
            work(lambda text: void(os.write(write, text.encode())))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb", buffering=0) as pipe:
        said = b""
        if kill_after is not None:
            said = pipe.read(1 << 16)
            end = time.perf_counter() + kill_after
            while time.perf_counter() < end:
                pass
            os.kill(child, signal.SIGKILL)
        while more := pipe.read(1 << 20):
            said += more
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the harness itself failed: {said.decode()}")
    return Ended(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, said.decode())


def void(_: object) -> None:
    pass


def each(items: Iterable[Any], outcome: Callable[[Any], str]) -> list[str]:
    """Return the outcomes of all items, run in forks. After a crash or hang, the next fork continues."""
    rest, outcomes = list(items), list[str]()

    def work(say: Callable[[str], None]) -> None:
        for item in rest:
            signal.alarm(10)
            say(outcome(item) + "\n")

    while rest:
        ended = forked(work)
        came = ended.text.splitlines()
        if ended.signal:
            came.append("hung" if ended.signal == signal.SIGALRM else "crashed")
        outcomes += came
        rest = rest[len(came) :]
    return outcomes


@contextlib.contextmanager
def folders() -> Iterator[Path]:
    """A temporary folder, in memory if possible: there are many faults, and a disk proves no more."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # falling back to an older checkpoint warns
        yield Path(folder)
