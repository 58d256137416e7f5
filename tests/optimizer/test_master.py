"""Variables of 16 bits: with a master they train as in float32, bit for bit.

Without a master, bfloat16 is rounded stochastically.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from tests.support.cases import CASES, Case, assert_same_bits
from tests.support.runs import COMBINATIONS, every_case
from tests.support.sixteen import BFLOAT16, Net, every_dtype, gradients, like, variables


class OwnRule(fv.Optimizer):
    """A user's rule in NumPy."""

    slots = ("mean",)

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
        assert variable.dtype == slots.mean.dtype == gradient.dtype
        slots.mean += 0.1 * (gradient - slots.mean)
        variable -= hyper.learning_rate * slots.mean


def train(optimizer: fv.Optimizer, of: list[fv.Variable], start: int = 0, steps: int = 5) -> None:
    for t in range(start, start + steps):
        optimizer.apply(gradients(t), of)


def assert_masters_are(of: list[fv.Variable], expected: list[fv.Variable]) -> None:
    for v, other in zip(of, expected, strict=True):
        assert v.master is not None
        assert_same_bits(v.master, other.value)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(v.value.view("u2"), rounded(v.master, v.dtype).view("u2"))


def rounded(x: Any, dtype: Any) -> Any:
    """Round to nearest; in bfloat16, ties away from 0."""
    if dtype == np.float16:
        return x.astype(dtype)
    return ((x.view("u4") + 0x8000) >> 16).astype("u2").view(dtype)


def assert_slots_are(optimizer: fv.Optimizer, other: fv.Optimizer) -> None:
    for slot, expected in zip(optimizer.variables, other.variables, strict=True):
        assert slot.dtype == expected.dtype
        assert_same_bits(slot.numpy(), expected.numpy())


# With a master.


@every_case
@every_dtype
def test_with_a_master_steps_are_those_of_float32(case: Case, dtype: Any) -> None:
    ours, other = case.make(), case.make()
    of, expected = variables(dtype), like(dtype)
    train(ours, of)
    train(other, expected)
    assert_masters_are(of, expected)
    assert_slots_are(ours, other)


@every_dtype
@pytest.mark.parametrize("options", COMBINATIONS, ids=["none", "clipnorm", "clipvalue", "accumulation"])
@pytest.mark.parametrize("maker", [fv.optimizers.Adam, fv.optimizers.Lamb, OwnRule], ids=lambda m: m.__name__)
def test_options_are_those_of_float32(maker: Callable[..., Any], options: dict[str, Any], dtype: Any) -> None:
    declared: dict[str, Any] = {"regularizer": fv.regularizers.L1L2(0.01, 0.02)}
    ours, other = maker(**options), maker(**options)
    of, expected = variables(dtype, **declared), like(dtype, **declared)
    train(ours, of, steps=7)
    train(other, expected, steps=7)
    assert_masters_are(of, expected)
    ours.finalize_variable_values()
    other.finalize_variable_values()
    assert_masters_are(of, expected)


@every_dtype
@pytest.mark.parametrize(
    "constraint",
    [fv.constraints.NonNeg(), fv.constraints.Box(-0.3, 0.4), np.tanh],
    ids=["NonNeg", "Box", "tanh"],
)
def test_constraints_write_the_master(constraint: Any, dtype: Any) -> None:
    of, expected = variables(dtype, constraint=constraint), like(dtype, constraint=constraint)
    train(fv.optimizers.Adam(0.1), of)
    train(fv.optimizers.Adam(0.1), expected)
    assert_masters_are(of, expected)


@every_dtype
def test_gradients_of_16_bits_and_sparse_ones(dtype: Any) -> None:
    for given in (dtype, BFLOAT16, np.float16):
        of, expected = variables(dtype), like(dtype)
        ours, other = fv.optimizers.Adam(0.1), fv.optimizers.Adam(0.1)
        for t in range(3):
            grads: list[Any] = [*gradients(t, given)]
            grads[3] = fv.IndexedSlices(grads[3][:4], [6, 0, 33, 6])
            ours.apply(grads, of)
            other.apply(grads, expected)
        assert_masters_are(of, expected)


@every_dtype
@pytest.mark.parametrize("slot_dtype", ["bfloat16", "8bit"])
def test_slots_can_have_fewer_bits_too(slot_dtype: Any, dtype: Any) -> None:
    options: dict[str, Any] = {"slot_dtype": slot_dtype, "slot_dtype_min_size": 0}
    of, expected = variables(dtype), like(dtype)
    ours, other = fv.optimizers.AdamW(0.1, **options), fv.optimizers.AdamW(0.1, **options)
    train(ours, of)
    train(other, expected)
    assert_masters_are(of, expected)
    assert_slots_are(ours, other)


