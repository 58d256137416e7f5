"""The names of the package, in a process that has imported nothing else."""

from __future__ import annotations

import operator
import pkgutil
import re
from importlib.util import find_spec

import pytest

import fastvar as fv
from fastvar import names, variable
from tests.support.processes import output

PUBLIC = ["checkpoint", "constraints", "initializers", "optimizers", "regularizers", "schedules", "torch"]
FRAMEWORKS = [name for name in ("keras", "scipy", "sklearn") if find_spec(name)]


@pytest.mark.parametrize("name", [*fv.__all__, *FRAMEWORKS])
def test_every_name_is_there_on_first_use(name: str) -> None:
    assert output(f"import fastvar as fv; print(fv.{name} is not None)") == "True"


def test_dir_shows_the_public_names_only() -> None:
    public = str(sorted([*fv.__all__, "__version__"]))
    assert output("import fastvar as fv; print(dir(fv))") == public
    assert output("import fastvar as fv; [getattr(fv, name) for name in dir(fv)]; print(dir(fv))") == public
    if "scipy" in FRAMEWORKS:
        assert output("import fastvar as fv; fv.scipy; print('scipy' in dir(fv))") == "True"


@pytest.mark.parametrize("module", [*PUBLIC, *["scipy"] * ("scipy" in FRAMEWORKS)])
def test_dir_of_a_module_shows_its_public_names_only(module: str) -> None:
    found = getattr(fv, module)
    assert dir(found) == sorted(found.__all__)


def test_completion_shows_the_public_names() -> None:
    code = (
        "import itertools, rlcompleter, fastvar as fv; complete = rlcompleter.Completer({'fv': fv}).complete; "
        "found = itertools.takewhile(bool, (complete('fv.', k) for k in itertools.count())); "
        "print(sorted(name.removeprefix('fv.').rstrip('()') for name in found))"
    )
    assert output(code) == str(sorted(fv.__all__))


def test_help_shows_the_public_names() -> None:
    page = output("import pydoc, fastvar as fv; print(pydoc.render_doc(fv, renderer=pydoc.plaintext))")
    for name in ("class Checkpoint(", "class Variable(", "set_num_threads("):
        assert name in page
    assert "importlib" not in page


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Adam", "; did you mean fv.optimizers.Adam?"),
        ("CosineDecay", "; did you mean fv.schedules.CosineDecay?"),
        ("HeNormal", "; did you mean fv.initializers.HeNormal?"),
        ("L2", "; did you mean fv.regularizers.L2?"),
        ("Box", "; did you mean fv.constraints.Box?"),
        ("Fixed", ""),
        ("adam", "; did you mean fv.optimizers.Adam?"),
        ("Varable", "; did you mean fv.Variable?"),
        ("optim", "; use fv.torch, as fv.torch.Adam, or fv.torch.optim for PyTorch's tensors"),
        ("train", "; use fv.optimizers, as fv.optimizers.Adam, fv.schedules, fv.Checkpoint or fv.Saver"),
        ("get_variable", "; use fv.Variable(value, name=...)"),
        ("Session", "; there are no graphs: everything is computed at once, on NumPy arrays"),
    ],
)
def test_a_name_of_a_module_is_found(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=f"^module 'fastvar' has no attribute '{name}'{re.escape(hint)}$"):
        getattr(fv, name)


