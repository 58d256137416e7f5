"""`python -m tests.faults FAULT FORMAT AMOUNT`, with faulty.c loaded, prints the figures as JSON."""

import json
import sys

from tests.faults.faults import put
from tests.faults.formats import FORMATS


def main(fault: str, format: str, amount: int) -> None:
    if fault == "hostile files":
        from tests.faults.hostile import hostile_files

        figures = hostile_files(amount)
    elif fault == "resumed runs":
        from tests.faults.resume import resumed_runs

        figures = resumed_runs(amount)
    else:
        figures = put(fault, FORMATS[format], amount)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