@every_dtype
def test_a_refused_step_changes_nothing(dtype: Any) -> None:
    of, optimizer = variables(dtype), fv.optimizers.Adam(0.1, nonfinite="skip")
    train(optimizer, of)
    before = [(v.numpy(), v.master) for v in of]
    grads = gradients(9)
    grads[1][2] = np.nan
    optimizer.apply(grads, of)
    assert optimizer.skipped == 1
    for v, (weights, master) in zip(of, before, strict=True):
        assert_same_bits(v.value.astype("f4"), weights.astype("f4"))
        assert_same_bits(v.master, master)


@every_dtype
def test_an_error_in_a_rule_changes_nothing(dtype: Any) -> None:
    class Failing(OwnRule):
        failing: bool = False

        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            super().update(variable, gradient, slots, hyper)
            if self.failing and variable.ndim == 1:
                raise ArithmeticError("on purpose")

    of, optimizer = variables(dtype), Failing(0.1)
    train(optimizer, of)
    before = [v.master for v in of] + [v.value.astype("f4") for v in of]
    optimizer.failing = True
    with pytest.raises(ArithmeticError, match="on purpose"):
        train(optimizer, of)
    for array, kept in zip([v.master for v in of] + [v.value.astype("f4") for v in of], before, strict=True):
        assert_same_bits(array, kept)


def test_classes_with_names_of_torch_have_masters() -> None:
    of, expected = variables(BFLOAT16), like(BFLOAT16)
    for each in (of, expected):
        optimizer = fastvar.torch.AdamW(each, lr=0.1)
        for t in range(3):
            for v, g in zip(each, gradients(t), strict=True):
                v.grad = g
            optimizer.step()
    assert_masters_are(of, expected)


def test_loss_scale_in_float16_end_to_end() -> None:
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((64, 8)).astype("f2"), rng.standard_normal((64, 1)).astype("f2")
    w = fv.Variable(np.zeros((8, 1), np.float16), name="w")
    optimizer = fv.optimizers.LossScaleOptimizer(fv.optimizers.Adam(0.05), initial_scale=2.0**17)
    losses = []
    for _ in range(150):
        with np.errstate(over="ignore", invalid="ignore"):
            error = x @ w.value - target
            losses.append(float((error.astype("f4") ** 2).mean()))
            scaled = (error * np.float16(2 / 64)) * np.float16(optimizer.scale_loss(1.0))
            optimizer.apply([(x.T @ scaled).astype("f2")], [w])
    best = np.linalg.lstsq(x.astype("f8"), target.astype("f8"), rcond=None)[1][0] / 64
    assert optimizer.skipped > 0  # the first scales overflow float16
    assert losses[-1] < 1.01 * best


@every_dtype
@pytest.mark.parametrize("library", ["autograd", "jax", "torch"])
def test_gradients_of_libraries(library: Any, dtype: Any) -> None:
    pytest.importorskip(library)
    w = fv.Variable(np.ones(4), dtype=dtype, name="w")
    optimizer = fv.optimizers.SGD(0.125)

    def minimize() -> Any:
        return optimizer.minimize(lambda given: (given[0] ** 2).sum(), [w], gradients=library)

    if (library, dtype) == ("autograd", BFLOAT16):
        with pytest.raises(TypeError, match="is bfloat16, which autograd does not know"):
            minimize()
        return
    assert minimize() == 4
    assert_same_bits(w.master, np.full(4, 0.75, "f4"))


# What writes both.


@every_dtype
def test_writes_into_a_variable_write_both(dtype: Any) -> None:
    (w,) = of = variables(dtype)[3:4]
    fv.optimizers.SGD(0.0).build(of)
    x = np.float32(1.2345)
    numbers = np.full(w.shape, x)
    ways: list[tuple[Callable[[], Any], Any]] = [
        (lambda: w.assign(numbers), x),
        (lambda: w.assign_add(np.full(w.shape, 1e-4)), x + np.float32(1e-4)),
        (lambda: w.assign_sub(np.full(w.shape, 1e-4)), x + np.float32(1e-4) - np.float32(1e-4)),
        (lambda: w.__iadd__(np.float32(1e-3)), x + np.float32(1e-4) - np.float32(1e-4) + np.float32(1e-3)),
        (lambda: w.__setitem__(..., np.float32(0.1)), np.float32(0.1)),
        (lambda: w.scatter_update([*range(70)], numbers), x),
        (lambda: w.scatter_add([*range(70)], numbers), x + x),
        (lambda: w.scatter_sub([*range(70)], numbers), x + x - x),
        (lambda: setattr(w, "flat", np.float32(3.3)), np.float32(3.3)),
    ]
    for way, expected in ways:
        way()
        assert_same_bits(w.master, np.full(w.shape, expected, "f4"))
        np.testing.assert_array_equal(w.value.view("u2"), rounded(w.master, dtype).view("u2"))
    w[3:5, ::2] = np.float32(x)
    assert w.master is not None
    assert w.master[3, 0] == w.master[4, 30] == x
    assert w.master[3, 1] == np.float32(3.3)


