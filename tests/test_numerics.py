"""What docs/numerics.md says of the sources: no function whose results differ between processors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastvar
from tests.support.pages import PAGES

ROOT = Path(fastvar.__file__).parent
FOLDERS = ("kernels", "optimizer", "optimizers", "schedules", "torch", "keras", "distributed", "checkpoint")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
ROUNDED_DIFFERENTLY = {
    *(
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "power",
        "float_power",
        "cbrt",
        "hypot",
        "logaddexp",
    ),
    *("sin", "cos", "tan", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "arctan2", "reciprocal"),
}
OF_C = {"sqrt", "sqrtf", "fabs", "fabsf", "INFINITY"}  # exact


def used(source: str) -> set[str]:
    """Return the functions of NumPy that a module names, of those that round differently."""
    named = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("np", "numpy")
    }
    return named & ROUNDED_DIFFERENTLY


def test_the_scan_finds_them() -> None:
    assert used("y = np.exp(x) + np.sqrt(np.tanh(x))") == {"exp", "tanh"}


def test_only_the_power_of_ftrl_is_numpys() -> None:
    found = {path.relative_to(ROOT).as_posix(): names for path in SOURCES if (names := used(path.read_text()))}
    assert found == {"kernels/reference.py": {"power"}}
    assert "`Ftrl` with a `learning_rate_power`" in PAGES["numerics.md"].read_text()


@pytest.mark.parametrize("suffix", ["pyx", "pxi", "h"])
def test_kernels_call_nothing_of_the_c_library_that_rounds(suffix: str) -> None:
    sources = [path.read_text() for path in sorted((ROOT / "kernels").glob(f"*.{suffix}"))]
    assert sources
    for source in sources:
        for names in re.findall(r"from libc\.math cimport (.*)", source):
            assert {*re.split(r",\s*", names.strip())} <= OF_C
        assert not re.search(r"\b(exp|log|pow|tanh|sin|cos)f?\(", source)
        assert not re.search(r"_mm\w*_(rcp|rsqrt|fmadd|fmsub)\w*", source)
