"""Plans, stages and sums in plain typed NumPy: the specification, and the oracle of the compiled ones.

`Plan` here and the compiled `Plan` are interchangeable and agree bit for bit. A rule that a user writes in
NumPy runs here too, with every stage around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.kernels.stages import BLOCK, LANES, neutral
from fastvar.slices import Rows

Block = Callable[..., None]


class Rule(NamedTuple):
    """An update rule: `block(w, g, c, *slots)` writes `w` and the slots in place, and reads scalars from `c`."""

    block: Block
    slots: tuple[str, ...]  # names
    scalars: tuple[str, ...]
    whole: bool = False  # it takes the scalars as they are, not in the arithmetic type

    def apply(self, w: Array, g: Array, slots: Sequence[Array], scalars: Sequence[Any]) -> None:
        """Run the rule with scalars in the order of their names."""
        numbers = scalars if self.whole else [w.dtype.type(scalar) for scalar in scalars]
        self.block(w, g, SimpleNamespace(**dict(zip(self.scalars, numbers, strict=True))), *slots)


def conditioned(g: Array, w: Array, s: Any) -> Array:
    """Return the gradient in the arithmetic type of `w`, after the stages that come before a rule."""
    real = w.dtype.type
    x = penalized(g, w, s)
    clip, limit = real(s["clip"]), real(s["limit"])
    if clip != 1:
        x = x * clip
    return np.where(x < -limit, -limit, np.where(x > limit, limit, x))


def penalized(g: Array, w: Array, s: Any) -> Array:
    """Return the gradient in the arithmetic type of `w`, before it is clipped."""
    real = w.dtype.type
    x: Array = g.astype(w.dtype) * real(s["scale"])
    l2, l1 = real(s["l2"]), real(s["l1"])
    if l2 != 0:
        x = x + l2 * w
    if l1 != 0:
        x = x + np.where(w > 0, l1, np.where(w < 0, -l1, real(0)))
    return x


def finish(w: Array, average: Array | None, s: Any, updated: bool) -> None:
    """Run the stages that come after a rule."""
    real = w.dtype.type
    if average is not None:
        average[...] = real(s["average"]) * average + real(1 - s["average"]) * w
        if s["overwrite"] != 0:
            w[...] = average
    if updated and s["nonneg"] != 0:
        w[...] = np.where(w < 0, real(0), w)


class Plan:
    """All variables of a step and one rule.

    Parameters
    ----------
    owner : str
        Begins every error message.
    rule : Rule or sequence of Rule
        From `RULES`, or a user's own; one for all, or one per group.
    names : sequence of str
        One per variable, for error messages.
    weights : sequence of ndarray
        float32 or float64, C-contiguous, writable; updated in place.
    slots : sequence of sequences of ndarray
        State arrays of each variable, of its shape and dtype.
    groups : sequence of int
        The group of each variable, whose scalars it takes.
    averages : sequence of (ndarray or None), optional
        Where the moving averages of the weights are kept.
    directions : sequence of ndarray, optional
        The rules write here what they would have added to the weights; these stay as they are, and the stages
        behind a rule (decay, average, ...) do not run.
    rows : bool
        Whether gradients may be `IndexedSlices`; not with `directions`.

    Attributes
    ----------
    stages : ndarray
        One record of `stages.STAGES` per variable, to be filled by the optimizer.
    """

    def __init__(
        self,
        owner: str,
        rule: Rule | Sequence[Rule],
        names: Sequence[str],
        weights: Iterable[Array],
        slots: Iterable[Sequence[Array]],
        groups: Iterable[int],
        averages: Iterable[Array | None] | None = None,
        directions: Iterable[Array] | None = None,
        rows: bool = True,
    ) -> None:
        self.owner, self.names = owner, list(names)
        self._rows = rows and directions is None
        self._table = buffers.plan_table(owner, rule, self.names, weights, slots, groups, averages, directions)
        self._held: list[Array | Rows | None] | None = None
        self._zero = False
        self.stages = neutral(len(self._table.weights))
        self._rule_of = [self._table.rules[group] for group in self._table.group_of]
        self._cohort_of, self._rules = self._table.group_of, self._table.rules

    def share_scalars(self, cohort_of: Iterable[int]) -> None:
        """Part the variables into cohorts in place of groups: `run` then takes the scalars of each cohort.

        Those of a cohort have one rule. A variable in no cohort (-1) must not have a gradient.
        """
        cohorts = [int(cohort) for cohort in cohort_of]
        self._rules = buffers.cohort_rules(self.owner, cohorts, self._rule_of)
        self._cohort_of = cohorts

    def bind(self, gradients: Iterable[Any], zero: bool = False) -> int:
        """Check the gradients of the next step, hold them, and return how many are not None (no update).

        Gradients are whatever `buffers.as_gradient` reads, or an array of `buffers.MEMORY`: raw memory, which the
        caller keeps alive until the step has run. With `zero` they are zeroed once they are read.

        Raises
        ------
        TypeError, ValueError
            Naming the variable, if a gradient cannot be used; nothing has been written then.
        """
        self._held = None
        given = list(gradients)
        if len(given) != len(self._table.weights):
            raise ValueError(f"{self.owner}: must be given {len(self._table.weights)} gradients, got {len(given)}")
        held: list[Array | Rows | None] = []
        labels = [f"{self.owner}: gradient of {name}" for name in self.names]
        if isinstance(gradients, np.ndarray) and gradients.dtype is buffers.MEMORY:
            given = [*map(buffers.gradient_at, gradients, self._table.weights, labels)]
        for gradient, like, label in zip(given, self._table.weights, labels, strict=True):
            array = None
            if gradient is not None:
                array = buffers.as_gradient(gradient, like, label, self._rows)
                array = merge(array, like.dtype == np.float64) if isinstance(array, Rows) else array
                self._table.extents.refuse(array.values if isinstance(array, Rows) else array, label)
                if zero and not (array is gradient and array.flags.writeable):
                    buffers.refuse_zeroing(label)
            held.append(array)
        for array, like, label in zip(held, self._table.weights, labels, strict=True):
            values = array.values if isinstance(array, Rows) else array
            shape = (len(array.rows), *like.shape[1:]) if isinstance(array, Rows) else like.shape
            if values is not None and values.shape != shape:  # resized by foreign code that read a later one
                buffers.refuse_changed(label)
        if zero:
            buffers.check_disjoint(zip(labels, held, strict=True))
        self._held, self._zero = held, zero
        return sum(g is not None for g in held)

    def _bound(self) -> list[Array | Rows | None]:
        if self._held is None:
            raise RuntimeError(f"{self.owner}: bind gradients first")
        return self._held

    def sums_of_squares(self, each: bool, threads: int = 1) -> Array:
        """Sum the squares of the conditioned gradients: one sum per variable, or one of all.

        In double precision, in fixed blocks and lanes of the concatenation of all variables, so that the
        result depends neither on threads nor, of all, on how the elements are split into variables.
        """
        parts = []
        with np.errstate(all="ignore"):
            for g, w, s in zip(self._bound(), self._table.weights, self.stages, strict=True):
                if g is None:
                    parts.append(np.zeros(w.size))
                    continue
                x = conditioned(g.values, w[g.rows], s) if isinstance(g, Rows) else conditioned(g, w, s)
                parts.append(x.astype(np.float64).reshape(-1))
            groups = parts if each else [np.concatenate([np.empty(0), *parts])]
            return np.array([block_dot(x, x) for x in groups])

    def run(
        self,
        scalars: Sequence[Sequence[float]],
        threads: int = 1,
        count: list[int] | None = None,
        commits: Sequence[tuple[Array, Array]] | None = None,
        guard: bool = False,
    ) -> list[tuple[int, bool]]:
        """Apply the rules with the scalars of each group or cohort, and every stage; release the gradients.

        Each of `commits` is an array and what it becomes, and `count[0]` is counted up, in the same breath: no
        signal can come between in the compiled twin.

        With `guard` nothing changes if a gradient is not finite before it is clipped, or if anything that was
        finite would be so no more. Returned are pairs of what is wrong: the number of a variable, and whether it
        is the gradient.
        """
        held = self._bound()
        rules = self._rules
        if len(scalars) != len(rules):
            raise ValueError(f"{self.owner}: must be given scalars for {len(rules)} groups, got {len(scalars)}")
        for row, rule in zip(scalars, rules, strict=True):
            if len(row) != len(rule.scalars):
                buffers.refuse_scalars(self.owner, rule, row)
        for place, value in commits or ():
            buffers.check_update(place, value, f"{self.owner}: state")
        self._held = None
        before = [[None if a is None else a.copy() for a in of] for of in self._table.arrays] if guard else []
        with np.errstate(all="ignore"):
            for i, g in enumerate(held):
                cohort = self._cohort_of[i]
                self._advance(i, g, [0.0] * len(self._rule_of[i].scalars) if cohort == -1 else scalars[cohort])
            if guard and (bad := self._spoilt(held, before)):
                return bad
        if self._zero:
            for g in held:
                if isinstance(g, np.ndarray):
                    g[...] = 0
        for place, value in commits or ():
            place[...] = value
        if count is not None:
            count[0] += 1
        return []

    def _spoilt(self, held: list[Array | Rows | None], before: list[list[Any]]) -> list[tuple[int, bool]]:
        """Put everything back if something is spoilt, and return what."""
        table = self._table
        for g, (_, _, direction, *_) in zip(held, before, strict=True):
            if g is not None and direction is not None:  # what was there before has no meaning
                direction[...] = 0
        bad = {i: False for i, of in enumerate(before) if any(map(spoilt, table.arrays[i], of))}
        for i, (g, old, s) in enumerate(zip(held, before, self.stages, strict=True)):
            w = old[0][g.rows] if isinstance(g, Rows) else old[0]
            values = g.values if isinstance(g, Rows) else g
            if values is not None and not np.isfinite(penalized(values, w, s)).all():
                bad[i] = True
        for arrays, of in zip(table.arrays, before, strict=True) if bad else ():
            for array, old in zip(arrays, of, strict=True):
                if array is not None:
                    array[...] = old
        return sorted(bad.items())

    def _advance(self, i: int, g: Array | Rows | None, scalars: Sequence[float]) -> None:
        rule, arrays = self._rule_of[i], self._table.arrays[i]
        if not isinstance(g, Rows):
            update(rule, g, arrays, self.stages[i], scalars)
            return
        touched = [array if array is None else array[g.rows] for array in arrays]
        update(rule, g.values, touched, self.stages[i], scalars)
        for array, part in zip(arrays, touched, strict=True):
            if array is not None:
                array[g.rows] = part


def update(rule: Rule, g: Array | None, arrays: Sequence[Any], s: Any, scalars: Sequence[float]) -> None:
    """Update weights, average, direction and slots of one variable, or of some of its rows."""
    w, average, direction, *slots = arrays
    if direction is not None:
        if g is not None:
            x = conditioned(g, w, s)
            direction[...] = 0
            rule.apply(direction, x, slots, scalars)
        return
    if g is not None:
        x = conditioned(g, w, s)
        if s["decay"] != 0:
            w[...] = w - w.dtype.type(s["decay"]) * w
        rule.apply(w, x, slots, scalars)
    finish(w, average, s, g is not None)


def merge(gradient: Rows, wide: bool) -> Rows:
    """Return a sparse gradient with every row once, in rising order; values of one row are summed in theirs.

    Values of no native format are summed in float64 if `wide`, and in float32 otherwise.
    """
    rows, values = gradient
    buffers.check_rows("merge", rows, values)
    if (rows[1:] > rows[:-1]).all():
        return gradient
    order = np.argsort(rows, kind="stable")
    rows, values = rows[order], values[order]
    begins = np.append(True, rows[1:] > rows[:-1])
    with np.errstate(all="ignore"):
        if values.dtype not in buffers.REAL:
            values = values.astype(np.float64 if wide else np.float32)
        summed = values[begins]
        np.add.at(summed, np.cumsum(begins)[~begins] - 1, values[~begins])
    return Rows(rows[begins], summed)


def spoilt(now: Any, before: Any) -> bool:
    """Return whether anything that was finite is so no more."""
    return now is not None and bool((np.isfinite(before) & ~np.isfinite(now)).any())


def block_dot(x: Array, y: Array) -> float:
    """Return the dot product of flat float64 arrays, in `LANES` lanes within blocks of `BLOCK`."""
    blocks = -(-x.size // BLOCK)
    rows = [np.append(v, np.zeros(blocks * BLOCK - v.size)).reshape(blocks, BLOCK // LANES, LANES) for v in (x, y)]
    lanes = np.zeros((blocks, LANES))
    for k in range(BLOCK // LANES):
        lanes += rows[0][:, k] * rows[1][:, k]
    return float(sum_in_order(sum_in_order(lanes.T)))


def dot(x: Array, y: Array, threads: int = 1) -> float:
    """Return the sum of the products of two arrays, in double precision and a fixed order."""
    buffers.check_vectors("dot", x, y)
    with np.errstate(all="ignore"):
        return block_dot(x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64))


def unit_sums(x: Array, rows: int, columns: int) -> tuple[Array, Array]:
    """Return the sums of the squares of each row and of each column of the matrices that `x` holds.

    In double precision: a column in the order of the rows, a row in `LANES` lanes.
    """
    buffers.check_vectors("unit_sums", x, x)
    if rows < 1 or columns < 1 or x.size % (rows * columns):
        raise ValueError(f"unit_sums: {x.size} elements must be matrices of {rows} x {columns}")
    with np.errstate(all="ignore"):
        squares = np.square(x.reshape(-1, rows, columns).astype(np.float64))
        of_columns = sum_in_order(squares.transpose(1, 0, 2))
        padded = np.concatenate([squares, np.zeros((*squares.shape[:2], -columns % LANES))], axis=2)
        lanes = sum_in_order(
            padded.reshape(*squares.shape[:2], padded.shape[2] // LANES, LANES).transpose(2, 0, 1, 3)
        )
        return sum_in_order(lanes.transpose(2, 0, 1)), of_columns


def sum_in_order(rows: Array) -> Any:
    """Sum along the first axis strictly from first to last."""
    total = np.zeros(rows.shape[1:])
    for row in rows:
        total = total + row
    return total


def copy(targets: Iterable[Array], sources: Iterable[Array | bytes], threads: int = 1) -> None:
    """Copy the bytes of each source (an array of any dtype, or bytes) to the target at its place."""
    pairs = list(zip(targets, sources, strict=True))
    for target, source in pairs:
        if not (_plain(target) and target.flags.writeable and (type(source) is bytes or _plain(source))):
            buffers.refuse_copy(target, source)
        if target.nbytes != len(_bytes(source)) or np.may_share_memory(target, _bytes(source)):
            buffers.refuse_copy(target, source)
    for target, source in pairs:
        _bytes(target)[...] = _bytes(source)


def _plain(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.flags.c_contiguous and not array.dtype.hasobject


def _bytes(source: Array | bytes) -> Array:
    return np.frombuffer(source, np.uint8) if isinstance(source, bytes) else source.reshape(-1).view(np.uint8)


def openmp() -> bool:
    return False


def max_threads() -> int:
    return 1
