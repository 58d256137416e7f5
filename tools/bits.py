"""A sample of the tests of kernels, small enough for an emulated processor: `python bits.py ISA`.

avx512/bits and aarch64/compare run it on one.
"""

import sys

import tests.conftest  # noqa: F401  (its settings)
from fastvar import kernels
from tests.kernels import test_bits, test_sums
from tests.kernels.test_bits import SIZES, STAGES, Spec, every_stage_combination
from tests.optimizer import test_sparse

STAGED = {**STAGES, "average": 0.9}
ONE_OF_EACH = {  # the code is the same for every rule
    "adam, sums": lambda: test_sums.test_sums_equal_reference("adam", "f4"),
    "rows and columns": test_sums.test_sums_of_rows_and_columns_equal_reference,
    "adam, rows": lambda: test_sparse.test_rows_equal_reference_bit_for_bit("adam", test_sparse.AVERAGED),
}


def plans(rule):
    """Yield names, plans and whether values are special: small sizes, large odd sizes, combinations of stages."""
    pairs = [(n, dtype) for n in SIZES for dtype in ("f4", "f8") if dtype == "f4" or n % 4 == 3]
    yield f"sizes 0 to {max(SIZES)}", [Spec(n, dtype, dtype, 5 * n % 16) for n, dtype in pairs], True
    pairs = [(n, dtype) for n in (17_001, 1024, 2047) for dtype in ("f4", "f8")]
    yield "large", [Spec(n, dtype, dtype, n % 16, n != 1024, 0, STAGED) for n, dtype in pairs], False
    yield "stage combinations", every_stage_combination(19, rule)[::20], True


def comparisons():
    """Yield the names of comparisons, and functions that run them."""
    yield from ONE_OF_EACH.items()
    for rule in sorted(kernels.RULES):
        for name, specs, special in plans(rule):
            options = {"special": special, "threads": (1, 3), "zero": special}
            yield (
                f"{rule}, {name}",
                lambda: test_bits.assert_equals_reference(rule, specs, **options),  # noqa: B023
            )


(isa,) = sys.argv[1:]
assert kernels.isa == isa, kernels.isa
test_bits.MODULES = test_sums.MODULES = test_sparse.MODULES = {isa: kernels.active}
test_sums.COMPARED = [(kernels.active, 1), (kernels.active, 3)]
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
