"""PyTorch's optimizers as named tensors and JSON state, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastvar.buffers import Array
from fastvar.checkpoint.pytorch import Find, TensorPlace, pack, unpack
from fastvar.tables import count


class StoredOptimizer:
    """An optimizer of PyTorch whose parameters are named: by its `param_names`, else by their numbers.

    Attributes
    ----------
    arrays : dict of str to array
        The tensors of its state, by their names in a file.
    """

    def __init__(self, optimizer: Any, keyword: str) -> None:
        self.optimizer: Any = optimizer
        self._keyword, self._owner = keyword, type(optimizer).__name__
        self.arrays: dict[str, Array] = {}
        state = self.state_dict()
        self._groups = state["param_groups"]
        self._names = [[*(group.get("param_names") or map(str, group["params"]))] for group in self._groups]
        self._shapes = [[[*p.shape] for p in group["params"]] for group in optimizer.param_groups]
        flat = [name for of in self._names for name in of]
        if len({*flat}) != len(flat):
            raise ValueError(f"Checkpoint: two parameters of {keyword} have one name")
        self._number = dict(zip(flat, (n for group in self._groups for n in group["params"]), strict=True))
        name_of = {n: name for name, n in self._number.items()}
        if not name_of.keys() >= state["state"].keys():
            raise TypeError(f"Checkpoint: the state of {keyword} must be that of its parameters")
        self._slots = [
            [name_of[n], pack(of, f"{keyword}/{name_of[n]}", self._keep)] for n, of in state["state"].items()
        ]
        self._own = [self._packed(k, group) for k, group in enumerate(self._groups)]
        self._rest = {name: value for name, value in state.items() if name not in ("state", "param_groups")}
        self._more = {name: pack(value, f"{keyword}/{name}", self._keep) for name, value in self._rest.items()}

    def _keep(self, path: str, tensor: Any) -> str:
        if path in self.arrays:
            raise ValueError(f"Checkpoint: two tensors are named {path!r}")
        self.arrays[path] = TensorPlace(tensor, path)._array
        return path

    def _packed(self, k: int, group: dict[str, Any]) -> dict[str, Any]:
        return {
            name: pack(value, f"{self._keyword}/groups/{k}/{name}", self._keep)
            for name, value in group.items()
            if name not in ("params", "param_names")
        }

    def describe(self) -> dict[str, Any]:
        """Return its state as JSON, without the tensors."""
        of_groups = zip(self._names, self._shapes, self._own, strict=True)
        groups = [{"names": names, "shapes": shapes, "own": own} for names, shapes, own in of_groups]
        described = {"class_name": self._owner, "slots": self._slots, "groups": groups}
        return described | {"more": self._more} if self._more else described

    def differences(self, saved: Any, find: Find) -> list[str]:
        """Return the hyperparameters that differ from those that were saved."""
        more = [
            f"{self._keyword}.state_dict()[{name!r}]: "
            f"{self._rest[name]!r} here, {unpack(there, find)!r} in the file"
            for name, there in saved.get("more", {}).items()
            if name in self._more and there != self._more[name]
        ]
        return more + [
            f"{self._keyword}.param_groups[{k}][{name!r}]: "
            f"{group[name]!r} here, {unpack(there, find)!r} in the file"
            for k, (group, mine) in enumerate(zip(self._groups, self._own, strict=True))
            for name, there in saved["groups"][k]["own"].items()
            if name in mine and there != mine[name]
        ]

    def prepared(
        self, saved: Any, rename: Callable[[str], str | None], program: bool, find: Find
    ) -> dict[str, Any]:
        """Return the `state_dict` for what was saved of the same parameters, in any order within groups.

        Raises
        ------
        ValueError
            Naming what differs.
        """
        if saved["class_name"] != self._owner:
            raise ValueError(f"{self._owner}: the saved optimizer is of class {saved['class_name']}")
        if len(saved["groups"]) != len(self._groups):
            groups = count(len(saved["groups"]), "group")
            raise ValueError(f"{self._owner}: the saved optimizer has {groups}, not {len(self._groups)}")
        number: dict[str, int] = {}  # by the name in the file
        for k, group in enumerate(saved["groups"]):
            here = {rename(name) or name: name for name in self._names[k]}
            if odd := sorted(here.keys() ^ {*group["names"]}):
                raise ValueError(
                    f"{self._owner}: parameters of group {k} are not those saved: {', '.join(odd[:5])}"
                )
            for name, shape in zip(group["names"], group["shapes"], strict=True):
                mine = self._shapes[k][self._names[k].index(here[name])]
                if mine != shape:
                    raise ValueError(f"{self._owner}: {name} has shape {mine} here, {shape} in the file")
                number[name] = self._number[here[name]]
        more = {} if program else {name: unpack(x, find) for name, x in saved.get("more", {}).items()}
        return {
            **self._rest,
            **more,
            "state": {number[name]: unpack(of, find) for name, of in saved["slots"]},
            "param_groups": [
                mine if program else mine | {name: unpack(x, find) for name, x in group["own"].items()}
                for mine, group in zip(self._groups, saved["groups"], strict=True)
            ],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return that of the optimizer."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the optimizer a state; ValueError if it changes a dtype, and so the numbers."""
        self.optimizer.load_state_dict(state)
        here = self._dtypes(self.state_dict())
        for path, dtype in self._dtypes(state).items():
            if here.get(path) != dtype:
                raise ValueError(f"{path}: saved as {dtype}, but PyTorch loads it as {here.get(path)}")

    def _dtypes(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the dtypes of all tensors in the slots of a state."""
        name_of = {n: name for name, n in self._number.items()}
        found: dict[str, Any] = {}

        def keep(path: str, tensor: Any) -> str:
            found[path] = tensor.dtype
            return path

        for n, slots in state["state"].items():
            pack(slots, f"{self._keyword}/{name_of[n]}", keep)
        return found
