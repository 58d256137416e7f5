"""The tests of this folder on the torch backend, and Keras's own tests with our classes, in other processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("keras")
pytest.importorskip("torch")

FILES = [
    "test_steps.py",
    "test_use.py",
    "test_on_torch.py",
    "test_slot_formats.py",
    "test_sixteen.py",
    "test_memory.py",
]
ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.timeout(1200)


def pytest_run(backend: str, *arguments: str, cwd: Path = ROOT) -> str:
    environment = {**os.environ, "FASTVAR_KERAS_BACKEND": backend, "KERAS_BACKEND": backend}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, check=False, timeout=1200, capture_output=True, text=True, env=environment, cwd=cwd
    ).stdout


def counts(out: str) -> dict[str, int]:
    return {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped)", out.splitlines()[-1])}


@pytest.mark.skipif("FASTVAR_KERAS_BACKEND" in os.environ, reason="this is the other process")
@pytest.mark.parametrize("file", FILES)
def test_on_torch(file: str) -> None:
    out = pytest_run("torch", f"tests/keras/{file}")
    assert "failed" not in counts(out), out[-5000:]
    assert counts(out)["passed"] > 20


@pytest.mark.skipif("FASTVAR_KERAS_BACKEND" in os.environ, reason="this is the other process")
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_keras_s_own_tests(backend: str, tmp_path: Path) -> None:
    """The same pass and fail as with Keras's classes, and nearly all steps run in the kernels."""
    there = find_spec("keras.src.optimizers").submodule_search_locations[0]  # type: ignore[union-attr,index]
    if not [*Path(there).glob("*_test.py")]:
        pytest.skip("the wheel of this release has no tests")
    arguments = ("-c", os.devnull, "--rootdir", str(tmp_path), "-W", "ignore", "-rf")
    own = pytest_run(backend, *arguments, "--pyargs", "keras.src.optimizers", cwd=tmp_path)
    swap = ("-p", "tests.support.keras_swap")
    swapped = pytest_run(backend, *arguments, *swap, "--pyargs", "keras.src.optimizers", cwd=tmp_path)
    failed = [re.findall(r"^FAILED (\S+)", out, re.MULTILINE) for out in (own, swapped)]
    assert failed[0] == failed[1]
    assert counts(own) == counts(swapped)
    assert counts(own)["passed"] > 200
    kernel, as_keras = map(int, re.findall(r"kernel steps: (\d+), keras steps: (\d+)", swapped)[0])
    reasons = re.findall(r"\d+ as in Keras: (.*)", swapped)
    assert kernel > 20 * as_keras
    assert {*reasons} == {"it is stateless or symbolic", "the rule is not compiled with these hyperparameters"}
