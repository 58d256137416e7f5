"""The objects of a checkpoint as named tensors and JSON state, and back.

A variable has its own name, else its path in the module or container, below the keyword (the root has none).
Tensors are stored as `variables/NAME`, and `variables/NAME.master` (masters.py); `KEYWORD/NAME/SLOT` for the
slots of an optimizer given by that keyword; `state/arrays/0`, ... for arrays in other state. Tensors of PyTorch's
modules have the names of their `state_dict`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fastvar.buffers import Array
from fastvar.checkpoint import encoding, generators, pytorch
from fastvar.checkpoint.bookkeeping import is_reserved
from fastvar.checkpoint.generators import is_generator
from fastvar.checkpoint.pytorch import TensorPlace
from fastvar.checkpoint.pytorch_optimizer import StoredOptimizer
from fastvar.module import Module, Tree, children, holds_variables, walk
from fastvar.optimizer import Optimizer
from fastvar.optimizer.quantized import Slot, parts_of
from fastvar.optimizer.saved import Resumption, describe, slots_of
from fastvar.variable import Variable

RESERVED = ("variables", "state", "manifest", "root")
MALFORMED = (TypeError, LookupError, AttributeError, OverflowError)  # from malformed JSON
Commit = Callable[[], object]
Place = Variable | TensorPlace
Rename = Callable[[str], str | None]  # a variable's name here -> in the file; None: do not restore


class Loading:
    """Gives an object its state by `load_state_dict`, which may refuse it."""

    def __init__(self, thing: Any, saved: Any) -> None:
        self.thing: Any = thing
        self._saved = saved
        self._before = copy.deepcopy(thing.state_dict())

    def __call__(self) -> None:
        self.thing.load_state_dict(self._saved)

    def undo(self) -> None:
        """Give the object its previous state."""
        self.thing.load_state_dict(self._before)


class Named(dict[str, Variable]):
    """Variables under the names of these keys, whatever their own names are."""


class Contents:
    """The objects of a checkpoint, sorted by kind and named.

    Attributes
    ----------
    variables : dict of str to Variable
    tensors_of_modules : dict of str to TensorPlace
        Those of PyTorch's modules.
    optimizers : dict of str to Optimizer
    of_pytorch : dict of str to object
        PyTorch's optimizers.
    states : dict of str to object
        Random generators, dicts, and objects with `state_dict` and `load_state_dict`.
    """

    def __init__(self, root: Any, objects: Mapping[str, Any]) -> None:
        self.variables: dict[str, Variable] = {}
        self.tensors_of_modules: dict[str, TensorPlace] = {}
        self.optimizers: dict[str, Optimizer] = {}
        self.of_pytorch: dict[str, Any] = {}
        self.states: dict[str, Any] = {}
        if pytorch.is_module(root):
            self._add_tensors("", root)
        elif root is not None and not isinstance(root, Variable) and children(root) is None:
            raise TypeError(f"Checkpoint: root must be a Module or hold variables, got {type(root).__name__}")
        else:
            self._add_variables("", root)
        for keyword, thing in objects.items():
            self._add(keyword, thing)
        self._names = {id(v): name for name, v in self.variables.items()}

    def _add(self, keyword: str, thing: Any) -> None:
        if is_reserved(keyword):
            raise ValueError(f"Checkpoint: keywords that begin with $ are reserved, got {keyword!r}")
        if isinstance(thing, Optimizer) or pytorch.is_optimizer(thing):
            if keyword in RESERVED:
                raise ValueError(f"Checkpoint: an optimizer cannot be given as {keyword}=")
            (self.optimizers if isinstance(thing, Optimizer) else self.of_pytorch)[keyword] = thing
        elif pytorch.is_module(thing):
            self._add_tensors(keyword, thing)
        elif isinstance(thing, (Module, Variable, list, tuple)) or holds_variables(thing):
            if Tree(thing).foreign:
                raise TypeError(
                    f"Checkpoint: {keyword}= must hold either variables and modules only, or no variable and be a "
                    "dict of state; pass the two by keywords of their own"
                )
            self._add_variables(keyword, thing)
        elif type(thing) is dict or is_generator(thing) or pytorch.is_generator(thing) or _is_object(thing):
            self.states[keyword] = thing
        else:
            raise TypeError(
                f"Checkpoint: {keyword}= must be variables, a module, an optimizer, a random generator, a dict, "
                f"or have state_dict and load_state_dict, got {type(thing).__name__}"
            )

    def _add_variables(self, keyword: str, thing: Any) -> None:
        for path, variable in walk(thing, keyword):
            name = path if isinstance(thing, Named) else variable._name or path
            if not name:
                raise ValueError("Checkpoint: give the variable a name, or pass it by keyword")
            if self.variables.setdefault(name, variable) is not variable or name in self.tensors_of_modules:
                raise ValueError(f"Checkpoint: two variables are named {name!r}; give each another name")

    def _add_tensors(self, keyword: str, module: Any) -> None:
        for name, place in pytorch.tensors_of(module, keyword):
            if name in self.variables or name in self.tensors_of_modules:
                raise ValueError(f"Checkpoint: two tensors are named {name!r}; pass modules by other keywords")
            self.tensors_of_modules[name] = place

    def name_of(self, variable: Variable) -> str:
        """Return the name of a variable here, or its own."""
        name = self._names.get(id(variable)) or variable.name
        if name is None:
            raise ValueError(
                f"Checkpoint: the optimizer's {variable!r} has no name; pass the variables to the checkpoint too"
            )
        return name

    def tensors(self, resumptions: Mapping[str, Resumption] = MappingProxyType({})) -> dict[str, Place]:
        """Return the places of all tensors by their names in a file, as they will be after the resumptions.

        Those of PyTorch's optimizers are part of their state.
        """
        places: dict[str, Place] = {f"variables/{name}": v for name, v in self.variables.items()}
        places |= {f"variables/{name}": place for name, place in self.tensors_of_modules.items()}
        for name, slot in self.slots(resumptions).items():
            places |= {name + suffix: part for suffix, part in parts_of(slot).items()}
        return places

    def slots(self, resumptions: Mapping[str, Resumption] = MappingProxyType({})) -> dict[str, Slot]:
        """Return the slots by their names in a file, as they will be after the resumptions."""
        named: dict[str, Slot] = {}
        for keyword, optimizer in self.optimizers.items():
            resumed = resumptions.get(keyword)
            variables, slots = optimizer._state.variables, slots_of(optimizer)
            if resumed is not None:
                variables, slots = resumed.variables, resumed.slots
            owners = [self.name_of(variable) for variable in variables]
            for slot, of_variable in slots.items():
                for owner, place in zip(owners, of_variable, strict=True):
                    if place is not None and named.setdefault(f"{keyword}/{owner}/{slot}", place) is not place:
                        raise ValueError(f"Checkpoint: two variables of {keyword} are named {owner!r}")
        return named

    def state(self) -> tuple[dict[str, Any], dict[str, Array], dict[str, Array]]:
        """Return the state of optimizers, generators and other objects.

        It consists of JSON values, the slots of PyTorch's optimizers (not copied), and other arrays (copied).
        """
        slots: dict[str, Array] = {}
        arrays: dict[str, Array] = {}
        state = {k: describe(o, self.name_of) for k, o in self.optimizers.items()}
        for keyword, optimizer in self.of_pytorch.items():
            stored = StoredOptimizer(optimizer, keyword)
            state[keyword] = stored.describe()
            slots |= stored.arrays
        for keyword, thing in self.states.items():
            state[keyword] = encoding.encode(_get_state(thing, keyword), arrays)
        return state, slots, arrays

    def resume(self, keyword: str, saved: Any, rename: Rename, program: bool) -> Resumption:
        """Check the saved state of an optimizer, and return what will give it to the optimizer."""
        named = {str(rename(name)): v for name, v in self.variables.items()}
        try:
            return Resumption(
                self.optimizers[keyword], saved, lambda v: str(rename(self.name_of(v))), named, program
            )
        except MALFORMED as error:
            raise ValueError(f"{keyword}: the saved state is not that of an optimizer ({error})") from error

    def prepare(self, keyword: str, saved: Any, arrays: Mapping[str, Array]) -> Commit:
        """Check the saved state of another object, and return what will give it to the object."""
        try:
            return _prepare_state(self.states[keyword], encoding.decode(saved, arrays))
        except ValueError as error:
            raise ValueError(f"{keyword}: {error}") from error


def _is_object(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def _get_state(thing: Any, keyword: str) -> Any:
    if is_generator(thing):
        return generators.get_state(thing)
    if pytorch.is_generator(thing):
        return pytorch.generator_state(thing)
    if pytorch.has_state(thing):
        return pytorch.state_of(thing, keyword)
    return thing.state_dict() if _is_object(thing) else thing


def _prepare_state(thing: Any, saved: Any) -> Commit:
    if is_generator(thing):
        return generators.prepare(thing, saved)
    if pytorch.is_generator(thing):
        return pytorch.prepare_generator(thing, saved)
    if pytorch.has_state(thing):
        return Loading(thing, pytorch.state_for(thing, saved))
    if _is_object(thing):
        return Loading(thing, saved)
    if not isinstance(saved, dict):
        raise ValueError("the saved state is not a dict")

    def refill() -> None:
        thing.clear()
        thing.update(saved)

    return refill
