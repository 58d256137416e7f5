"""An optimizer whose steps are shared by all ranks: each updates a part of the variables, and keeps its state."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from operator import is_
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.distributed import own, rows, whole
from fastvar.distributed.across import Across
from fastvar.distributed.comparing import (
    Digests,
    described,
    digest_of_weights,
    hyperparameters,
    refuse_differences,
)
from fastvar.distributed.exchange import Exchange, Sum
from fastvar.distributed.micro_batches import MicroBatches
from fastvar.distributed.orders import ORDERS
from fastvar.distributed.partition import Partition, micro_batches
from fastvar.distributed.world import World
from fastvar.formats import name_of
from fastvar.optimizer import Optimizer
from fastvar.optimizer.groups import Group
from fastvar.optimizer.state import State
from fastvar.optimizer.trees import arranged, check_variables, parsed
from fastvar.optimizers import LBFGS, LossScaleOptimizer
from fastvar.place import Structure, label
from fastvar.tables import count
from fastvar.variable import Variable


class Agreed(NamedTuple):
    """What ranks agree on before a step.

    Attributes
    ----------
    there : ndarray of bool
        Which variables have a gradient.
    scale : float
        What the sums are multiplied with.
    rows : list of lists of lists of int
        For each rank and each sum that remains on it, the numbers of rows of sparse gradients.
    """

    there: Array
    scale: float
    rows: list[list[list[int]]]


class Deferred(Protocol):
    """What all ranks do together at the end of a step, as soon as all are ready."""

    def ready(self) -> bool: ...
    def act(self) -> None: ...


class Distributed:
    """Step an optimizer on all ranks together, with the same bits on any number of them.

    A step is one update from the mean gradient of `micro_batches` micro-batches. Each rank computes those of
    `micro_batches()`. Their gradients are added in an order that depends on their numbers alone. Each rank then
    updates a part of the variables, whose slots only it keeps, and all get the new weights.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer, not yet built. Set its hyperparameters at any time, the same on all ranks.
    world : World
        The ranks.
    micro_batches : int
        The number of micro-batches of a step, >= 1.
    order : {"tree", "sequence"}
        In which order gradients are added. "tree" adds pairs, then pairs of pairs, so ranks send few sums.
        "sequence" adds one after another, and gives the bits of `gradient_accumulation_steps=micro_batches` in one
        process. Then ranks but the first send each gradient, and keep all of a step.
    compare_every : int
        Before every this many steps, ranks compare digests of their weights, >= 1.

    Notes
    -----
    Without counts, a step divides the sum by `micro_batches`, also if some have no gradient, as accumulation does.

    Rules with norms or matrices, rules in NumPy, slots in 16 or 8 bits, and constraints that need whole variables
    make ranks update whole variables. Others cut variables anywhere, so that all ranks have the same share.

    Examples
    --------
    >>> import fastvar as fv, fastvar.distributed as fd, numpy as np
    >>> def program(world):
    ...     w = fv.Variable([1.0, 2.0], name="w")
    ...     optimizer = fd.Distributed(fv.optimizers.SGD(0.5), world, micro_batches=4)
    ...     optimizer.build([w])
    ...     for i in optimizer.micro_batches():
    ...         optimizer.add([np.array([i, 1.0])])
    ...     optimizer.step()
    ...     return w.numpy().tolist()
    >>> fd.simulate(2, program)
    [[0.25, 1.5], [0.25, 1.5]]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        world: World,
        micro_batches: int,
        order: str = "tree",
        compare_every: int = 100,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{owner}: optimizer must be an Optimizer, got {type(optimizer).__name__}")
        if not isinstance(world, World):
            raise TypeError(f"{owner}: world must be that of fastvar.distributed.world(), got {world!r}")
        _refuse_kinds(owner, optimizer)
        if order not in ORDERS:
            raise ValueError(f"{owner}: order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}")
        self.optimizer: Optimizer = optimizer
        self.world: World = world
        self.order: str = order
        self._total = _count(owner, "micro_batches", micro_batches)
        self._compare_every = _count(owner, "compare_every", compare_every)
        self._whole = State()  # of the variables; that of the optimizer is of this rank's parts
        self._tree: Any = None
        self._sums: MicroBatches | None = None  # made by `build`
        self.deferred: list[Deferred] = []

    @property
    def _owner(self) -> str:
        return f"{type(self).__name__}({self.optimizer._owner})"

    @property
    def iterations(self) -> int:
        """The number of steps."""
        return self.optimizer._steps

    @property
    def variables(self) -> list[Variable]:
        """The variables, in the order of `build`."""
        return [*self._whole.variables]

    # Building.

    def build(self, variables: Any, sparse: Iterable[Variable] = ()) -> None:
        """Set the variables to update, and give all ranks the weights of rank 0.

        Parameters
        ----------
        variables : tree or iterable of Variable or dict
            As for `Optimizer.build`.
        sparse : iterable of Variable
            Those of them whose gradients are `IndexedSlices` in all micro-batches. Then only the rows that some
            micro-batch names are sent and updated, and one rank updates the whole variable.

        Raises
        ------
        TypeError, ValueError
            If an optimizer cannot update them, or they differ between ranks: in names, shapes or dtypes, or in the
            hyperparameters of the optimizer.
        """
        if self._whole.variables:
            raise ValueError(f"{self._owner}: is built already")
        inner = self.optimizer
        tree, grouped = parsed(self._owner, variables, inner.group_keys)
        check_variables(self._owner, grouped, inner.master)
        flat = [v for group in grouped for v in group["variables"]]
        description = {
            "variables": {
                label(v, i): [[*v.shape], name_of(v.dtype), v.master is not None] for i, v in enumerate(flat)
            },
            "micro_batches": self._total,
            "order": self.order,
            "sparse": _numbers_of(self._owner, sparse, flat),
            **described(inner, flat),
        }
        refuse_differences(self.world, self._owner, "build", description)
        self._sparse: list[int] = description["sparse"]
        rows.refuse_kinds(self._owner, inner, {i: flat[i] for i in self._sparse})
        self._whole.take([Group(inner, *_parted(group)) for group in grouped])
        self._cut = whole.reason(inner, flat) is None
        order, meeting = ORDERS[self.order], self.world.meeting
        uncut = [not self._cut or i in self._sparse or v.dtype not in buffers.REAL for i, v in enumerate(flat)]
        partition = Partition([v.size for v in flat], meeting.size, uncut)
        self._exchange = Exchange(meeting, order, self._total, flat, partition, self._sparse)
        self._rows = rows.RowExchange(meeting, order, self._total, flat, partition, self._sparse)
        self._digests = Digests()
        self._version: object = Structure.version  # of what the parts have last followed
        self._build_parts(grouped, uncut)
        self._hyper = hyperparameters(described(inner, flat))
        self._tree = tree
        if all(map(is_, tree.variables, flat)):
            tree.variables = self._whole.variables
        self._exchange.give_weights()
        numbers = micro_batches(self._total, meeting.size, meeting.rank)
        self._sums = MicroBatches(self._owner, order, self._total, numbers, flat, self._sparse)

    def _build_parts(self, grouped: Sequence[dict[str, Any]], uncut: list[bool]) -> None:
        """Build the optimizer on this rank's parts of the variables."""
        inner, variables = self.optimizer, self._whole.variables
        parts = self._exchange.mine
        self._mine = [own.part(*of_one) for of_one in zip(variables, parts, uncut, strict=True)]
        self._lengths = np.array([v.size for v in variables], np.int64)  # of gradients
        for_all = bool(inner.initial_numbers())
        inner._state.across = lambda plan: Across(plan, self.world.meeting, self._lengths, parts, for_all)
        listed, pattern = inner._excluded
        inner._excluded = ([self._mine[self._whole.index[id(v)]] for v in listed], pattern)
        remaining = iter(self._mine)
        key = inner.group_keys[0]
        inner.build([set_ | {key: [next(remaining) for _ in held]} for held, set_ in map(_parted, grouped)])
        self._masters: list[Variable | None] = [None] * len(variables)
        self._link_masters()

    def _link_masters(self) -> None:
        """Let the masters of this rank's parts be parts of the masters of the variables."""
        wanted = {id(part) for group in self.optimizer.groups if group.master for part in group.variables}
        for i, (v, part) in enumerate(self._pairs()):
            if id(part) in wanted:
                v._keep_master()
            if (master := v._master) is not None and master is not self._masters[i]:
                self._masters[i] = master
                own.take_master(part, master)
                self._exchange.forget()

    def _pairs(self) -> list[tuple[Variable, Variable]]:
        """Return each variable with this rank's part of it."""
        return [*zip(self._whole.variables, self._mine, strict=True)]

    # Gradients.

    def micro_batches(self) -> Iterator[int]:
        """Yield the numbers of this rank's micro-batches of a step, from 0. Call `add` for each that has data."""
        return iter(self._built())

    def _built(self) -> MicroBatches:
        if self._sums is None:
            raise ValueError(f"{self._owner}: call build(variables) first")
        return self._sums

    def add(self, grads: Any, count: int | None = None) -> None:
        """Add the gradients of the current micro-batch, within a loop over `micro_batches()`.

        Parameters
        ----------
        grads : tree or sequence of array_like, IndexedSlices or None
            As for `Optimizer.apply`. Sparse gradients of variables that `build` was not told of are added to dense
            sums, as in accumulation.
        count : int, optional
            Of how many examples (or tokens) they are the mean, >= 0. Then the step uses the mean over all examples
            of all ranks. Give it with all micro-batches or with none. With 0, nothing is added.

        Raises
        ------
        TypeError, ValueError
            For a bad gradient; the message names the variable, and nothing has changed.
        """
        sums = self._built()
        if count is not None:
            count = _count(self._owner, "count", count, 0)
        keys = self.optimizer.group_keys
        gradients = arranged(self._owner, self._tree, self._whole, keys, grads, None)
        if len(gradients) == len(self._whole.variables):
            pairs = zip(gradients, self._whole.variables, strict=True)
            gradients = [g if v.trainable else None for g, v in pairs]
        sums.add(gradients, count)

    # Stepping.

    def step(self) -> None:
        """Update the variables on all ranks, once.

        Raises
        ------
        RuntimeError
            If micro-batches of this rank are missing.
        ValueError
            If ranks differ in their hyperparameters, no variable has a gradient, counts are given for some
            micro-batches only, or `nonfinite="raise"` refuses the gradients. On all ranks alike; nothing has
            changed, and the gradients are dropped.
        """
        sums = self._built()
        held = sums.finished()
        try:
            before = self.iterations
            agreed = self._agree(sums, held)
            self.optimizer._apply(self._gradients(held, agreed), self.optimizer._state.variables, False)
            if self.iterations != before:  # not skipped
                self._share_weights(agreed.there)
        finally:
            sums.release()
        for one in self._due:
            one.act()

    def _agree(self, sums: MicroBatches, held: list[Sum]) -> Agreed:
        """Agree with all ranks on a step."""
        variables, what = self._whole.variables, f"step {self.iterations + 1}"
        description = described(self.optimizer, variables)
        mine = {
            "digest": self._digests.of(description),
            "counts": sums.counts,
            "rows": [[0 if r is None else len(r.rows) for r in sum_.rows] for sum_ in held],
            "present": None if all(sums.present) else np.packbits(sums.present).tobytes().hex(),
            "weights": None if self.iterations % self._compare_every else digest_of_weights(variables),
            "ready": [one.ready() for one in self.deferred],
        }
        said = self.world.agree(what, **mine)
        of_ranks = zip(*(one["ready"] for one in said), strict=True)
        self._due = [one for one, ready in zip(self.deferred, of_ranks, strict=True) if all(ready)]
        if any(one["digest"] != said[0]["digest"] for one in said):
            refuse_differences(self.world, self._owner, what, description)
        for rank, one in enumerate(said):
            if one["weights"] != said[0]["weights"]:
                raise RuntimeError(
                    f"{self._owner}: {what}: rank {rank} has other weights than rank 0; "
                    "write them on all ranks alike"
                )
        self._follow_changes(hyperparameters(description))
        counts = [sum(of_ranks) for of_ranks in zip(*(one["counts"] for one in said), strict=True)]
        there = self._there([one["present"] for one in said])
        return Agreed(there, self._scale(*counts), [one["rows"] for one in said])

    def _gradients(self, held: list[Sum], agreed: Agreed) -> list[Any]:
        """Return the mean gradient of this rank's part of each variable."""
        there, scale, counts = agreed
        found: list[Any] = [*self._exchange.mean_of(held, self._dense(there), scale)]
        found = [None if g is None else g.reshape(v.shape) for g, v in zip(found, self._mine, strict=True)]
        of_rows = self._rows.mean_of([sum_.rows for sum_ in held], counts, there, scale)
        for i in self._sparse:
            self._lengths[i] = self._whole.variables[i].size
        for i, n in self._rows.elements().items():
            self._lengths[i] = n
            found[i] = of_rows.get(i, self._mine[i].value)  # the part of a rank that is not its owner is empty
        return found

    def _share_weights(self, there: Array) -> None:
        """Give all ranks what a step with these gradients has changed."""
        if self.optimizer.ema_overwrite_frequency is not None:  # all variables may have been overwritten
            self._exchange.share_weights(np.array([v.trainable for v in self._whole.variables]))
            return
        self._exchange.share_weights(self._dense(there))
        self._rows.share_weights()

    def _dense(self, there: Array) -> Array:
        """Return which of the variables with a gradient have one that is not sparse."""
        if not self._sparse:
            return there
        dense = there.copy()
        dense[self._sparse] = False
        return dense

    def _there(self, masks: list[str | None]) -> Array:
        """Return which variables have a gradient on any rank."""
        n = len(self._whole.variables)
        if None in masks:
            return np.ones(n, bool)
        bits = [np.unpackbits(np.frombuffer(bytes.fromhex(mask or ""), np.uint8))[:n] for mask in {*masks}]
        there: Array = np.logical_or.reduce(bits).astype(bool)
        return there

    def _scale(self, added: int, counted: int, examples: int) -> float:
        """Return what the sum of gradients is multiplied with, for their mean."""
        if not counted:
            return 1 / self._total
        if counted != added:
            raise ValueError(
                f"{self._owner}: count must be given with all gradients of a step or with none, got {counted} "
                f"of {added}"
            )
        if not examples:
            raise ValueError(f"{self._owner}: the counts of all micro-batches of a step are 0")
        return 1 / examples

    def _follow_changes(self, hyper: list[Any]) -> None:
        """Give the parts what has changed of the variables, and check that they may still be cut."""
        if self._version is Structure.version and hyper == self._hyper:
            return
        _refuse_accumulation(self._owner, self.optimizer)
        reason = whole.reason(self.optimizer, self._whole.variables)
        if reason and self._cut:
            raise ValueError(f"{self._owner}: {reason} needs whole variables; set it before build")
        for v, part in zip(self._whole.variables, self._mine, strict=True):
            wanted = {
                "trainable": v.trainable,
                "regularizer": v.regularizer,
                "constraint": own.constraint(v, part.value),
            }
            for name, value in wanted.items():
                if getattr(part, name) is not value:
                    setattr(part, name, value)
        self._link_masters()
        self._version, self._hyper = Structure.version, hyper

    # Averages.

    def finalize_variable_values(self) -> None:
        """Overwrite the variables with their moving averages on all ranks, where `use_ema` keeps them."""
        self.world.agree("finalize_variable_values")
        self.optimizer.finalize_variable_values()
        self._exchange.share_weights()

    def __repr__(self) -> str:
        steps = count(self.iterations, "step")
        return f"<{self._owner} on rank {self.world.rank} of {self.world.size}, {steps}>"


