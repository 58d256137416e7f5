"""A yardstick for the design: the examples in CONTRIBUTING.md are all that a new rule or format needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FILES = {
    "fastvar/formats.py",
    "fastvar/kernels/formats.pxi",
    "fastvar/kernels/rules.pxi",
    "fastvar/kernels/reference.py",
    "fastvar/optimizers/soft_sign.py",
    "fastvar/optimizers/__init__.py",
    "tests/support/cases.py",
    "fastvar/benchmark/cases.py",
    "CHANGELOG.md",
}
TESTS = [
    *(f"tests/kernels/test_{name}.py" for name in ("bits", "denormals", "formats", "scalars")),
    *(f"tests/optimizer/test_{name}.py" for name in ("optimizer", "sparse", "steps")),
    *(f"tests/optimizers/test_{name}.py" for name in ("minimizes", "oracles", "rules")),
    "tests/test_bench.py",
    "fastvar/optimizers/soft_sign.py",
]
# Run the tests named after the rule, the case or the class, and the tests of completeness.
CHOSEN = "soft_sign or soft-sign or SoftSign or test_every_rule or test_every_optimizer or test_every_case_has"
CHOSEN += " or test_classes"
# Run the tests of the format with one rule, and those of memory.
CHOSEN += " or float8_e5m2 and (momentum or pattern or copied or memory or apart)"


class Insertion(NamedTuple):
    """A code block of the example, and its destination."""

    file: str
    place: str
    anchor: str | None
    block: str

    def into(self, folder: Path) -> None:
        path = folder / self.file
        if self.place == "a new file":
            assert not path.exists()
            path.write_text(self.block)
            return
        lines = path.read_text().splitlines(keepends=True)
        found = [i for i, line in enumerate(lines) if line.strip().startswith(str(self.anchor))]
        assert found, f"{self.file}: no line begins with {self.anchor}"
        at = found[-1] + 1 if self.place == "after the last" else found[0] + (self.place == "after the first")
        apart = "\n\n" if self.block.startswith(("@", "def ", "cdef ", "class ")) else ""
        lines.insert(at, self.block + apart)
        path.write_text("".join(lines))


def insertions() -> list[Insertion]:
    """Return the code blocks of the examples. The line before each names its destination."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    example = text[text.index("### A whole example") : text.index("## Adding a stage\n")]
    place = r"(before the first|after the first|after the last) line that begins with `([^`]+)`"
    line = rf"^`([^`]+)`, (?:(a new file)|{place}):$"
    found = re.findall(line + r"\n\n```\w+\n(.*?)^```$", example, re.DOTALL | re.MULTILINE)
    assert len(found) == example.count("```") / 2, "a block does not say where it goes"
    return [Insertion(file, new or place, anchor, block) for file, new, place, anchor, block in found]


def sources() -> list[str]:
    """Return the files of the source tree, relative to it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


def changed(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not ((ROOT / name).exists() and path.read_bytes() == (ROOT / name).read_bytes()):
            yield name


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """Run Python with the copy alone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTVAR_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of source files from git")
def test_the_examples_are_all_that_it_takes(tmp_path: Path) -> None:
    for name in sources():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    for insertion in insertions():
        insertion.into(tmp_path)
    assert set(changed(tmp_path)) == FILES
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace", FASTVAR_DEBUG="1")  # for all instruction sets
    out = run(tmp_path, "-m", "pytest", "-q", "-p", "no:xdist", "-rA", *TESTS, "-k", CHOSEN)
    passed = re.findall(r"^PASSED (\S+?)::", out, re.MULTILINE)
    assert set(passed) == set(TESTS), out
    assert re.search(r"^PASSED tests/kernels/test_formats.py::\S*float8_e5m2", out, re.MULTILINE), out
    assert re.search(rf"^{len(passed)} passed", out, re.MULTILINE), out
