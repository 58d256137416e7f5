"""A sample of the tests of kernels, small enough for an emulated processor; runs in it, see ./bits."""

import sys

import conftest  # noqa: F401  (its settings)
import test_bits
import test_kernels
import test_sparse
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


def comparisons():
    """Yield names of comparisons and the functions that make them: sums, then all that a rule takes part in."""
    yield "dot", test_kernels.test_dot_equals_reference_on_any_number_of_threads
    yield "unit_sums", test_kernels.test_unit_sums_equal_reference
    for rule in sorted(kernels.RULES):
        directed = test_kernels.test_directions_equal_reference_and_leave_the_weights
        yield f"{rule}, directions", lambda: directed(rule, test_kernels.STAGES, "f4")  # noqa: B023
        rows = test_sparse.test_rows_equal_reference_bit_for_bit
        yield f"{rule}, rows", lambda: rows(rule, test_sparse.AVERAGED)  # noqa: B023
        for name, specs in plans(rule):
            for special in (False, True):
                options = {"special": special, "threads": (1, 3), "zero": special}
                yield (
                    f"{rule}, {name}, 1 and 3 threads, special values {special}",
                    lambda: test_bits.assert_equals_reference(rule, specs, **options),  # noqa: B023
                )


assert kernels.isa == "avx512", kernels.isa
test_bits.MODULES = test_kernels.MODULES = test_sparse.MODULES = {"avx512": kernels.active}
test_kernels.COMPARED = [(kernels.active, 1), (kernels.active, 3)]
passed = failed = 0
for name, compare in comparisons():
    try:
        compare()
    except AssertionError as error:
        failed += 1
        print(f"{name}: {error}", flush=True)
    else:
        passed += 1
        print(f"{name}: equal", flush=True)
print(f"{passed} passed, {failed} failed")
sys.exit(bool(failed))
