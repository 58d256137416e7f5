"""Optimizers of variables and of tensors name each other when given the wrong kind; other releases of PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import fastvar as fv
import fastvar.torch
import fastvar.torch.optim as on_tensors
from fastvar.torch.optim import versions
from tests.support.torch_tensors import NAMES

TENSORS: dict[str, Any] = {
    "parameters": lambda net: net.parameters(),
    "module": lambda net: net,
    "parameter": lambda net: net.weight,
    "scalar": lambda net: torch.tensor(1.0),
    "tensor": lambda net: [net.weight.data],
    "names": lambda net: net.named_parameters(),
    "state": lambda net: net.state_dict(),
    "group": lambda net: [{"params": net.parameters()}],
    "among variables": lambda net: [fv.Variable([1.0]), net.weight],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", TENSORS)
def test_optimizers_of_variables_name_those_of_tensors(name: str, kind: str) -> None:
    make = getattr(fastvar.torch, name)
    with pytest.raises(
        TypeError, match=rf"^{name}: variables .* use fastvar\.torch\.optim\.{name} for torch tensors"
    ):
        make(TENSORS[kind](torch.nn.Linear(2, 2)))


def for_tensors(name: str) -> str:
    """Return what an error must name: the class that is there under that name, in any case."""
    classes = [
        each for each in on_tensors.__all__ if issubclass_of_optimizer(each) and each.lower() == name.lower()
    ]
    return "".join(f".{each}" for each in classes)


def issubclass_of_optimizer(name: str) -> bool:
    thing = getattr(on_tensors, name)
    return isinstance(thing, type) and issubclass(thing, torch.optim.Optimizer)


@pytest.mark.parametrize("kind", [kind for kind in TENSORS if kind != "group"])
@pytest.mark.parametrize("name", [name for name in fv.optimizers.__all__ if name != "LossScaleOptimizer"])
def test_optimizers_of_fastvar_name_those_of_tensors(name: str, kind: str) -> None:
    given = TENSORS[kind](torch.nn.Linear(2, 2))
    there = rf"fastvar\.torch\.optim{for_tensors(name)} for torch tensors$"
    with pytest.raises(TypeError, match=rf"^{name}: variables must be fastvar\.Variable, .* use {there}"):
        getattr(fv.optimizers, name)().build(given)


def test_names_are_of_what_is_there() -> None:
    assert [for_tensors(name) for name in ("Adam", "Lion", "Lamb", "Nadam", "Explain")] == [
        ".Adam",
        ".Lion",
        ".Lamb",
        ".NAdam",
        "",
    ]
    with pytest.raises(TypeError, match=r"^mine: .* use fastvar\.torch\.optim for torch tensors$"):
        fv.optimizers.Adam(name="mine").build([torch.ones(1)])
    with pytest.raises(TypeError, match=r"^Adam: .* use fastvar\.torch\.optim\.Adam for torch tensors$"):
        fv.optimizers.Adam().apply_gradients([(torch.ones(1), torch.nn.Parameter(torch.ones(1)))])


@pytest.mark.parametrize("package", [fv.optimizers, fastvar.torch], ids=lambda package: package.__name__)
def test_what_messages_name_is_there(package: Any) -> None:
    for name in package.__all__:
        make: Any = getattr(package, name)
        if name not in ("LossScaleOptimizer", "ParamGroup"):
            with pytest.raises(TypeError, match="for torch tensors") as error:
                make([torch.ones(2, 2)]) if package is fastvar.torch else make().build([torch.ones(2, 2)])
            (there,) = re.findall(r"use fastvar\.torch\.optim\.?(\w*)", str(error.value))
            assert not there or issubclass(getattr(on_tensors, there), torch.optim.Optimizer)


def test_tensors_among_known_variables_are_named() -> None:
    w, p = fv.Variable([1.0]), torch.nn.Parameter(torch.ones(1))
    optimizer = fv.optimizers.Adam()
    optimizer.build([w])
    with pytest.raises(TypeError, match=r"use fastvar\.torch\.optim\.Adam"):
        optimizer.apply([[1.0]], [p])
    with pytest.raises(TypeError, match=r"use fastvar\.torch\.optim\.Adam"):
        optimizer.minimize(lambda: (0.0, [[1.0]]), [p])
    assert optimizer.iterations == 0


def test_tensors_are_named_only_if_pytorch_is_there() -> None:
    code = (
        "import sys, fastvar as fv, fastvar.torch\n"
        "try:\n    fastvar.torch.Adam([1.0])\n"
        "except TypeError as error:\n    sys.exit('torch' in sys.modules or 'optim' in str(error))\n"
        "sys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


class Dense(fv.Module):
    def __init__(self, w: Any) -> None:
        self.w = w


VARIABLES: dict[str, Any] = {
    "variable": lambda w: w,
    "module": Dense,
    "module without variables": lambda w: fv.Module(),
    "dict": lambda w: {"w": w},
    "iterator": lambda w: iter([w]),
    "tuple": lambda w: (w,),
    "modules": lambda w: [Dense(w)],
    "list": lambda w: [w],
    "group": lambda w: [{"params": [w]}],
    "variable of a group": lambda w: [{"params": w}],
    "names": lambda w: [("w", w)],
    "among tensors": lambda w: [torch.nn.Parameter(torch.ones(1)), w],
}


@pytest.mark.parametrize("name", [*NAMES, *on_tensors.native.__all__])
@pytest.mark.parametrize("kind", VARIABLES)
def test_optimizers_of_tensors_name_those_of_variables(name: str, kind: str) -> None:
    make, package = getattr(on_tensors, name), "torch" if name in NAMES else "optimizers"
    assert hasattr(getattr(fastvar, package), name)
    with pytest.raises(
        TypeError, match=rf"^{name}: parameters .* use fastvar\.{package}\.{name} for fastvar\.Variable$"
    ):
        make(VARIABLES[kind](fv.Variable([1.0])))


def test_refused_groups_are_not_added() -> None:
    optimizer = on_tensors.SGD([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match=r"use fastvar\.torch\.SGD"):
        optimizer.add_param_group({"params": [fv.Variable([1.0])]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("version", ["2.5.1", "1.13.1+cu117", "3.0.0", "10.1", "unknown"])
def test_other_releases_of_pytorch_are_refused(version: str) -> None:
    code = f"import torch; torch.__version__ = {version!r}\nimport fastvar.torch.optim"
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120, capture_output=True, text=True)
    assert f"ImportError: fastvar.torch.optim: needs torch>=2.6,<3.0, found {version}\n" in done.stderr


@pytest.mark.parametrize("version", ["2.6.0", "2.13.0+cpu", "2.15.0a0+git1234", torch.__version__])
def test_supported_releases_of_pytorch_pass(version: str) -> None:
    versions.check(version)
