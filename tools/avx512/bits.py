"""A sample of tests/test_bits.py small enough for an emulated processor; runs in it, see ./bits."""

import time

import conftest  # noqa: F401  (its settings)
from test_bits import SIZES, STAGES, Spec, assert_equals_reference, every_stage_combination

from fastvar import kernels


def plans():
    """Yield names and plans: every small size, a sample of stage combinations, large odd sizes."""
    staged = {**STAGES, "average": 0.9}
    for dtype in ("f4", "f8"):
        for stages in ({}, staged):
            specs = [Spec(n, dtype, dtype, 5 * n % 16, bool(stages), 0, stages) for n in SIZES]
            yield f"sizes 0 to {max(SIZES)} {dtype} {'staged' if stages else 'raw'}", specs
            specs = [Spec(n, dtype, dtype, n % 16, bool(stages), 0, stages) for n in (33_001, 1024, 2047)]
            yield f"large {dtype} {'staged' if stages else 'raw'}", specs
    yield "stage combinations", every_stage_combination(19)[::29]


assert kernels.isa == "avx512", kernels.isa
count = 0
for rule in sorted(kernels.RULES):
    for name, specs in plans():
        for threads, special in ((1, False), (3, True)):
            start = time.perf_counter()
            assert_equals_reference("avx512", rule, specs, special=special, threads=threads, zero=special)
            count += 1
            print(f"{rule}, {name}, {threads} threads, special values {special}: equal", flush=True)
print(f"{count} passed, 0 failed")
