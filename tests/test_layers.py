"""The layers drawn in CONTRIBUTING.md: a module imports only modules of lower layers."""

import ast
import itertools
import re
from pathlib import Path

import pytest

import fastvar

LAYERS = [
    {"figures", "formats", "names", "tables", "versions"},
    {"hyper", "slices"},
    {"buffers", "hyper_json"},
    {"masters"},
    {"kernels", "threadpools"},
    {"arraylike", "constraints", "initializers", "regularizers", "schedules", "threads"},
    {"place"},
    {"variable"},
    {"module"},
    {"gradients"},
    {"gradient_check"},
    {"optimizer.options", "optimizer.passes", "optimizer.quantized", "optimizer.written"},
    {"optimizer.clipping", "optimizer.groups"},
    {"optimizer.overview", "optimizer.rule", "optimizer.state"},
    {"optimizer.cohorts", "optimizer.slots"},
    {"optimizer.given", "optimizer.memory", "optimizer.planning", "optimizer.trees"},
    {"optimizer.kept", "optimizer.step"},
    {"optimizer.base"},
    {"optimizer"},
    {"optimizers", "optimizer.saved"},
    {"benchmark", "checkpoint", "scipy", "sklearn", "torch"},
    {"cli", "distributed", "keras", "torch.optim"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ROOT = Path(fastvar.__file__).parent
SOURCES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
KERNELS = sorted(path.relative_to(ROOT) for kind in ("*.pyx", "*.pxi") for path in ROOT.rglob(kind))
DEFINITION = re.compile(r"\s*(def|cdef|cpdef)\b[^=]*\(")


def layer_of(name: str) -> str | None:
    """Return the entry of LAYERS to which a module belongs; its name is without "fastvar."."""
    parts = name.split(".")
    return next((whole for k in (2, 1) if (whole := ".".join(parts[:k])) in LEVEL), None)


def imports(path: Path) -> set[str]:
    """Return the imports of a file, also those for type checkers."""
    tree = ast.parse((ROOT / path).read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_only_lower_layers(path: Path) -> None:
    own = layer_of(module_name(path))
    for name in imports(path):
        library, _, inner = name.partition(".")
        other = layer_of(inner) if library == "fastvar" else None
        if other not in {None, own}:
            assert LEVEL[other] < LEVEL[own], f"{path} imports {name}"
        assert library not in {"tests", "bench", "examples"}
        if library == "torch":
            assert own == "torch.optim" or path.name in {"on_torch.py", "in_torch.py"}
        if library == "keras":
            assert own == "keras" or path.name == "in_keras.py"
        if library == "mpi4py":
            assert path == Path("distributed/mpi.py")
        if library == "sklearn":
            assert own == "sklearn"
        if library == "scipy":
            assert own == "scipy" or path.name == "quasi_newton.py"
        if library == "h5py":
            assert own == "checkpoint"


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def test_every_module_has_a_layer() -> None:
    assert {layer_of(module_name(path)) for path in SOURCES} == set(LEVEL)


@pytest.mark.parametrize("path", [*SOURCES, *KERNELS], ids=str)
def test_files_and_functions_stay_readable(path: Path) -> None:
    lines = (ROOT / path).read_text().splitlines()
    assert len(lines) <= 450
    begins = [k for k, line in enumerate(lines) if DEFINITION.match(line)] if path in KERNELS else []
    for first, after in itertools.pairwise([*begins, len(lines)]):
        assert after - first <= 60, lines[first]  # with the comments and decorators of the next
    tree = ast.parse("\n".join(lines)) if path in SOURCES else ast.Module([])
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node) is not None
            begin = node.body[0].end_lineno if documented else node.lineno
            assert node.end_lineno - begin <= 50, node.name


def test_numbers_of_things_are_written_by_count() -> None:
    """A number with its noun in a message is `count(n, "variable")`: "1 variable", "2 variables"."""
    texts = {path: (ROOT / path).read_text() for path in [*SOURCES, *KERNELS]}
    nouns = {noun for text in texts.values() for noun in re.findall(r"\bcount\(.*?, ['\"]([a-z ]+)['\"]\)", text)}
    assert {"byte", "gradient", "variable"} <= nouns
    by_hand = re.compile(rf"{{([^{{}}]+)}} (?:[a-z]+ )?(?:{'|'.join(nouns)})s\b")
    for path, text in texts.items():
        found = [of for of in by_hand.findall(text) if "count(" not in of and not of.split(".")[-1].isupper()]
        assert not found, f"{path}: {found}"  # a constant, in upper case, is more than 1
