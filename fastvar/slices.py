"""Sparse gradients: some rows of an array."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastvar.tables import Shown, Table, count

FEW = 6  # longer vectors of indices show their beginning and their end


class IndexedSlices(Shown):
    """A sparse gradient: some rows of an array, such as the rows of an embedding table that a step used.

    The gradient is `values[k]` in the row `indices[k]`, and zero in all other rows. Values for the same row are
    summed in their order. The update is *lazy*, like that of PyTorch's `SparseAdam`: only the named rows, their
    slots and their averages change; weight decay and penalties apply to these rows only. The time is proportional
    to the number of these rows.

    Parameters
    ----------
    values : array_like
        The rows, of shape `(*indices.shape, *row_shape)`; kept as `(k, *row_shape)`.
    indices : array_like of int
        The row of each value, from 0; of any shape, kept as one vector.
    dense_shape : tuple of int, optional
        The shape of the whole array. Only `np.asarray` needs it.

    Notes
    -----
    Sparse matrices of SciPy (objects with `tocsr`) are gradients, too: of every row that stores a value.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> table = fv.Variable(np.zeros((1000, 2)))
    >>> gradient = fv.IndexedSlices(values=[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], indices=[7, 500, 7])
    >>> fv.optimizers.SGD(0.5).apply([gradient], [table])
    >>> table[7], table[500]
    (array([-2., -2.]), array([-1., -1.]))
    """

    def __init__(
        self, values: npt.ArrayLike, indices: npt.ArrayLike, dense_shape: tuple[int, ...] | None = None
    ) -> None:
        rows, which = np.asarray(values), np.asarray(indices)
        if which.size == 0:
            which = which.astype(np.intp)
        if which.dtype.kind not in "iu":
            raise TypeError(f"IndexedSlices: indices must be whole numbers, got {which.dtype}")
        row_shape = rows.shape[which.ndim :]
        if rows.shape[: which.ndim] != which.shape:
            raise ValueError(
                f"IndexedSlices: values must have one row per index, got shape {rows.shape} for indices of shape "
                f"{which.shape}"
            )
        self.dense_shape: tuple[int, ...] | None = (
            None if dense_shape is None else tuple(int(n) for n in dense_shape)
        )
        if self.dense_shape is not None and (self.dense_shape == () or self.dense_shape[1:] != row_shape):
            raise ValueError(
                f"IndexedSlices: dense_shape must be (n, *{row_shape}) as the rows are, got {self.dense_shape}"
            )
        one_axis = which.ndim == 1  # no view: if the array were resized, a view would point nowhere
        self.values: npt.NDArray[Any] = rows if one_axis else rows.reshape(which.size, *row_shape)
        self.indices: npt.NDArray[Any] = which if one_axis else which.reshape(-1)

    @classmethod
    def of_sparse(cls, matrix: Any) -> IndexedSlices:
        """Return the rows that store a value, of a SciPy matrix or of an object with a method `tocsr`."""
        rows = matrix.tocsr()
        touched = np.flatnonzero(np.diff(rows.indptr))
        return cls(rows[touched].toarray(), touched, rows.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.values.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if self.dense_shape is None:
            raise ValueError("IndexedSlices: dense_shape must be given to make an array")
        if copy is False:
            raise ValueError("IndexedSlices: an array made from it is always a copy")
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < self.dense_shape[0]:
            raise ValueError(f"IndexedSlices: indices must be below {self.dense_shape[0]}, and not negative")
        dense = np.zeros(self.dense_shape, self.dtype if dtype is None else dtype)
        np.add.at(dense, self.indices, self.values)
        return dense

    def _table(self) -> Table:
        rows = [("indices", np.array2string(self.indices, threshold=FEW, separator=", "))]
        rows.append(("values", f"{self.values.shape} {self.dtype}"))
        if self.dense_shape is not None:
            rows.append(("dense_shape", str(self.dense_shape)))
        return Table(f"IndexedSlices of {count(len(self.indices), 'row')}", ("", ""), rows)


class Rows(NamedTuple):
    """A checked sparse gradient. After merging, each row occurs once, in rising order."""

    rows: npt.NDArray[np.intp]
    values: npt.NDArray[Any]