def _refuse_kinds(owner: str, optimizer: Optimizer) -> None:
    if isinstance(optimizer, LossScaleOptimizer):
        raise TypeError(
            f"{owner}: takes no LossScaleOptimizer: ranks would change its scale apart; use "
            "loss_scale_factor and nonfinite='skip' of its inner optimizer"
        )
    if isinstance(optimizer, LBFGS):
        raise TypeError(f"{owner}: takes no LBFGS: its line search needs the loss of all data at each trial")
    _refuse_accumulation(owner, optimizer)
    if optimizer._state.variables:
        raise ValueError(f"{owner}: the optimizer is already built; give a new one, and call build of {owner}")


def _refuse_accumulation(owner: str, optimizer: Optimizer) -> None:
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            f"{owner}: gradient_accumulation_steps must be None, got {optimizer.gradient_accumulation_steps}: "
            "micro_batches accumulates"
        )


def _count(owner: str, name: str, value: Any, low: int = 1) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{owner}: {name} must be an int, got {value!r}")
    if (value := operator.index(value)) < low:
        raise ValueError(f"{owner}: {name} must be >= {low}, got {value}")
    return int(value)


def _parted(group: dict[str, Any]) -> tuple[list[Variable], dict[str, Any]]:
    return group["variables"], {name: value for name, value in group.items() if name != "variables"}


def _numbers_of(owner: str, some: Iterable[Variable], variables: list[Variable]) -> list[int]:
    """Return the numbers of some of the variables."""
    numbers = {id(v): i for i, v in enumerate(variables)}
    for v in (listed := [*some]):
        if id(v) not in numbers:
            raise ValueError(f"{owner}: sparse must hold variables that build is given, got {v!r}")
    return sorted({numbers[id(v)] for v in listed})
