"""Test a wheel: `python tools/wheel.py dist/NAME.whl [TEST ...]`.

It is installed in a new virtual environment, and programs find no compiler. The tests run in a folder without
the sources, so they use the installed package. By default they are a sample of a few minutes: the bits of every
kernel, accumulation, checkpoints and the command line. Tests that need a framework are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 2_000_000  # bytes of a wheel
TOOLS = (
    "matplotlib>=3.9",
    "pytest>=8",
    "hypothesis>=6.100",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "rich>=13",
    "safetensors>=0.8",
    "scipy>=1.13",
    "tqdm>=4.66",
)
# What tests read beside the package.
BESIDE = ("tests", "docs", "bench", "examples", "tools", "README.md", "CONTRIBUTING.md", "pyproject.toml")
SAMPLE = (
    *(f"tests/kernels/test_{name}.py" for name in ("bits", "plan", "sums")),
    "tests/optimizer/test_accumulation.py",
    *(f"tests/checkpoint/test_{name}.py" for name in ("checkpoint", "fixtures", "manager")),
    "tests/cli",
)


def check_contents(wheel: Path) -> None:
    """Exit if a wheel is too large, or lacks what it should have."""
    names = zipfile.ZipFile(wheel).namelist()
    modules = {Path(name).name.partition(".")[0] for name in names if name.endswith((".so", ".pyd"))}
    wanted = {"cpu", "turn", "atomic", "crew", "tensors", "baseline"}
    wanted |= {"avx2", "avx512"} if wheel.stem.endswith(("x86_64", "amd64")) else set()
    if modules != wanted:
        sys.exit(f"{wheel}: has the modules {sorted(modules)}, should have {sorted(wanted)}")
    if (size := wheel.stat().st_size) > MOST:
        sys.exit(f"{wheel}: {size:,} bytes, may have {MOST:,}")
    print(f"{wheel}: {size:,} bytes, {len(modules)} compiled modules", flush=True)


def programs_but_compilers(folder: Path) -> None:
    """Fill a folder with links to the programs on the path, without compilers."""
    folder.mkdir()
    compiler = re.compile(r"(.*-)?(cc|c[89]9.*|[gc]\+\+|cpp|gcc|clang|tcc|as|ld)([-.+].*)?")
    for place in os.environ["PATH"].split(os.pathsep):
        for program in sorted(Path(place).glob("*")):
            if not compiler.fullmatch(program.name) and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)


def main(wheel: Path, tests: list[str]) -> int:
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        programs = f"{folder}/venv/bin"
        env = {name: value for name, value in os.environ.items() if not name.startswith(("FASTVAR_", "PYTHON"))}
        programs_but_compilers(Path(folder, "bin"))
        env["PATH"] = f"{programs}:{folder}/bin"
        if any(shutil.which(name, path=env["PATH"]) for name in ("cc", "gcc", "g++", "clang")):
            sys.exit("the environment has a compiler")
        install = [f"{programs}/python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "--only-binary=:all:", str(wheel), *TOOLS], check=True, env=env)
        for name in BESIDE:
            copy = shutil.copy if (ROOT / name).is_file() else shutil.copytree
            copy(ROOT / name, f"{folder}/{name}")
        where = "import fastvar, fastvar.kernels as k; print(fastvar.__file__, k.isa)"
        subprocess.run([f"{programs}/python", "-c", where], check=True, env=env, cwd=folder)
        command = [f"{programs}/python", "-m", "pytest", "-q", "-rfE", "-n", "2", "--timeout", "600"]
        command += ["-p", "tests.support.without_frameworks", *(tests or SAMPLE)]
        return subprocess.run(command, check=False, env=env, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