def test_a_write_into_value_counts() -> None:
    half, brain = (fv.Variable(np.full(5, 1.2345, d)) for d in (np.float16, BFLOAT16))
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.apply([np.full(5, 1e-4, "f4")] * 2, [half, brain])
    for w in (half, brain):
        w.value[:2] = [2, 0]
    optimizer.apply([np.zeros(5, "f4")] * 2, [half, brain])
    assert half.master is not None
    assert brain.master is not None
    assert [*half.master[:2]] == [2, 0]
    assert half.master[2] == np.float32(np.float16(1.2345)) - np.float32(1e-4)
    assert abs(brain.master[0] - 2) <= 2.0**-7  # half the distance to the next number
    assert abs(brain.master[1]) < 1e-40
    assert [*brain.value[:2]] == [2, 0]


@every_dtype
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
def test_copies_go_on_alike(copied: Callable[[Any], Any], dtype: Any) -> None:
    of, optimizer = variables(dtype), fv.optimizers.Adam(0.1)
    train(optimizer, of)
    others, other = copied((of, optimizer))
    train(optimizer, of, 5)
    train(other, others, 5)
    for v, w in zip(of, others, strict=True):
        assert_same_bits(w.master, v.master)


@every_dtype
def test_a_shallow_copy_has_a_master_of_its_own(dtype: Any) -> None:
    of, optimizer = variables(dtype), fv.optimizers.Adam(0.1)
    train(optimizer, of)
    other = copy.copy(of[0])
    before = other.master
    train(optimizer, of, 5)
    assert_same_bits(other.master, before)


@every_dtype
def test_checking_gradients_keeps_frozen_ones(dtype: Any) -> None:
    frozen, w = fv.Variable(np.ones(3), dtype=dtype, name="mean"), fv.Variable(np.ones(3), name="w")
    fv.optimizers.SGD().build([frozen])
    frozen.trainable = False

    def loss() -> Any:
        frozen.assign(frozen.value.astype("f4") * np.float32(0.999))
        return (w**2).sum(), {"w": 2 * w.value, "frozen": None}

    fv.check_gradients(loss, {"w": w, "frozen": frozen})
    assert frozen.master is not None
    assert [*frozen.master] == [*frozen.value] == [1, 1, 1]


@every_dtype
def test_frozen_ones_in_a_module_can_be_unfrozen(dtype: Any) -> None:
    net, optimizer = Net(dtype), fv.optimizers.SGD(0.5)
    net.w.trainable = False
    optimizer.build(net)
    optimizer.apply([np.ones((7, 5)), np.ones(5)])
    assert_same_bits(net.w.master, Net(dtype).w.value.astype("f4"))
    net.w.trainable = True
    optimizer.apply([np.ones((7, 5)), np.ones(5)])
    assert_same_bits(net.w.master, Net(dtype).w.value.astype("f4") - np.float32(0.5))


# Without a master.


@pytest.mark.parametrize("name", ["SGD", "Adam", "Lamb", "Adafactor", "Muon"])
def test_without_a_master_seeds_decide(name: str) -> None:
    results = []
    for seed in (0, 0, 1):
        of = variables(BFLOAT16)
        train(getattr(fv.optimizers, name)(0.1, master=False, seed=seed), of)
        assert all(v.master is None for v in of)
        results.append(b"".join(v.value.tobytes() for v in of))
    assert results[0] == results[1] != results[2]


def test_without_a_master_weights_stay_near_those_of_float32() -> None:
    w, expected = fv.Variable(np.ones(4096, BFLOAT16)), fv.Variable(np.ones(4096, np.float32))
    for v, optimizer in ((w, fv.optimizers.SGD(1e-4, master=False)), (expected, fv.optimizers.SGD(1e-4))):
        for _ in range(100):
            optimizer.apply([np.ones(4096, np.float32)], [v])
    assert expected.value[0] < 0.9901
    assert abs(w.value.astype("f8").mean() - expected.value[0]) < 5 * np.sqrt(100 * 1e-4 * 2.0**-8 / 4096)