def test_hints_name_what_there_is() -> None:
    """No hint is for a name of ours, and all that hints name is there."""
    named = re.findall(r"fv\.([\w.]*\w)", " ".join(fv._ELSEWHERE.values()))
    assert {"Variable", "Module", "Saver", "optimizers"} <= {*named}
    for name in named:
        assert name.split(".")[0] in fv.__all__
    assert not {*fv._ELSEWHERE} & {*fv.__all__}
    for name, hint in fv._ELSEWHERE.items():
        with pytest.raises(AttributeError, match=re.escape(hint)):
            getattr(fv, name)
    assert isinstance(fv.Module.trainable_variables, property)


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        ("optimizers", "AdamOptimizer", "fv.optimizers.Adam"),
        ("optimizers", "adam", "fv.optimizers.Adam"),
        ("optimizers", "GradientDescentOptimizer", "fv.optimizers.SGD"),
        ("optimizers", "RMSProp", "fv.optimizers.RMSprop"),
        ("optimizers", "NAdam", "fv.optimizers.Nadam"),
        ("optimizers", "lbfgs", "fv.optimizers.LBFGS"),
        ("schedules", "cosine_decay", "fv.schedules.CosineDecay"),
        ("schedules", "CosineAnnealingLR", "fv.schedules.CosineDecay"),
        ("schedules", "cyclic", "fv.schedules.Cyclic"),
        ("regularizers", "l2_regularizer", "fv.regularizers.L2"),
        ("initializers", "truncated_normal_initializer", "fv.initializers.TruncatedNormal"),
        ("initializers", "xavier_uniform_", "fv.initializers.GlorotUniform"),
        ("constraints", "non_neg", "fv.constraints.NonNeg"),
        ("torch", "adam", "fv.torch.Adam"),
        *[("torch.optim", "AdamWScheduleFree", "fv.torch.optim.ScheduleFreeAdamW")] * ("torch" in FRAMEWORKS),
        *[("torch.optim", "lamb", "fv.torch.optim.Lamb")] * ("torch" in FRAMEWORKS),
        ("torch", "Nadam", "fv.torch.NAdam"),
        ("torch", "Adan", "fv.optimizers.Adan"),  # not Adam
        ("checkpoint", "Ceckpoint", "fv.checkpoint.Checkpoint"),
        *[("scipy", "adam", "fv.optimizers.Adam")] * ("scipy" in FRAMEWORKS),
        ("optimizers", "Mymethod", None),
        ("optimizers", "_Adam", None),
    ],
)
def test_other_spellings_and_names_say_which_is_meant(module: str, name: str, meant: str | None) -> None:
    hint = f"; did you mean {meant}?" if meant else ""
    message = f"^module 'fastvar.{module}' has no attribute '{name}'{re.escape(hint)}$"
    with pytest.raises(AttributeError, match=message):
        getattr(operator.attrgetter(module)(fv), name)


@pytest.mark.parametrize("name", [*variable._ELSEWHERE])
def test_attributes_of_other_variables_say_what_to_use(name: str) -> None:
    message = f"'Variable' object has no attribute '{name}'; {variable._ELSEWHERE[name]}"
    with pytest.raises(AttributeError, match=re.escape(message)):
        getattr(fv.Variable([1.0]), name)


def test_hints_name_what_variables_have() -> None:
    hints = " ".join(variable._ELSEWHERE.values())
    named = re.findall(r"use (\w+)|and (\w+)|or (\w+)\(", hints)
    found = {name for names in named for name in names if name}
    assert {"value", "numpy", "assign", "shape", "trainable"} <= found
    assert {name for name in found if not hasattr(fv.Variable([1.0]), name)} <= {"optimizer"}
    assert not any(hasattr(fv.Variable([1.0]), name) for name in variable._ELSEWHERE)
    assert not hasattr(fv.Variable([1.0]), "evil")


def test_argument_of_keras_2() -> None:
    with pytest.raises(TypeError, match="unknown argument 'decay'; it was Keras 2's: pass a schedule"):
        fv.optimizers.Adam(0.1, decay=1e-3)  # type: ignore[call-arg]
    assert fv.schedules.InverseTimeDecay(0.1, 1, 1e-3)


@pytest.mark.parametrize("package", ["optimizers", "schedules", "torch"])
def test_no_module_has_the_name_of_a_class(package: str) -> None:
    """Else `fv.optimizers.adam` would be a module, which cannot be called."""
    found = getattr(fv, package)
    modules = {module.name for module in pkgutil.iter_modules(found.__path__)}
    assert not modules & {name.lower() for name in found.__all__}


def test_names_of_others_stand_for_names_of_ours() -> None:
    modules = (fv.optimizers, fv.schedules, fv.initializers)
    assert {*names._ELSEWHERE.values()} <= {name for module in modules for name in module.__all__}
    assert all(names._plain(name) == name for name in names._ELSEWHERE)


def test_import_loads_no_framework_and_no_hdf5() -> None:
    slow = "{'h5py', 'keras', 'sklearn', 'scipy', 'torch', 'jax', 'fastvar.checkpoint', 'fastvar.torch'}"
    assert output(f"import fastvar, sys; print(sorted({slow} & {{*sys.modules}}))") == "[]"


@pytest.mark.parametrize(
    ("module", "library", "wanted"),
    [
        ("keras", "keras", "pip install keras"),
        ("keras", "keras.src.backend", "KERAS_BACKEND to torch or numpy"),
        ("sklearn", "sklearn", "pip install 'scikit-learn>=1.5'"),
        ("torch.optim", "torch", "pip install torch"),
    ],
)
def test_a_missing_framework_is_an_error_that_says_what_to_install(module: str, library: str, wanted: str) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None  # as if it were not installed
import fastvar
try:
    fastvar.{module}
except ImportError as error:
    print(error)
"""
    message = output(code)
    assert message.startswith(f"fastvar.{module}: ")
    assert wanted in message
