"""PyTorch's modules, schedulers and generators as named tensors and JSON state, and back.

Nothing here imports PyTorch: a program that has one of its objects has loaded it.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.checkpoint.file_format import EXTENDED, NATIVE

_PLAIN = (type(None), bool, int, float, str)
_DICTS = {kind.__name__: kind for kind in (dict, OrderedDict, Counter)}
Keep = Callable[[str, Any], str]  # stores a tensor of state at a path, and returns its name in the file
Find = Callable[[str], Array]  # the array of that name


def is_module(thing: Any) -> bool:
    """Return whether `thing` is a module of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.nn.Module)


def is_optimizer(thing: Any) -> bool:
    """Return whether `thing` is an optimizer of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.optim.Optimizer)


def is_generator(thing: Any) -> bool:
    """Return whether `thing` is a random generator of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.Generator)


def has_state(thing: Any) -> bool:
    """Return whether PyTorch itself makes the `state_dict` of `thing`, such as a scheduler or a `GradScaler`."""
    made_by = getattr(getattr(type(thing), "state_dict", None), "__module__", "")
    return made_by.startswith("torch.") and hasattr(thing, "load_state_dict")


class TensorPlace:
    """A tensor of a module. Its array is its memory if that is contiguous and on the CPU, else a copy.

    Parameters
    ----------
    tensor : torch.Tensor
    label : str
        Its name in errors.

    Raises
    ------
    TypeError
        If it has no numbers in memory, or of a dtype that NumPy lacks.
    """

    def __init__(self, tensor: Any, label: str) -> None:
        self._tensor = tensor
        self.dtype: np.dtype[Any] = _checked_dtype(tensor, label)
        self.shape: tuple[int, ...] = (*tensor.shape,)
        self.nbytes: int = tensor.numel() * self.dtype.itemsize
        in_place = tensor.device.type == "cpu" and tensor.is_contiguous()
        self._in_place = in_place and not tensor.is_conj() and not tensor.is_neg()
        self._copy: Array | None = None

    @property
    def _array(self) -> Array:
        if self._in_place:
            return as_array(self._tensor)
        if self._copy is None:
            self._copy = copied(self._tensor)
        return self._copy

    def identity(self) -> tuple[Any, ...]:
        """Return what two places of the same memory have in common."""
        tensor = self._tensor
        memory = tensor.data_ptr() if tensor.numel() else id(tensor)
        return memory, tensor.device, self.dtype, self.shape, tensor.stride()

    def settle(self) -> None:
        """Let the tensor have what has been written into its array, and tell PyTorch that it has changed."""
        torch = sys.modules["torch"]
        with torch.no_grad():
            if not self._in_place:
                self._tensor.copy_(as_tensor(self._array))
            elif not self._tensor.is_inference():
                torch.autograd.graph.increment_version(self._tensor)

    def assign(self, array: Array) -> None:
        """Write an array of the same shape into the tensor."""
        self._array[...] = array
        self.settle()


def _checked_dtype(tensor: Any, label: str) -> np.dtype[Any]:
    torch = sys.modules["torch"]
    name = str(tensor.dtype).removeprefix("torch.")
    wanted: str | None = None
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        wanted = "a plain tensor"
    elif tensor.device.type == "meta" or tensor.layout is not torch.strided:
        wanted = "a dense tensor with memory"
    elif tensor.is_quantized or name not in (*NATIVE, *EXTENDED):
        wanted = "of a dtype that NumPy or ml_dtypes has"
    if wanted is not None:
        got = f"{tensor.dtype}, {tensor.layout} on {tensor.device} ({type(tensor).__name__})"
        raise TypeError(f"Checkpoint: {label} must be {wanted}, got {got}")
    return np.dtype(getattr(ml_dtypes, name) if name in EXTENDED else name)


def as_array(tensor: Any) -> Array:
    """Return the memory of a contiguous tensor on the CPU as an array."""
    torch, name = sys.modules["torch"], str(tensor.dtype).removeprefix("torch.")
    if name not in EXTENDED:
        array: Array = tensor.detach().numpy()
        return array
    bits: Array = tensor.detach().view(torch.int16 if tensor.itemsize == 2 else torch.uint8).numpy()
    return bits.view(getattr(ml_dtypes, name))


