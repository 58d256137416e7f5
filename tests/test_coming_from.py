"""The names in the tables of docs/coming-from.md."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import fastvar as fv
from tests.support.pages import PAGES

TEXT = PAGES["coming-from.md"].read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:1] == "|"]
ALIASES = {"fv": "fastvar", "fd": "fastvar.distributed"}
OPTIONS = {*fv.Optimizer.parameters}


def named(column: int) -> Iterator[str]:
    for row in ROWS:
        yield from re.findall(r"`([\w.]+(?:=[^`]*)?)`", row[column])


def ours() -> list[str]:
    return sorted({name for column in (1, 2) for name in named(column) if name.startswith(("fv.", "fd."))})


def theirs() -> list[str]:
    libraries = ("keras", "torch", "optax", "sklearn", "scipy")
    return sorted({name for name in named(0) if name.partition(".")[0] in libraries})


def found(name: str) -> object:
    """Import or look up a dotted name."""
    first, *rest = name.split(".")
    path = ALIASES.get(first, first)
    thing = importlib.import_module(path)
    for part in rest:
        path = f"{path}.{part}"
        if not hasattr(thing, part) and inspect.ismodule(thing):
            thing = importlib.import_module(path)
        elif inspect.isclass(thing) and issubclass(thing, fv.Optimizer) and part in thing.parameters:
            thing = thing.parameters[part]
        else:
            thing = getattr(thing, part)
    return thing


def test_the_tables_are_read() -> None:
    assert len(ROWS) > 70
    assert {len(row) for row in ROWS} == {3}
    assert "fv.optimizers.Adam" in ours()
    assert "optax.adam" in theirs()
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        found("fv.optimizers.Adamant")


@pytest.mark.parametrize("name", ours())
def test_our_names_are_there(name: str) -> None:
    needed = {"fv.sklearn": "sklearn", "fv.scipy": "scipy"}.get(".".join(name.split(".")[:2]))
    if needed and not find_spec(needed):
        pytest.skip(f"needs {needed}")
    assert found(name) is not None


def test_options_are_those_of_every_optimizer() -> None:
    options = {name.partition("=")[0] for name in named(1) if "=" in name}
    assert len(options) > 5
    assert options <= OPTIONS


@pytest.mark.parametrize("name", theirs())
def test_their_names_are_there(name: str) -> None:
    pytest.importorskip(name.partition(".")[0])
    if name != "torch.distributed.optim.ZeroRedundancyOptimizer":  # importing it warns
        assert found(name) is not None
