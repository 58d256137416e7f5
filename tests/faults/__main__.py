"""`python -m tests.faults FAULT FORMAT AMOUNT`, with faulty.c loaded: prints the figures as JSON."""

import json
import sys

from tests.faults.faults import put
from tests.faults.formats import FORMATS

if __name__ == "__main__":
    fault, format, amount = sys.argv[1:]
    print(json.dumps(put(fault, FORMATS[format], int(amount))))
