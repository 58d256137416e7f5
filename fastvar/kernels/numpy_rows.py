"""Sparse gradients in plain NumPy: the twin of `rows.pxi`."""

from __future__ import annotations

import numpy as np

from fastvar import buffers
from fastvar.slices import Rows


def merge(gradient: Rows, wide: bool) -> Rows:
    """Return a sparse gradient with each row once, in rising order. Values of a row are summed in their order.

    Values in other than native formats are summed in float64 if `wide`, else in float32.
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
