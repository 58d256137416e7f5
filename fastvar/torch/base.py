"""The base class of optimizers with PyTorch's meaning: its names, `param_groups` and closures."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, ClassVar

from fastvar import buffers
from fastvar.hyper import Number, flag, number
from fastvar.module import as_tree, children
from fastvar.optimizer import Optimizer
from fastvar.optimizer.groups import Group, names_of
from fastvar.optimizer.options import Options
from fastvar.optimizer.trees import refuse_tensors
from fastvar.tables import Shown, Table
from fastvar.variable import Variable


class TorchOptimizer(Optimizer):
    """Base of the optimizers with PyTorch's names, defaults and meaning, on fastvar's variables.

    A step changes the sign of the gradient if it maximizes, adds `weight_decay` times the weights, and applies the
    rule. All options of `fastvar.Optimizer` work too, in its order: `clipnorm` and the like clip the gradient with
    the decay in it, while `torch.nn.utils.clip_grad_norm_` before a step clips it without.

    Parameters
    ----------
    params : tree or iterable of Variable or dict, optional
        The variables to update. Dicts with "params" are groups: `{"params": [...], "lr": 1e-4, ...}`. By default,
        the variables of the first `apply` or `build`.
    lr : float or callable
        Step size, >= 0; or a schedule, a function of the iteration (from 0).
    weight_decay : float
        The multiple of the weights to add to the gradient, >= 0, by default 0.
    maximize : bool
        Whether to maximize the loss instead of minimizing it.
    **options
        Options of every optimizer, see `fastvar.Optimizer`.

    Notes
    -----
    As in PyTorch, each variable has a count of its own: the updates in which it had a gradient. `iterations` and
    schedules count all.

    Differences from PyTorch: a step in which no variable has a gradient is an error; flags are the same for all
    groups; `params` are fixed; no `foreach`, `fused`, `capturable`, `differentiable`, which fastvar does not need.

    Examples
    --------
    >>> import fastvar as fv, fastvar.torch
    >>> w, b = fv.Variable([1.0, 2.0]), fv.Variable([0.0])
    >>> optimizer = fv.torch.SGD([{"params": [w]}, {"params": [b], "lr": 1.0}], lr=0.5)
    >>> for group in optimizer.param_groups:
    ...     group["lr"] *= 0.5
    >>> w.grad, b.grad = [1.0, 1.0], [1.0]
    >>> optimizer.step()
    >>> w.value, b.value
    (array([0.75, 1.75]), array([-0.5]))
    """

    namespace = "torch."
    counts_per_variable = True
    group_keys: ClassVar[tuple[str, ...]] = ("params", "variables")
    learning_rate = None  # type: ignore[assignment]
    lr: Number = number(default=1e-3, low=0)
    weight_decay: Number = number(default=0.0, low=0, kw_only=True)
    maximize: bool = flag(default=False, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
        signature = cls._signature.replace(parameters=[first, *cls._signature.parameters.values()])
        cls.__signature__ = signature

    def __init__(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if params is None:
            return
        refuse_tensors(self._owner, [params])
        if isinstance(params, Variable) or (children(params) is None and not isinstance(params, Iterable)):
            raise TypeError(f"{self._owner}: params must be a list of variables or of groups, got {params!r}")
        params = as_tree(params, f"{self._owner}: params")
        if not list(children(params) or ()):
            raise ValueError(f"{self._owner}: params must not be empty")
        self.build(params)

    def gradient_sign(self, hyper: Any) -> float:
        return -1.0 if hyper.maximize else 1.0

    def decay_rate(self, hyper: Any) -> float:
        return 0.0

    def l2_rate(self, hyper: Any) -> float:
        return float(hyper.weight_decay)

    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, zero_grad: bool = False
    ) -> Any:
        """Update once from the `grad` of every variable, and return the loss.

        Parameters
        ----------
        closure : callable, optional
            Called first. It sets every `grad` and returns the loss.
        zero_grad : bool
            Whether to zero the gradients in the same pass.

        Raises
        ------
        ValueError
            If no variable has a `grad`, or with `zero_grad` one cannot be zeroed in place.
        """
        if closure is not None and not callable(closure):
            raise TypeError(f"{self._owner}: closure must be callable, got {closure!r}")
        loss = None if closure is None else closure()
        super().step(zero_grad)
        return loss

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups, which work like dicts: `optimizer.param_groups[0]["lr"] = 0.1`."""
        return [ParamGroup(self, group) for group in self.groups]

    @property
    def defaults(self) -> dict[str, Any]:
        """The hyperparameters of groups that do not set their own, by PyTorch's names."""
        return {name: getattr(self, name) for name in self._torch_names()}

    @classmethod
    def _torch_names(cls) -> list[str]:
        own = [name for name in cls.parameters if name not in Options.parameters or name == "weight_decay"]
        return sorted(own, key=[*cls._signature.parameters].index)

    def _carried(self, what: str, hyper: Any, t: int, first: float, after: Callable[[float], float]) -> float:
        """Return the number that update t - 1 left to variables, `first` at the first, and leave `after` of it.

        It is kept with the optimizer's state (see `carried`). Asked again at the same update it says the same, so
        that an update that failed or was skipped may be made again.
        """
        places, numbers = hyper.places, self._state.numbers
        at, here, left = (numbers[name] for name in _carried_names(what))
        i = places.start if type(places) is slice else places[0]  # all have the same
        number = first if t == 1 else (here if at[i] == t else left).item(i)
        at[places], here[places], left[places] = t, number, after(number)
        return number

    def carried(self, what: str) -> dict[str, float]:
        """Return the numbers per variable of an optimizer that carries on one from update to update."""
        return dict.fromkeys(_carried_names(what), 0.0)

    def valid_number(self, name: str, number: Any) -> bool:
        return buffers.are_counts(number) if name.endswith(" at") else super().valid_number(name, number)

    def numbers_of_today(self, numbers: dict[str, Any], sizes: list[int]) -> dict[str, Any]:
        """Return the numbers of a file. In older ones a group has one where now each of its variables has one."""
        numbers = dict(numbers)
        for name in self.initial_numbers_per_variable():
            what, space, suffix = name.partition(" ")
            old = [f"{what} {group}{space}{suffix}" for group in range(len(sizes))]
            if all(each in numbers for each in old):
                of_groups = [[numbers.pop(each)] * size for each, size in zip(old, sizes, strict=True)]
                numbers[name] = [value for of_group in of_groups for value in of_group]
        return numbers


