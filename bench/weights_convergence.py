"""Final losses with weights in bfloat16, with and without a master: `python -m bench.weights_convergence`.

The jobs, the rows with ten seeds and the test are those of `bench.formats_convergence`.
"""

from __future__ import annotations

from rich.console import Console

import fastvar as fv
from bench.formats_convergence import JOBS, MANY, ROOT, ROWS, compared, draw, table_of

KINDS = ("with a master", "without")


def main() -> None:
    fv.set_num_threads(1)
    rows = [row for row in ROWS if row.seeds == MANY]
    found = [each for row in rows for job in JOBS for each in compared(row, job, KINDS)]
    Console(width=160).print(table_of(rows, found))
    controls = {row.name for row in rows if row.nearest}  # far to the right
    draw([one for one in found if one.row not in controls], ROOT / "docs" / "weights.svg", KINDS)


if __name__ == "__main__":
    main()