def as_tensor(array: Array) -> Any:
    """Return a tensor with the memory of an array."""
    torch = sys.modules["torch"]
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.name not in EXTENDED:
        return torch.from_numpy(array)
    bits = array.view(np.int16 if array.itemsize == 2 else np.uint8)
    return torch.from_numpy(bits).view(getattr(torch, array.dtype.name))


def copied(tensor: Any) -> Array:
    """Return a copy of any tensor that `TensorPlace` accepts."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return buffers.copy(as_array(plain))


def tensors_of(module: Any, path: str) -> Iterator[tuple[str, TensorPlace]]:
    """Yield the parameters and persistent buffers of a module by the names of its `state_dict`.

    A tensor with several names is there once, under the first.

    Raises
    ------
    TypeError
        For what can be saved only by the module itself.
    """
    own = {id(x) for x in (*module.parameters(), *module.buffers())}
    seen: set[tuple[Any, ...]] = set()
    for key, value in module.state_dict(keep_vars=True).items():
        name = f"{path}/{key}" if path else key
        if id(value) not in own:
            raise TypeError(
                f"Checkpoint: {name} must be a parameter or a buffer of {type(module).__name__}, whose state_dict "
                f"makes it of something else ({type(value).__name__}); pass that by a keyword of its own"
            )
        place = TensorPlace(value, name)
        if place.identity() not in seen:
            seen.add(place.identity())
            yield name, place


def pack(value: Any, path: str, keep: Keep) -> Any:
    """Return the state of an object of PyTorch as JSON; `keep` stores the tensors in it.

    Raises
    ------
    TypeError
        For what `unpack` could not give back with its exact type.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        items = [pack(item, f"{path}/{i}", keep) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind in _DICTS.values():
        for key in value:
            if type(key) not in _PLAIN:
                raise TypeError(f"Checkpoint: {path} must have keys of numbers or text, got {key!r}")
        return {kind.__name__: [[key, pack(item, f"{path}/{key}", keep)] for key, item in value.items()]}
    if hasattr(value, "data_ptr"):
        return {"tensor": keep(path, value)}
    raise TypeError(
        f"Checkpoint: {path} must be None, a bool, int, float, str, list, tuple, dict or tensor, "
        f"got {kind.__module__}.{kind.__qualname__}"
    )


def unpack(value: Any, find: Find) -> Any:
    """Return what `pack` was given. TypeError, LookupError or ValueError if it is nothing that `pack` returns."""
    if type(value) is list:
        return [unpack(item, find) for item in value]
    if type(value) is not dict:
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return as_tensor(find(inner))
    if kind == "tuple":
        return tuple(unpack(item, find) for item in inner)
    return _DICTS[kind]({key: unpack(item, find) for key, item in inner})


def state_of(thing: Any, keyword: str) -> Any:
    """Return the state of an object of PyTorch that holds no tensors."""

    def refuse(path: str, tensor: Any) -> str:
        raise TypeError(f"Checkpoint: {path} must not be a tensor; only optimizers and modules may hold these")

    return pack(thing.state_dict(), keyword, refuse)


def state_for(thing: Any, saved: Any) -> Any:
    """Return a saved state for an object of PyTorch; ValueError if it has other entries."""
    try:
        state = unpack(saved, dict[str, Array]().__getitem__)
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"the saved state is not that of a {type(thing).__name__} ({error})") from error
    present = thing.state_dict()
    if type(state) is not type(present) or (type(state) is dict and state.keys() != present.keys()):
        raise ValueError(f"the saved state is not that of a {type(thing).__name__}")
    return state


def generator_state(generator: Any) -> Array:
    """Return the state of a generator of PyTorch."""
    state: Array = generator.get_state().numpy()
    return state


def prepare_generator(generator: Any, saved: Any) -> Callable[[], object]:
    """Try a saved state, and return what gives it to a generator; ValueError if it is none."""
    torch = sys.modules["torch"]
    try:
        state, trial = torch.from_numpy(saved), torch.Generator(generator.device)
        trial.set_state(state)
        if not torch.equal(trial.get_state(), state):
            raise ValueError("a number is out of range")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the saved state is not that of a torch.Generator ({error})") from error
    return lambda: generator.set_state(state)
