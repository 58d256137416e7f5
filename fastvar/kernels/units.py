"""Gradients as matrices: sums of their rows and columns, and factors for these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastvar.buffers import Array
from fastvar.kernels.stages import LANES, STRIP, patch_rows
from fastvar.tables import count

PATCH = np.dtype(
    [
        (name, np.intp)
        for name in ("variable", "row", "row_end", "column", "column_end", "of_row", "of_column", "at")
    ]
)


MOST = 2  # kinds of matrices of one plan


class Units:
    """Matrices as which gradients are treated, and factors for their rows and columns.

    Parameters
    ----------
    sizes : sequence of int
        Elements of each variable.
    shapes : sequence of (int, int) or None
        Rows and columns of the matrices in each variable, a stack of them; None: it has none.
    rows : bool
        Whether rows, too, are summed and have factors.

    Attributes
    ----------
    by_row, by_column : ndarray
        The factors of all variables in sequence, initially 1; without `rows`, `by_row` is empty.
    most : ndarray
        For each variable the largest product of the factors of a row and a column, initially infinite.
    row_starts, column_starts : list of int
        The position of the first factor of each variable, and the number of all.
    patches : ndarray
        The parts of matrices that are summed together, records of `PATCH`.
    length : int
        Elements of all sums of patches.
    """

    def __init__(self, sizes: Sequence[int], shapes: Sequence[tuple[int, int] | None], rows: bool) -> None:
        self.shapes: list[tuple[int, int] | None] = [*shapes]
        self.rows: bool = rows
        self.row_starts: list[int] = [0]
        self.column_starts: list[int] = [0]
        self.length: int = 0
        patches: list[tuple[int, ...]] = []
        for i, (size, shape) in enumerate(zip(sizes, shapes, strict=True)):
            n = size // shape[1] if shape and size else 0  # of rows, of all matrices
            if shape and n:
                patches += self._patches(i, n, *shape)
            columns = n // shape[0] * shape[1] if shape and n else 0
            self.row_starts.append(self.row_starts[-1] + n)
            self.column_starts.append(self.column_starts[-1] + columns)
        self.patches: Array = np.array(patches, PATCH)
        self.patches.flags.writeable = False  # compiled code trusts them
        self.by_row: Array = np.ones(self.row_starts[-1] if rows else 0)
        self.by_column: Array = np.ones(self.column_starts[-1])
        self.most: Array = np.full(len(self.shapes), np.inf)
        self._made = True

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(self, "_made"):
            raise AttributeError(f"{name}: write into the arrays of units; compiled code has their addresses")
        super().__setattr__(name, value)

    def _patches(self, i: int, n: int, rows: int, columns: int) -> list[tuple[int, ...]]:
        """Return the patches of one variable, in the order in which they are added."""
        patches: list[tuple[int, ...]] = []
        for top in range(0, n, rows):
            for row in range(top, top + rows, patch_rows(columns)):
                row_end = min(row + patch_rows(columns), top + rows)
                for column in range(0, columns, STRIP):
                    column_end = min(column + STRIP, columns)
                    of_row = self.row_starts[i] + row
                    of_column = self.column_starts[i] + top // rows * columns + column
                    patches.append((i, row, row_end, column, column_end, of_row, of_column, self.length))
                    self.length += column_end - column + (row_end - row if self.rows else 0)
        return patches

    def rows_of(self, values: npt.NDArray[Any], i: int) -> npt.NDArray[Any]:
        """Return the part for the rows of a variable."""
        return values[self.row_starts[i] : self.row_starts[i + 1]]

    def columns_of(self, values: npt.NDArray[Any], i: int) -> npt.NDArray[Any]:
        """Return the part for the columns of a variable."""
        return values[self.column_starts[i] : self.column_starts[i + 1]]

    def scaled(self, x: npt.NDArray[Any], i: int) -> npt.NDArray[Any]:
        """Return the gradient of a variable with its factors."""
        shape = self.shapes[i]
        if shape is None or not x.size:
            return x
        factors = self.columns_of(self.by_column, i).astype(x.dtype).reshape(-1, 1, shape[1])
        if self.rows:
            product = self.rows_of(self.by_row, i).astype(x.dtype).reshape(-1, shape[0], 1) * factors
            most = x.dtype.type(self.most[i])
            factors = np.where(most < product, most, product)
        scaled: npt.NDArray[Any] = (x.reshape(-1, *shape) * factors).reshape(x.shape)
        return scaled

    def add(
        self, patch: Any, squares: npt.NDArray[Any], of_rows: npt.NDArray[Any], of_columns: npt.NDArray[Any]
    ) -> None:
        """Add the sums of a patch to those of its rows and columns."""
        columns = self.shapes[patch["variable"]][1]
        row, end, column, column_end = (patch[name] for name in ("row", "row_end", "column", "column_end"))
        part = squares.reshape(-1, columns)[row:end, column:column_end]
        by_row = in_lanes(part) if columns > 1 else part[:, 0]
        by_column = sum_in_order(part) if columns > 1 else in_lanes(part.T)
        of_columns[patch["of_column"] : patch["of_column"] + len(by_column)] += by_column
        if self.rows:
            of_rows[patch["of_row"] : patch["of_row"] + len(by_row)] += by_row


def checked(owner: str, sizes: Sequence[int], matrices: Sequence[Any]) -> tuple[Units, ...]:
    """Return the units of `matrices`, pairs of shapes and whether rows count, for variables of these sizes."""
    if len(matrices) > MOST:
        raise ValueError(f"{owner}: at most {MOST} kinds of matrices can have factors, got {len(matrices)}")
    for shapes, _ in matrices:
        if len(shapes) != len(sizes):
            variables = count(len(sizes), "variable")
            raise ValueError(f"{owner}: matrices must be given for {variables}, got {len(shapes)}")
        for size, shape in zip(sizes, shapes, strict=True):
            if shape and size and not (min(shape) > 0 and size % (shape[0] * shape[1]) == 0):
                raise ValueError(f"{owner}: {count(size, 'element')} must be matrices of {shape[0]} x {shape[1]}")
    return tuple(Units(sizes, shapes, bool(rows)) for shapes, rows in matrices)


def in_lanes(rows: npt.NDArray[Any]) -> Any:
    """Return the sum of each row: number i is in lane i % LANES, and the lanes are added in order."""
    padded = np.concatenate([rows, np.zeros((len(rows), -rows.shape[1] % LANES))], axis=1)
    lanes = sum_in_order(padded.reshape(len(rows), -1, LANES).transpose(1, 0, 2))
    return sum_in_order(lanes.T)


def sum_in_order(rows: npt.NDArray[Any]) -> Any:
    """Sum along the first axis strictly from first to last."""
    total = np.zeros(rows.shape[1:])
    for row in rows:
        total = total + row
    return total
