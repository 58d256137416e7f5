"""Building: with other switches everything is built anew, and errors say what to install."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROBE = """
def item(const unsigned char[:] x, Py_ssize_t k):
    return x[k]
"""
TRY = """
from fastvar.kernels.probe import item
try:
    print(item(b"abc", 3))  # the zero byte behind it
except IndexError:
    print("IndexError")
"""

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return sources whose only kernel is one that reads past the end of an array."""
    text = (ROOT / "setup.py").read_text()
    first = text.index("MODULES = [")
    last = text.index("\n)\n", first) + len("\n)\n")
    (tmp_path / "setup.py").write_text(f'{text[:first]}MODULES = ["probe"]\n{text[last:]}')
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    kernels = tmp_path / "fastvar" / "kernels"
    kernels.mkdir(parents=True)
    for name in ("crew.h", "prefetch.h"):
        shutil.copy(ROOT / "fastvar" / "kernels" / name, kernels)
    (kernels / "probe.pyx").write_text(PROBE)
    return tmp_path


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of source files from git")
def test_the_sdist_has_every_source_and_no_generated_c(tmp_path: Path) -> None:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    sources = {name for name in listed if name and (ROOT / name).is_file()}
    for name in sources:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / "fastvar" / "kernels" / "baseline.c").touch()
    (tmp_path / "tests" / "__pycache__").mkdir()
    (tmp_path / "tests" / "__pycache__" / "old.pyc").touch()
    done = run(tmp_path, "setup.py", "-q", "sdist")
    assert done.returncode == 0, done.stderr
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in packed if name.startswith("fastvar.egg-info/")}
    assert packed - made == sources


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, without switches but those given."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FASTVAR_") and name != "CC"}
    env |= {"PYTHONPATH": str(folder), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)


def build(folder: Path, **switches: str) -> tuple[str, int]:
    """Build, and return what a read past the end gives, and when the module was written."""
    done = run(folder, "setup.py", "-q", "build_ext", "--inplace", **switches)
    assert done.returncode == 0, done.stderr
    (module,) = (folder / "fastvar" / "kernels").glob("probe*.so")
    return run(folder, "-c", TRY).stdout.strip(), module.stat().st_mtime_ns


def test_a_build_with_other_switches_uses_nothing_of_the_last(folder: Path) -> None:
    first, made = build(folder)
    assert first == "0"
    assert build(folder) == ("0", made)  # nothing to do
    assert build(folder, FASTVAR_DEBUG="1")[0] == "IndexError"
    assert build(folder)[0] == "0"
    assert build(folder, FASTVAR_COVERAGE="1", FASTVAR_DEBUG="1")[0] == "IndexError"
    generated = folder / "fastvar" / "kernels" / "probe.c"
    assert "__Pyx_TraceLine" in generated.read_text()
    done = run(folder, "setup.py", "-q", "bdist_wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    packed = {Path(name).suffix for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    assert packed == {".pyx", ".h", ".so"}


def test_without_a_compiler_the_error_says_what_to_install(folder: Path) -> None:
    done = run(folder, "setup.py", "-q", "build_ext", "--inplace", CC="no-such-compiler")
    assert done.returncode == 1
    assert "fastvar: a C compiler is needed, and 'no-such-compiler' was not found" in done.stderr
    assert "apt-get install gcc" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_headers_of_python_the_error_says_what_to_install(folder: Path) -> None:
    code = (
        "import sys, sysconfig; paths = sysconfig.get_paths; "
        "sysconfig.get_paths = lambda *a, **k: paths(*a, **k) | {'include': '/none'}; "
        "sys.argv = ['setup.py', '-q', 'build_ext', '--inplace']; exec(open('setup.py').read())"
    )
    done = run(folder, "-c", code)
    assert done.returncode == 1
    assert "fastvar: Python.h was not found in /none" in done.stderr
    assert "apt-get install python3-dev" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_takes_the_newest_python_and_says_if_there_is_none(folder: Path) -> None:
    shutil.copy(ROOT / "Makefile", folder)
    for minor in (9, 12, 30):
        stub = folder / f"python3.{minor}"
        stub.write_text("#!/bin/sh\n")
        stub.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    run = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True, check=False)
    done = run(["make", "--dry-run", ".venv/.test"], env=os.environ | {"PATH": path})
    assert "python3.30 -m venv .venv" in done.stdout
    done = run(["make", ".venv/.test", "PYTHON="])
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed: apt-get install python3" in done.stderr
    assert not (folder / ".venv").exists()
