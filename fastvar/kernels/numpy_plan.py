"""Plans and sums in plain NumPy: the specification, and the oracle of the compiled ones.

`Plan` here and the compiled `Plan` are interchangeable and agree bit for bit. A rule that a user writes in
NumPy also runs here, with every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.formats import Codes, Master
from fastvar.kernels.numpy_formats import decoded, encode, put_back, stored_copy
from fastvar.kernels.numpy_rows import merge
from fastvar.kernels.numpy_rule import Rule
from fastvar.kernels.numpy_stages import conditioned, decay, finish, follow, penalized, update
from fastvar.kernels.rounding import SEEDS, random_bits
from fastvar.kernels.stages import BLOCK, LANES, neutral
from fastvar.kernels.units import Units, checked, sum_in_order
from fastvar.slices import Rows
from fastvar.tables import count


class Plan:
    """All variables of a step and one rule.

    Parameters
    ----------
    owner : str
        The beginning of error messages.
    rule : Rule or sequence of Rule
        From `RULES`, or a user's own; one for all, or one per group.
    names : sequence of str
        One per variable, for error messages.
    weights : sequence of (ndarray or Master)
        C-contiguous, writable, updated in place: float32, float64, bfloat16 (in float32), or `formats.Master`.
    slots : sequence of sequences of (ndarray or Codes)
        State of each variable: arrays of its shape, in its arithmetic dtype or bfloat16, or `formats.Codes`.
    groups : sequence of int
        The group of each variable, whose scalars it takes.
    averages : sequence of (ndarray or None), optional
        The moving averages of the weights.
    directions : sequence of (ndarray or None), optional
        `sums` keeps the directions here, and `run` takes what is here in their place; see `direct`.
    rows : bool
        Whether gradients may be `IndexedSlices`; not with what follows.
    sums : sequence of sequences of tuples of str, optional
        What `sums` returns, for each group: sums of products of two arrays, or of the absolute values of one.
        An array is "weights", "gradient" (as the rule takes it), "direction" or the number of a slot (as the rule
        leaves it, unless `Rule.measure` runs in its place). A variable may have slots after those of the rule,
        which are only summed.
    direct : sequence of bool, optional
        For each group, whether the rule makes a direction, starting from zeros in place of the weights. The
        weights then become `w + step * (size * direction)`.
    matrices : sequence of (shapes, bool), optional
        Gradients as matrices, whose rows (if True) and columns have factors. `shapes` has the rows and columns of
        each variable, or None.

    Attributes
    ----------
    stages : ndarray
        One record of `stages.STAGES` per variable, to be filled by the optimizer.
    seeds : ndarray
        One record of `rounding.SEEDS` per variable, to be set before each run if it rounds.
    rounds : bool
        Whether a run takes random bits: some array is not in its arithmetic dtype.
    units : tuple of Units
        The factors of `matrices`, to be filled by the optimizer.
    """

    def __init__(
        self,
        owner: str,
        rule: Rule | Sequence[Rule],
        names: Sequence[str],
        weights: Iterable[Array | Master],
        slots: Iterable[Sequence[Array | Codes]],
        groups: Iterable[int],
        averages: Iterable[Array | None] | None = None,
        directions: Iterable[Array | None] | None = None,
        rows: bool = True,
        sums: Sequence[Sequence[tuple[str | int, ...]]] | None = None,
        direct: Sequence[bool] | None = None,
        matrices: Sequence[tuple[Sequence[tuple[int, int] | None], bool]] = (),
    ) -> None:
        self.owner: str = owner
        self.names: list[str] = [*names]
        self._table = table = buffers.plan_table(
            owner, rule, self.names, weights, slots, groups, averages, directions, sums, direct
        )
        self._rows = rows and not (any(table.sums) or any(table.direct) or matrices)
        self.units: tuple[Units, ...] = checked(owner, [w.size for w in table.likes], matrices)
        self._held: list[Array | Rows | None] | None = None
        self._zero = False
        self.stages: Array = neutral(len(self._table.likes))
        self.rounds: bool = not table.native
        self.seeds: Array = np.zeros(len(self._table.likes), SEEDS)
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
        """Check and hold the gradients of the next step. Return how many are not None (no update).

        Gradients are whatever `buffers.as_gradient` reads, or an array of `buffers.MEMORY`: raw memory, which the
        caller keeps alive until the step has run. With `zero` they are zeroed after they are read.

        Raises
        ------
        TypeError, ValueError
            If a gradient cannot be used. The message names the variable, and nothing has been written.
        """
        self._held = None
        given = list(gradients)
        if len(given) != len(self._table.likes):
            raise ValueError(
                f"{self.owner}: must be given {count(len(self._table.likes), 'gradient')}, got {len(given)}"
            )
        held: list[Array | Rows | None] = []
        labels = [f"{self.owner}: gradient of {name}" for name in self.names]
        if isinstance(gradients, np.ndarray) and gradients.dtype is buffers.MEMORY:
            given = [*map(buffers.gradient_at, gradients, self._table.likes, labels)]
        for gradient, like, label in zip(given, self._table.likes, labels, strict=True):
            array = None
            if gradient is not None:
                array = buffers.as_gradient(gradient, like, label, self._rows)
                if isinstance(array, Rows):
                    array = merge(array, like.dtype == np.float64)
                    buffers.check_row_groups(like, self._table.arrays[len(held)], label)
                self._table.extents.refuse(array.values if isinstance(array, Rows) else array, label)
                if zero and not (array is gradient and array.flags.writeable):
                    buffers.refuse_zeroing(label)
            held.append(array)
        for array, like, label in zip(held, self._table.likes, labels, strict=True):
            values = array.values if isinstance(array, Rows) else array
            shape = (len(array.rows), *like.shape[1:]) if isinstance(array, Rows) else like.shape
            if values is not None and values.shape != shape:  # foreign code resized it while a later one was read
                buffers.refuse_changed(label)
        if zero:
            buffers.check_disjoint(zip(labels, held, strict=True))
        self._held, self._zero = held, zero
        return sum(g is not None for g in held)

    def _bound(self) -> list[Array | Rows | None]:
        if self._held is None:
            raise RuntimeError(f"{self.owner}: bind gradients first")
        return self._held

    def sums_of_squares(self, each: bool, threads: int = 1, scale: float = 1.0) -> Array:
        """Return the sum of the squares of the clipped gradient of each variable, or of all.

        Squares are of `scale` times each number.

        All sums are in double precision, in `LANES` lanes within blocks of `BLOCK`, and then in the order of the
        blocks. So they depend neither on threads nor on the instruction set. Each variable begins a block.
        """
        blocks = self._squares(scale)
        with np.errstate(all="ignore"):
            return np.array([sum_in_order(of) for of in (blocks if each else [np.concatenate([[], *blocks])])])

    def squares_of_blocks(self, threads: int = 1, scale: float = 1.0) -> Array:
        """Return the sums of the squares of each block of all variables, of which `sums_of_squares` is the sum.

        A variable without a gradient has blocks of zeros.
        """
        of_variables = zip(self._squares(scale), self._table.likes, strict=True)
        return np.concatenate([[], *(of if of.size else np.zeros(-(-v.size // BLOCK)) for of, v in of_variables)])

    def _squares(self, scale: float) -> list[Array]:
        """Return the sums of the squares of the blocks of each gradient."""
        with np.errstate(all="ignore"):
            return [
                np.zeros(0) if g is None else self._squares_of(i, g, scale) for i, g in enumerate(self._bound())
            ]

    def _squares_of(self, i: int, g: Array | Rows, scale: float) -> Array:
        x = self._clipped(i, g).astype(np.float64) * scale
        return block_sums(x, x)

    def sums(self, scalars: Sequence[Sequence[float]], threads: int = 1, scale: float = 1.0) -> Array:
        """Return the requested sums of each variable. Only the kept directions change.

        Without a gradient, only sums of slots are computed. Products are of `scale` times each array.
        """
        self._check_scalars(scalars)
        totals = np.zeros((len(self._table.likes), max(map(len, self._table.sums), default=0)))
        with np.errstate(all="ignore"):
            for i, g in enumerate(self._bound()):
                group, cohort = self._table.group_of[i], self._cohort_of[i]
                if not self._table.sums[group]:
                    continue
                of = self._arrays_of(i, g, () if cohort == -1 else scalars[cohort])
                for k, (a, *b) in enumerate(self._table.sums[group]):
                    if a in of and (not b or b[0] in of):
                        pair = (of[a] * scale, of[b[0]] * scale) if b else (np.abs(of[a]), np.ones(of[a].shape))
                        totals[i, k] = sum_in_order(block_sums(*pair))
        return totals

    def _arrays_of(self, i: int, g: Any, scalars: Sequence[float]) -> dict[str | int, Array]:
        """Return the arrays of a variable that can be summed, in double precision."""
        rule = self._table.rules[self._table.group_of[i]]
        _, _, direction, *slots = self._table.arrays[i]
        w = self._weights(i)
        copies = [decoded(slot, w.dtype).copy() for slot in slots]
        of: dict[str | int, Array] = {}
        if g is not None:
            x, d = self._taken(i, g), np.zeros_like(w)
            rule.apply_measure(d, x, copies[: len(rule.slots)], scalars)
            if direction is not None:
                direction[...] = d
            of = {"weights": w, "gradient": x, "direction": d}
        of |= dict(enumerate(copies))
        return {name: array.astype(np.float64) for name, array in of.items()}

    def _weights(self, i: int) -> Array:
        """Return the weights in their arithmetic dtype."""
        return decoded(self._table.arrays[i][0], self._table.likes[i].dtype)

    def _clipped(self, i: int, g: Array | Rows, matrices: int = 0) -> Array:
        """Return the gradient with the factors of a number of its matrices."""
        w, s = self._weights(i), self.stages[i]
        x = conditioned(g.values, w[g.rows], s) if isinstance(g, Rows) else conditioned(g, w, s)
        for units in self.units[:matrices]:
            x = units.scaled(x, i)
        return x

    def _taken(self, i: int, g: Array | Rows) -> Array:
        """Return the gradient for the rule."""
        x = self._clipped(i, g, len(self.units))
        size = x.dtype.type(self.stages[i]["size"])
        return x if self._table.direct[self._table.group_of[i]] or size == 1 else x * size

    def unit_sums(
        self, k: int, weights: bool = False, threads: int = 1, scale: float = 1.0
    ) -> tuple[Array, Array]:
        """Return the sums of squares of the rows and of the columns of matrices, see `Units`.

        They are of the weights, or of the gradients with the factors of all matrices before those of number `k`.
        Squares are of `scale` times each number, in double precision: of a row in `LANES` lanes, of a column in
        the order of the rows, both within patches, which are then added in their order. A single column is summed
        like a row.
        """
        if not 0 <= k < len(self.units):
            raise IndexError(f"{self.owner}: has {count(len(self.units), 'kind')} of matrices, not {k}")
        units = self.units[k]
        of_rows, of_columns = np.zeros(len(units.by_row)), np.zeros(len(units.by_column))
        with np.errstate(all="ignore"):
            for patch in units.patches:
                i = patch["variable"]
                g, w = self._bound()[i], self._weights(i)
                if g is None and not weights:
                    continue
                x = w if weights else self._clipped(i, g, k)
                units.add(patch, np.square(x.astype(np.float64) * scale), of_rows, of_columns)
        return of_rows, of_columns

    def run(
        self,
        scalars: Sequence[Sequence[float]],
        threads: int = 1,
        count: list[int] | None = None,
        commits: Sequence[tuple[Array, Array]] | None = None,
        guard: bool = False,
        agree: Callable[[list[tuple[int, bool]]], list[tuple[int, bool]]] | None = None,
    ) -> list[tuple[int, bool]]:
        """Apply the rules with the scalars of each group or cohort, and every stage. Then release the gradients.

        Each of `commits` is an array and its new value. They are written, and `count[0]` increases, in the update:
        in the compiled twin no signal is handled in between.

        With `guard`, nothing changes if a gradient is not finite before it is clipped, or if something finite
        would become infinite or NaN. Then the result is a list of pairs: the number of a bad variable, and whether
        its gradient is bad. Others who share the step can have their say: `agree` gets this list and returns that
        of all, and what has been written is undone if any of them has found something.
        """
        held = self._bound()
        self._check_scalars(scalars)
        for place, value in commits or ():
            buffers.check_update(place, value, f"{self.owner}: state")
        self._held = None
        before = (
            [[None if a is None else stored_copy(a) for a in of] for of in self._table.arrays] if guard else []
        )
        with np.errstate(all="ignore"):
            for i, g in enumerate(held):
                cohort = self._cohort_of[i]
                self._advance(i, g, [0.0] * len(self._rule_of[i].scalars) if cohort == -1 else scalars[cohort])
            if guard and (bad := self._refused(held, before, agree)):
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

    def _check_scalars(self, scalars: Sequence[Sequence[float]]) -> None:
        rules = self._rules
        if len(scalars) != len(rules):
            raise ValueError(
                f"{self.owner}: must be given scalars for {count(len(rules), 'group')}, got {len(scalars)}"
            )
        for row, rule in zip(scalars, rules, strict=True):
            if len(row) != len(rule.scalars):
                buffers.refuse_scalars(self.owner, rule, row)

    def _refused(self, held: list[Array | Rows | None], before: list[list[Any]], agree: Any) -> list[Any]:
        """Return what is bad, here or for others. If something is, undo what has been written."""
        found, of_all = self._spoilt(held, before), None
        try:
            of_all = agree(found) if agree else found
        finally:
            for arrays, of in zip(self._table.arrays, before, strict=True) if of_all != [] else ():
                for array, old in zip(arrays, of, strict=True):
                    if array is not None:
                        put_back(array, old)
        return of_all

    def _spoilt(self, held: list[Array | Rows | None], before: list[list[Any]]) -> list[tuple[int, bool]]:
        """Return what is bad."""
        table = self._table
        bad = {i: False for i, of in enumerate(before) if any(map(spoilt, table.arrays[i], of))}
        for i, (g, old, s, like) in enumerate(zip(held, before, self.stages, table.likes, strict=True)):
            w = decoded(old[0], like.dtype)
            w = w[g.rows] if isinstance(g, Rows) else w
            values = g.values if isinstance(g, Rows) else g
            if values is not None and not np.isfinite(penalized(values, w, s)).all():
                bad[i] = True
        return sorted(bad.items())

    def _advance(self, i: int, g: Array | Rows | None, scalars: Sequence[float]) -> None:
        table, s, rule = self._table, self.stages[i], self._rule_of[i]
        weights, average, direction, *slots = table.arrays[i]
        w, kept = self._weights(i), slots[: len(rule.slots)]
        if g is None:
            finish(w, average, s, False)
            if w is not weights and s["overwrite"] != 0:
                encode(weights, w, self._random(i, buffers.MOST_SLOTS))
            return
        slots = [decoded(slot, w.dtype) for slot in kept]
        if isinstance(g, Rows):
            touched = [None if array is None else array[g.rows] for array in (w, average, *slots)]
            update(rule, self._taken(i, g), touched[0], touched[1], touched[2:], s, scalars)
            for array, part in zip((w, average, *slots), touched, strict=True):
                if array is not None:
                    array[g.rows] = part
        elif table.direct[table.group_of[i]]:
            x = self._taken(i, g)
            decay(w, s)
            follow(rule, x, w, direction, slots, s, scalars)
            finish(w, average, s, True)
        else:
            update(rule, self._taken(i, g), w, average, slots, s, scalars)
        pairs = [*zip(kept, slots, range(len(kept)), strict=True), (weights, w, buffers.MOST_SLOTS)]
        for stored, values, k in pairs:
            if stored is not values:
                encode(stored, values, self._random(i, k), g.rows if isinstance(g, Rows) else ...)

    def _random(self, i: int, k: int) -> Array:
        """Return the random bits for slot `k` of a variable; those for its weights come after all slots."""
        like = self._table.likes[i]
        return random_bits(self.seeds[i], k, like.size).reshape(like.shape)


def spoilt(now: Any, before: Any) -> bool:
    """Return whether something finite became infinite or NaN."""
    if now is None:
        return False
    new, old = (decoded(array, np.float64) for array in (now, before))
    return bool((np.isfinite(old) & ~np.isfinite(new)).any())


def block_sums(x: Array, y: Array) -> Array:
    """Return the dot products of blocks of two arrays, in `LANES` lanes."""
    x, y = (v.reshape(-1).astype(np.float64) for v in (x, y))
    blocks = -(-x.size // BLOCK)
    rows = [np.append(v, np.zeros(blocks * BLOCK - v.size)).reshape(blocks, BLOCK // LANES, LANES) for v in (x, y)]
    lanes = np.zeros((blocks, LANES))
    for k in range(BLOCK // LANES):
        lanes += rows[0][:, k] * rows[1][:, k]
    sums: Array = sum_in_order(lanes.T)
    return sums
