"""The reference of docs/reference: every public name is in it, and has a docstring."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

import fastvar as fv
from fastvar.optimizer.rule import Rule
from tests.support.pages import ROOT

NEEDED = {"torch.optim": "torch", "keras": "keras", "sklearn": "sklearn", "scipy": "scipy"}
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.rst"))}
INDEX = PAGES.pop("index")
HERE = [page for page in PAGES if page not in NEEDED or find_spec(NEEDED[page])]


def module_of(page: str) -> Any:
    return importlib.import_module(re.findall(r"currentmodule:: (\S+)", PAGES[page])[0])


def listed(page: str) -> list[str]:
    return re.findall(r"^   (\w+)$", PAGES[page], re.MULTILINE)


def public(page: str) -> Iterator[tuple[str, Any]]:
    """Yield the names and objects of ours that a page must list."""
    module = module_of(page)
    for name in getattr(module, "__all__", ()):
        thing = getattr(module, name)
        if not inspect.ismodule(thing) and thing.__module__.startswith("fastvar"):
            yield name, thing


def bare(thing: type) -> Iterator[str]:
    """Yield the public methods and properties of a class that are ours and have no docstring, nor a base's."""
    for name in dir(thing):
        owner = next((cls for cls in thing.__mro__ if name in vars(cls)), object)
        member = inspect.getattr_static(thing, name)
        described = isinstance(member, (property, classmethod, staticmethod)) or inspect.isfunction(member)
        hook = name in vars(Rule)  # described there, also where a property takes the place of an attribute
        if (
            name[0] != "_"
            and described
            and owner.__module__.startswith("fastvar")
            and not (hook and thing is not Rule)
        ):
            found = member if isinstance(member, property) else getattr(thing, name)
            if not inspect.getdoc(found):
                yield f"{thing.__name__}.{name}"


def test_every_page_is_in_the_index() -> None:
    assert sorted(re.findall(r"^   ([a-z.]+)$", INDEX, re.MULTILINE)) == sorted(PAGES)


@pytest.mark.parametrize("page", HERE)
def test_every_public_name_is_in_the_reference(page: str) -> None:
    names = listed(page)
    assert len(names) == len(set(names)) > 0
    elsewhere = [getattr(fv, name) for name in listed("fastvar")] if page != "fastvar" else []
    missing = [name for name, thing in public(page) if name not in names and thing not in elsewhere]
    assert missing == []
    assert [name for name in names if not hasattr(module_of(page), name)] == []


@pytest.mark.parametrize("page", HERE)
def test_every_public_name_and_member_has_a_docstring(page: str) -> None:
    without = []
    for thing in (getattr(module_of(page), name) for name in listed(page)):
        if inspect.isclass(thing):
            without += [] if vars(thing).get("__doc__") else [thing.__name__]
            without += bare(thing)
        else:
            without += [] if inspect.getdoc(thing) else [thing.__name__]
    assert without == []


def test_every_hook_of_a_rule_has_a_docstring() -> None:
    assert [*bare(Rule)] == []
    text = inspect.getsource(Rule)
    attributes = [name for name in Rule.__annotations__ if name[0] != "_"]
    assert len(attributes) > 3
    assert [name for name in attributes if not re.search(rf'    {name}: ClassVar.*\n    """', text)] == []


@pytest.mark.parametrize("module", [fv.optimizers, fv.torch], ids=lambda module: str(module.__name__))
def test_every_rule_has_its_formula_and_its_paper(module: Any) -> None:
    rules = {*module.__all__} - {"LBFGS", "LossScaleOptimizer", "ParamGroup", "TorchOptimizer"}
    texts = {name: inspect.cleandoc(getattr(module, name).__doc__) for name in rules}
    assert [name for name in sorted(rules) if "\n.. math::" not in texts[name]] == []
    assert [name for name in sorted(rules) if "\nReferences\n-" not in texts[name]] == []
