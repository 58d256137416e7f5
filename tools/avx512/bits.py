"""A sample of tests/test_bits.py small enough for an emulated processor; runs in it, see ./bits."""

import conftest  # noqa: F401  (its settings)
import test_bits
from test_bits import SIZES, STAGES, Spec, every_stage_combination

from fastvar import kernels


def plans(rule):
    """Yield names and plans: every small size, large odd sizes, a sample of the stage combinations."""
    staged = {**STAGES, "average": 0.9}
    for dtype in ("f4", "f8"):
        for stages in ({}, staged):
            kind = f"{dtype} {'staged' if stages else 'raw'}"
            specs = [Spec(n, dtype, dtype, 5 * n % 16, bool(stages), 0, stages) for n in SIZES]
            yield f"sizes 0 to {max(SIZES)} {kind}", specs
            specs = [Spec(n, dtype, dtype, n % 16, bool(stages), 0, stages) for n in (33_001, 1024, 2047)]
            yield f"large {kind}", specs
    yield "stage combinations", every_stage_combination(19, rule)[::10]


assert kernels.isa == "avx512", kernels.isa
test_bits.MODULES = {"avx512": kernels.active}
count = 0
for rule in sorted(kernels.RULES):
    for name, specs in plans(rule):
        for special in (False, True):
            test_bits.assert_equals_reference(rule, specs, special=special, threads=(1, 3), zero=special)
            count += 1
            print(f"{rule}, {name}, 1 and 3 threads, special values {special}: equal", flush=True)
print(f"{count} passed, 0 failed")
