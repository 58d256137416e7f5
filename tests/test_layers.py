"""The architecture as drawn in CONTRIBUTING.md: a module imports only lower layers."""

import ast
from pathlib import Path

import pytest

import fastvar

LAYERS = [
    {"hyper", "slices"},
    {"buffers", "stored"},
    {"kernels"},
    {"arraylike", "constraints", "regularizers", "schedules", "threads"},
    {"variable"},
    {"module", "passes", "state"},
    {"engine", "formula", "groups"},
    {"optimizer"},
    {"optimizer_state", "optimizers"},
    {"checkpoint", "torch"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ROOT = Path(fastvar.__file__).parent
SOURCES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports when it runs (not those for type checkers alone)."""
    tree = ast.parse((ROOT / path).read_text())
    typing_only = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {id(inner) for node in typing_only for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_only_lower_layers(path: Path) -> None:
    own = path.parts[0].removesuffix(".py")
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fastvar" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != own:
            assert LEVEL[parts[1]] < LEVEL[own], f"{path} imports {name}"
        assert parts[0] not in {"tests", "bench", "examples", "torch"}
        if parts[0] == "h5py":
            assert own == "checkpoint"


def test_every_module_has_a_layer() -> None:
    assert {path.parts[0].removesuffix(".py") for path in SOURCES} == set(LEVEL)


def test_files_and_functions_stay_readable() -> None:
    long = [str(path) for path in SOURCES if len((ROOT / path).read_text().splitlines()) > 450]
    assert not long
