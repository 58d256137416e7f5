"""Test the sdist with the oldest dependencies, and with the newest on every supported Python that is here.

    python tools/versions.py [COMBINATION ...]    such as python3.13-newest or python3.11-oldest; default: all

Each combination has a virtual environment and unpacked sources in build/versions. The oldest dependencies are the
lower bounds in pyproject.toml, on the oldest Python. Tests that need a framework are skipped: their releases are
pinned, and `make test` runs them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "versions"
EXTRAS = ("scipy", "plot", "cli")
TOOLS = (
    "pytest>=8",
    "hypothesis>=6.100",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "rich>=13",
    "safetensors>=0.8",
)
PLUGIN = ("-p", "tests.support.without_frameworks")


def pythons() -> list[str]:
    """Return the supported Pythons on the path, the oldest first."""
    names = filter(shutil.which, [f"python3.{minor}" for minor in range(11, 31)])
    runs = {name: subprocess.run([name, "-V"], check=False, capture_output=True) for name in names}
    return [name for name, done in runs.items() if done.returncode == 0]


def requirements() -> list[str]:
    """Return what building and running need, as in pyproject.toml."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = declared["project"]
    extras = [each for name in EXTRAS for each in project["optional-dependencies"][name]]
    return [*dict.fromkeys([*declared["build-system"]["requires"], *project["dependencies"], *extras])]


def lowest(requirement: str) -> str:
    """Return a requirement that only the lower bound fulfils, such as `numpy==2.0` for `numpy>=2.0`."""
    return re.sub(r">=([\d.]+).*", r"==\1", requirement)


def tested(combination: str, sdist: Path) -> bool:
    """Install, build and test one combination."""
    python, _, age = combination.rpartition("-")
    folder = PLACE / combination
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    shutil.unpack_archive(sdist, folder, filter="data")
    (source,) = folder.glob("fastvar-*")
    run = [str(folder / "venv" / "bin" / "python")]
    wanted = [lowest(each) if age == "oldest" else each for each in requirements()]
    subprocess.run([*run, "-m", "pip", "install", "--quiet", *wanted, *TOOLS], check=True)
    subprocess.run([*run, "setup.py", "-q", "build_ext", "--inplace"], cwd=source, check=True)
    print(f"{combination}: {', '.join(wanted)}", flush=True)
    command = [*run, "-m", "pytest", "-q", "-rfE", "-n", "2", "--timeout", "600", *PLUGIN, "tests"]
    found = os.environ | {"PYTHONPATH": str(source)}  # by programs that tests start: it is built in place
    return not subprocess.run(command, cwd=source, env=found, check=False).returncode


def main() -> None:
    wanted = sys.argv[1:] or [f"{pythons()[0]}-oldest", *(f"{python}-newest" for python in pythons())]
    shutil.rmtree(PLACE, ignore_errors=True)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", PLACE], cwd=ROOT, check=True)
    (sdist,) = PLACE.glob("*.tar.gz")
    passed = {combination: tested(combination, sdist) for combination in wanted}
    for combination, well in passed.items():
        print(f"{combination}: {'passed' if well else 'FAILED'}")
    sys.exit(not all(passed.values()))


if __name__ == "__main__":
    main()
