"""The crew under the thread sanitizer: no races; and it finds those of two mutants."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MORE = '["avx2", "avx512"] * ('  # of setup.py
WORK = """
import os, sys, threading
import numpy as np
import fastvar as fv
from fastvar import kernels
from fastvar.kernels import crew
assert crew.__file__.startswith(os.environ["BUILD"]), crew.__file__

fv.set_num_threads(4)
def train(k):
    rng = np.random.default_rng(k)
    w = [fv.Variable(rng.standard_normal(n).astype("f4")) for n in (100_003, 40_000)]
    optimizer = fv.optimizers.Lamb(global_clipnorm=1.0, nonfinite="skip")
    for _ in range(8):
        optimizer.apply([rng.standard_normal(v.size).astype("f4") for v in w], w)
    kernels.copy([np.empty(300_000)], [np.ones(300_000)], 4)
    w, g = fv.Variable(np.zeros(40_000, "f4")), np.ones(40_000, "f4")
    optimizer = fv.optimizers.SGD()
    for _ in range(300):  # in quick succession: helpers spin, and are not woken by a lock, which has an order, too
        optimizer.apply([g], [w])

callers = [threading.Thread(target=train, args=(k,)) for k in range(3)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
print("hired", crew.helpers_hired())
"""


def library() -> str | None:
    """Return the thread sanitizer's library, or None if the compiler has none."""
    if shutil.which("gcc") is None or not sys.platform.startswith("linux"):
        return None
    found = subprocess.run(["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    return found.stdout.strip() if "/" in found.stdout else None


needs_sanitizer = pytest.mark.skipif(library() is None, reason="no thread sanitizer")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources, without instruction sets that are not needed here."""
    folder = tmp_path_factory.mktemp("races")
    shutil.copytree(ROOT / "fastvar", folder / "fastvar", ignore=shutil.ignore_patterns("*.so", "*.c"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    setup = (ROOT / "setup.py").read_text()
    assert MORE in setup
    (folder / "setup.py").write_text(setup.replace(MORE, "[] * ("))
    return folder


def build(folder: Path, weak: int) -> None:
    """Build for the sanitizer, with a value of FASTVAR_WEAK (crew.h): everything at first, then the crew alone."""
    text = f"#define FASTVAR_WEAK {weak}\n" + (ROOT / "fastvar" / "kernels" / "crew.h").read_text()
    for header in folder.rglob("crew.h"):  # Cython copies it beside what it makes
        made = header.stat()
        header.write_text(text)
        os.utime(header, ns=(made.st_atime_ns, made.st_mtime_ns))  # as if it had not changed, for the others
    (folder / "fastvar" / "kernels" / "crew.pyx").touch()
    env = {**os.environ, "FASTVAR_SANITIZE": "thread"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)


def races(folder: Path) -> str:
    """Return what the sanitizer says of steps of three threads."""
    env = {**os.environ, "LD_PRELOAD": str(library()), "PYTHONPATH": str(folder), "BUILD": str(folder)}
    env |= {"TSAN_OPTIONS": "halt_on_error=1", "OPENBLAS_NUM_THREADS": "1", "FASTVAR_ISA": "baseline"}
    command = [sys.executable, "-c", WORK]
    done = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("hired 3") or "data race" in done.stderr, done.stderr
    return done.stderr


@needs_sanitizer
@pytest.mark.parametrize("weak", [0, 1, 2], ids=["as it is", "taking a task", "finishing a task"])
def test_the_sanitizer_finds_the_races_of_mutants_alone(weak: int, source: Path) -> None:
    build(source, weak)
    for _ in range(5 if weak else 1):  # how threads meet is chance
        found = races(source)
        if "data race" in found:
            break
    assert ("data race" in found) == bool(weak), found[:5000]