def test_float16_needs_a_master() -> None:
    of = variables(np.float16)
    with pytest.raises(ValueError, match="Adam: 'v0' is float16, which needs master=True"):
        fv.optimizers.Adam(master=False).build(of)
    assert all(v.master is None for v in of)


def test_a_master_can_be_asked_for_later() -> None:
    of, optimizer = variables(BFLOAT16), fv.optimizers.Adam(0.1, master=False)
    train(optimizer, of)
    before = [v.numpy() for v in of]
    optimizer.master = True
    for v, weights in zip(of, before, strict=True):
        assert_same_bits(v.master, weights.astype("f4"))
    train(optimizer, of, 5)


def test_groups_have_their_own_master() -> None:
    """Every variable ends with the bits that it has if all have its `master`."""
    ends = []
    for master in (True, False):
        of = variables(BFLOAT16)
        train(fv.optimizers.Adam(0.1, master=master), of)
        ends.append([v.numpy() for v in of])
    of, optimizer = variables(BFLOAT16), fv.optimizers.Adam(0.1)
    optimizer.build([of[0], {"variables": of[1:], "master": False}])
    train(optimizer, of)
    for i, v in enumerate(of):
        assert_same_bits(v.numpy().view("u2"), ends[i > 0][i].view("u2"))
        assert (v.master is None) == (i > 0)
    optimizer.groups[1].master = True
    assert all(v.master is not None for v in of)


def test_a_group_of_float16_needs_a_master() -> None:
    of = variables(np.float16)
    with pytest.raises(ValueError, match="Adam: 'v1' is float16, which needs master=True"):
        fv.optimizers.Adam().build([of[0], {"variables": of[1:], "master": False}])
    fv.optimizers.Adam(master=False).build([{"variables": of, "master": True}])
    with pytest.raises(TypeError, match="Adam: master must be True or False, got 1"):
        fv.optimizers.Adam().build([{"variables": variables(BFLOAT16), "master": 1}])
    with pytest.raises(AttributeError, match="LBFGS: a group has no 'master'"):
        fv.optimizers.LBFGS().build([{"variables": [fv.Variable([1.0])], "master": True}])


def test_a_variable_keeps_its_master() -> None:
    of, expected = variables(BFLOAT16), like(BFLOAT16)
    fv.optimizers.Adam().build(of)
    train(fv.optimizers.SGD(0.1, master=False), of)
    train(fv.optimizers.SGD(0.1), expected)
    assert_masters_are(of, expected)


def test_the_name_of_the_dtype_needs_no_import() -> None:
    program = """
import numpy as np, fastvar as fv
w = fv.Variable(np.ones(3), dtype="bfloat16")
table = fv.Variable(fv.initializers.Ones(), shape=(2, 2), dtype="bfloat16")
assert w.dtype == table.dtype == "bfloat16"
for wrong in ("bfloat17", "no"):
    try:
        fv.Variable(np.ones(3), dtype=wrong)
    except TypeError as error:
        assert "not understood" in str(error)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="variable 0 must be float32, float64, bfloat16 or float16, got int16"):
        fv.optimizers.Adam().build([fv.Variable(np.zeros(3, np.int16))])
    with pytest.raises(TypeError, match="LBFGS: variable 0 must be float32 or float64, got bfloat16"):
        fv.optimizers.LBFGS().build([fv.Variable(np.zeros(3, BFLOAT16))])


def test_memory_counts_masters() -> None:
    w = fv.Variable(np.zeros((100, 100), BFLOAT16))
    optimizer = fv.optimizers.Adam()
    optimizer.build([w])
    rows = {row[0]: row[1:] for row in optimizer.memory().rows}
    assert rows["variables"][0] == rows["masters"][0] == 20_000
    assert rows["bytes per parameter"] == [12.0, 12.0, 8.0, 6.03]
    other = fv.optimizers.Adam(master=False)
    other.build([fv.Variable(np.zeros((100, 100), BFLOAT16))])
    assert "masters" not in {row[0] for row in other.memory().rows}
    assert other.memory().rows[-1][1:] == [10.0, 10.0, 6.0, 4.03]


def test_cases_cover_every_class() -> None:
    assert {case.optimizer for case in CASES} >= {*fv.optimizers.__all__} - {"LBFGS", "LossScaleOptimizer"}