def _carried_names(what: str) -> tuple[str, str, str]:
    return f"{what} at", what, f"{what} next"


class ParamGroup(Shown, MutableMapping[str, Any]):
    """A group of an optimizer as a dict, like PyTorch's: "params", and hyperparameters by name.

    It also keeps other keys, such as the "initial_lr" of PyTorch's schedulers. Checkpoints leave these out.
    """

    def __init__(self, optimizer: TorchOptimizer, group: Group[Variable]) -> None:
        self._optimizer, self._group = optimizer, group
        self._notes: dict[str, Any] = vars(group).setdefault("_notes", {})

    def __getitem__(self, key: str) -> Any:
        if key == "params":
            return self._group.variables
        if key not in self._optimizer._torch_names():
            return self._notes[key]
        of = self._group if self._optimizer.parameters[key].per_group else self._optimizer
        return getattr(of, key)

    def __setitem__(self, key: str, value: Any) -> None:
        owner = self._optimizer._owner
        if key == "params":
            raise ValueError(f"{owner}: params are fixed; make a new optimizer to change them")
        if key not in self._optimizer._torch_names():
            if intended := self._intended(key):
                raise ValueError(f"{owner}: a group has no {key!r}, did you mean {intended!r}?")
            self._notes[key] = value
        elif self._optimizer.parameters[key].per_group:
            setattr(self._group, key, value)
        else:
            raise ValueError(f"{owner}: {key} is the same for all groups; set it on the optimizer")

    def _intended(self, key: str) -> str | None:
        """Return the hyperparameter that a key misspells, or None: schedulers add keys such as "max_momentum"."""
        names = {name: name for name in self._optimizer._torch_names()} | self._optimizer._known_aliases()
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.75)
        return names[close[0]] if close and not key.endswith(f"_{close[0]}") else None

    def __delitem__(self, key: str) -> None:
        if key in self and key not in self._notes:
            raise ValueError(f"{self._optimizer._owner}: {key} must stay")
        del self._notes[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["params", *self._optimizer._torch_names(), *self._notes])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _table(self) -> Table:
        schedules = self._group.schedules
        rows = [(key, str(self[key]), schedules.get(key)) for key in self if key != "params"]
        return Table(f"ParamGroup of {names_of(self._group.variables)}", ("", "", ""), rows)
