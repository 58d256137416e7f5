"""Slots in bfloat16 and 8 bits: which are, what they cost, steps, settings, and how training goes on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from fastvar.kernels.numpy_formats import NEAREST, decode_codes, encode_codes
from fastvar.optimizer.quantized import arrays_of, format_of
from tests.support.cases import CASES, Case, assert_same_bits
from tests.support.runs import every_case

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FORMATS = ["bfloat16", "8bit"]
SHAPES = [(5000,), (20, 512), (30,)]  # the last is small
EXACT = {  # by class
    "ASGD": {"ax"},
    "Ftrl": {"linear"},
    "Muon": {"momentum"},
    "Prodigy": {"start"},
    "Rprop": {"previous_gradient", "step_size"},
    "ScheduleFreeAdamW": {"momentum"},
    "Signum": {"momentum"},
}
BY_RULE = {"amsgrad": {"velocity", "velocity_hat"}, "rmsprop_centered": {"velocity", "average_gradient"}}
ALWAYS_EXACT = {"average", "gradient_accumulator", "row", "column"}
every_format = pytest.mark.parametrize("stored", FORMATS)


def variables(dtype: str = "float32") -> list[fv.Variable]:
    rng = np.random.default_rng(1)
    return [fv.Variable(rng.standard_normal(s), dtype=dtype, name=f"v{i}") for i, s in enumerate(SHAPES)]


def gradients(t: int) -> list[Any]:
    rng = np.random.default_rng(100 + t)
    return [rng.standard_normal(s).astype(np.float32) for s in SHAPES]


def train(optimizer: fv.Optimizer, of: list[fv.Variable], steps: int = 3, start: int = 0) -> list[Any]:
    """Train, and return all weights and all memory of slots."""
    for t in range(start, start + steps):
        optimizer.apply(gradients(t), of)
    return everything(optimizer, of)


def everything(optimizer: fv.Optimizer, of: list[fv.Variable]) -> list[Any]:
    arrays = [v.value for v in of]
    arrays += [array for slot in optimizer.variables for array in arrays_of(slot)]
    return [array.tobytes() for array in arrays]


def formats(optimizer: fv.Optimizer) -> dict[str, list[str | None]]:
    """Return the format of each slot of each variable."""
    slots = optimizer._state.slots
    return {name: [None if slot is None else format_of(slot) for slot in of] for name, of in slots.items()}


class OwnRule(fv.Optimizer):
    """A user's rule in NumPy."""

    slots = ("mean", "square", "kept")
    exact_slots = ("kept",)

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
        slots.mean += 0.1 * (gradient - slots.mean)
        slots.square += 0.001 * (gradient**2 - slots.square)
        slots.kept += gradient
        variable -= hyper.learning_rate * slots.mean / (np.sqrt(slots.square) + 1e-3)


MAKERS: dict[str, Callable[..., fv.Optimizer]] = {"OwnRule": OwnRule}
MAKERS |= {case.optimizer: case.make for case in reversed(CASES)}
every_maker = pytest.mark.parametrize("maker", MAKERS)
few_makers = pytest.mark.parametrize("maker", ["Adam", "Lamb", "Prodigy", "Adafactor", "OwnRule"])


# Which slots.


@every_case
@every_format
def test_statistics_are_stored_so_and_nothing_else(case: Case, stored: str) -> None:
    optimizer = case.make(
        slot_dtype=stored, slot_dtype_min_size=31, use_ema=True, gradient_accumulation_steps=2, name="x"
    )
    optimizer.build(variables())
    exact = ALWAYS_EXACT | EXACT.get(case.optimizer, set()) | BY_RULE.get(case.rule or "", set())
    for name, found in formats(optimizer).items():
        large = "float32" if name in exact else stored
        assert [f for f in found[:2] if f] == [large] * len([f for f in found[:2] if f]), name
        assert found[2] in ("float32", None)


@every_case
def test_without_the_option_no_slot_is(case: Case) -> None:
    optimizer = case.make()
    optimizer.build(variables("float64"))
    assert {f for found in formats(optimizer).values() for f in found} <= {"float64", None}


@every_format
def test_exact_slots_of_a_rule_in_numpy(stored: str) -> None:
    optimizer = OwnRule(slot_dtype=stored)
    optimizer.build(variables())
    small = "float32"
    wanted = {"mean": [stored, stored, small], "square": [stored, stored, small], "kept": [small] * 3}
    assert formats(optimizer) == wanted


def test_slots_that_become_exact_are_converted() -> None:
    optimizer = fv.optimizers.Adam(slot_dtype="8bit")
    given = variables()
    train(optimizer, given)
    before = optimizer.slot(given[0], "velocity").numpy()
    optimizer.amsgrad = True
    small = "float32"
    wanted = {"momentum": ["8bit", "8bit", small], "velocity": [small] * 3, "velocity_hat": [small] * 3}
    assert formats(optimizer) == wanted
    assert_same_bits(optimizer.slot(given[0], "velocity").numpy(), before)
    optimizer.amsgrad = False
    assert formats(optimizer)["velocity"] == ["8bit", "8bit", small]


@every_format
@pytest.mark.parametrize(("least", "count"), [(None, 1), (4096, 1), (4097, 0), (10, 2), (0, 2)])
def test_small_variables_keep_their_dtype(stored: str, least: int | None, count: int) -> None:
    given = [fv.Variable(np.ones(n, np.float32)) for n in (4096, 10, 0)]
    options = {} if least is None else {"slot_dtype_min_size": least}
    optimizer = fv.optimizers.Adam(slot_dtype=stored, **options)
    optimizer.build(given)
    found = [stored if i < count else "float32" for i in range(3)]
    assert formats(optimizer) == {"momentum": found, "velocity": found}


def test_groups_have_their_own_formats() -> None:
    a, b, c = (fv.Variable(np.ones(300, np.float32), name=name) for name in "abc")
    optimizer = fv.optimizers.Adam(slot_dtype="8bit", slot_dtype_min_size=0)
    of_b = {"variables": [b], "slot_dtype": "bfloat16"}
    optimizer.build([a, of_b, {"variables": [c], "slot_dtype_min_size": 301}])
    assert formats(optimizer)["velocity"] == ["8bit", "bfloat16", "float32"]
    optimizer.groups[2].slot_dtype_min_size = 300
    optimizer.groups[1].slot_dtype = None
    assert formats(optimizer)["velocity"] == ["8bit", "float32", "8bit"]
    optimizer.apply([np.ones(300)] * 3)
    assert_same_bits(a.numpy(), c.numpy())


def test_bytes_of_slots() -> None:
    for stored, nbytes in ((None, 40_000), ("bfloat16", 20_000), ("8bit", 10_160)):
        v = fv.Variable(np.ones(10_000, np.float32))
        optimizer = fv.optimizers.Adam(slot_dtype=stored)
        optimizer.build([v])
        assert {slot.nbytes for slot in optimizer.variables} == {nbytes}


# Steps.


@every_maker
@every_format
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_first_steps_are_near_those_of_float32(maker: str, stored: str, dtype: str) -> None:
    """Rounding errors of a few steps are small beside the change of the weights."""
    given, exact = variables(dtype), variables(dtype)
    start = [v.numpy() for v in given]
    train(MAKERS[maker](slot_dtype=stored), given, 5)
    train(MAKERS[maker](), exact, 5)
    for v, w, s in zip(given, exact, start, strict=True):
        assert np.linalg.norm(v - w) <= 0.2 * np.linalg.norm(w - s)


@every_maker
@every_format
def test_the_same_bits_on_any_threads_and_others_of_other_seeds(maker: str, stored: str) -> None:
    results = []
    for threads, seed in ((1, 0), (2, 0), (3, 0), (1, 1)):
        fv.set_num_threads(threads)
        results.append(train(MAKERS[maker](slot_dtype=stored, seed=seed), variables()))
    assert results[0] == results[1] == results[2]
    rounds = bool(set(formats_of(maker, stored)) & {*FORMATS})
    assert (results[3] != results[0]) == rounds


def formats_of(maker: str, stored: str) -> list[str | None]:
    optimizer = MAKERS[maker](slot_dtype=stored)
    optimizer.build(variables())
    return [f for found in formats(optimizer).values() for f in found]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "average": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "conditions": {"weight_decay": 0.25, "global_clipnorm": 0.5, "loss_scale_factor": 4.0, "nonfinite": "skip"},
}


@few_makers
@every_format
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "checkpoint", "new"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_goes_on_with_the_same_bits(
    maker: str, stored: str, how: str, options: dict[str, Any], tmp_path: Path
) -> None:
    given, optimizer = variables(), MAKERS[maker](slot_dtype=stored, seed=5, **options)
    train(optimizer, given, 3)
    pair = (given, optimizer)
    if how in ("deepcopy", "pickle"):
        twins, twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    else:
        path = fv.Checkpoint(variables=given, optimizer=optimizer).save(tmp_path / "c.h5")
        twins, twin = variables(), MAKERS[maker](slot_dtype=stored, seed=5, **options)
        if how == "checkpoint":
            train(twin, twins, 1, start=50)
        fv.Checkpoint(variables=twins, optimizer=twin).restore(path)
    assert everything(twin, twins) == everything(optimizer, given)
    assert train(twin, twins, 3, start=3) == train(optimizer, given, 3, start=3)


@every_format
def test_a_variable_that_missed_updates_has_random_bits_of_its_own_count(stored: str) -> None:
    """In PyTorch's meaning, its updates are those of a run without the steps that it missed."""
    given, twins = variables(), variables()
    optimizer, twin = (fastvar.torch.Adam(slot_dtype=stored) for _ in range(2))
    for t in range(6):
        grads = gradients(t)
        optimizer.apply([grads[0], None if t % 2 else grads[1], grads[2]], given)
        if t % 2 == 0:
            twin.apply(grads, twins)
    for name in ("exp_avg", "exp_avg_sq"):
        ours, theirs = (arrays_of(o.slot(v[1], name)) for o, v in ((optimizer, given), (twin, twins)))
        assert [a.tobytes() for a in ours] == [a.tobytes() for a in theirs]


@few_makers
@every_format
def test_a_skipped_step_changes_nothing(maker: str, stored: str) -> None:
    given, optimizer = variables(), MAKERS[maker](slot_dtype=stored, nonfinite="skip")
    twins, twin = variables(), MAKERS[maker](slot_dtype=stored)
    train(optimizer, given)
    before = train(twin, twins)
    assert everything(optimizer, given) == before
    for at, bad in ((0, np.nan), (1, np.inf)):
        grads = gradients(7)
        grads[at].flat[-1] = bad
        optimizer.apply(grads)
        assert everything(optimizer, given) == before
    assert optimizer.skipped == 2
    assert train(optimizer, given, 2, start=3) == train(twin, twins, 2, start=3)


def test_a_float64_slot_that_overflows_in_8_bits_is_seen() -> None:
    """Its square is a float64, but no float32."""
    w = fv.Variable(np.ones(5000), name="w")
    optimizer = fv.optimizers.Adam(slot_dtype="8bit", nonfinite="raise")
    gradient = np.ones(5000)
    gradient[300] = 1e25
    optimizer.build([w])
    before = everything(optimizer, [w])
    with pytest.raises(ValueError, match="what the step makes of 'w' must be finite"):
        optimizer.apply([gradient])
    assert everything(optimizer, [w]) == before
    optimizer.nonfinite = "ignore"
    optimizer.apply([gradient])
    spoilt = np.isnan(optimizer.slot(w, "velocity"))
    assert spoilt.nonzero()[0].tolist() == [*range(256, 512)]


@every_format
def test_a_rule_in_numpy_rounds_as_compiled_rules_do(stored: str) -> None:
    class Momentum(fv.Optimizer):
        slots = ("momentum",)

        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            slots.momentum[...] = np.float32(0.5) * slots.momentum + np.float32(-0.125) * gradient
            variable += slots.momentum

    given, twins = variables(), variables()
    ours = Momentum(0.125, slot_dtype=stored, seed=3)
    plain = fv.optimizers.SGD(0.125, momentum=0.5, slot_dtype=stored, seed=3)
    for t in range(4):
        ours.apply(gradients(t), given)
        plain.apply(gradients(t), twins)
    for v, w in zip(given, twins, strict=True):
        a, b = ours.slot(v, "momentum").numpy(), plain.slot(w, "momentum").numpy()
        np.testing.assert_allclose(v, w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.abs(a).astype("f4"), np.abs(b).astype("f4"), rtol=1e-5, atol=1e-6)


@every_format
def test_an_error_in_a_rule_in_numpy_restores_slots(stored: str) -> None:
    class Failing(OwnRule):
        failing = False

        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            super().update(variable, gradient, slots, hyper)
            if self.failing and variable.ndim == 2:
                raise KeyError("v1")

    given, optimizer = variables(), Failing(slot_dtype=stored)
    before = train(optimizer, given)
    Failing.failing = True
    with pytest.raises(KeyError, match="v1"):
        optimizer.apply(gradients(9))
    assert everything(optimizer, given) == before


@every_format
def test_loss_scales_wrap_it(stored: str) -> None:
    given, twins = variables(), variables()
    inner = fv.optimizers.Adam(slot_dtype=stored, seed=2)
    scaled = fv.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    plain = fv.optimizers.Adam(slot_dtype=stored, seed=2)
    for t in range(4):
        grads = [np.float16(g) for g in gradients(t)]
        bad = [np.full_like(g, np.inf) for g in grads]
        scaled.apply(bad if t == 1 else [g * np.float16(scaled.scale_loss(1.0)) for g in grads], given)
        if t != 1:
            plain.apply(grads, twins)
    assert format_of(scaled.slot(given[0], "velocity")) == stored
    assert [v.value.tobytes() for v in given] == [v.value.tobytes() for v in twins]
    assert everything(scaled, given) == everything(plain, twins)
    twin = type(scaled).from_config(scaled.get_config())
    assert (twin.inner_optimizer.slot_dtype, twin.inner_optimizer.seed) == (stored, 2)


# Sparse gradients.


def test_rows_with_parts_of_groups_are_refused_in_8_bits() -> None:
    table, w = fv.Variable(np.ones((50, 300), np.float32), name="table"), fv.Variable(np.ones(5000), name="w")
    optimizer = fv.optimizers.Adam(slot_dtype="8bit")
    optimizer.apply([np.ones((50, 300)), np.ones(5000)], [table, w])
    before = everything(optimizer, [table, w])
    rows = fv.IndexedSlices(np.ones((2, 300)), [1, 7])
    with pytest.raises(ValueError, match=r"gradient of 'table': .*256 elements, got 300.*slot_dtype=.bfloat16"):
        optimizer.apply([rows, np.ones(5000)])
    assert everything(optimizer, [table, w]) == before
    optimizer.slot_dtype = "bfloat16"
    optimizer.apply([rows, np.ones(5000)])
    assert optimizer.iterations == 2


@every_format
def test_rows_change_only_their_own(stored: str) -> None:
    table = fv.Variable(np.ones((50, 256), np.float32))
    optimizer = fv.optimizers.Adam(slot_dtype=stored)
    optimizer.apply([np.random.default_rng(0).standard_normal((50, 256))], [table])
    before = [slot.numpy() for slot in optimizer.variables]
    optimizer.apply([fv.IndexedSlices(np.full((2, 256), 0.3), [7, 3])])
    for slot, old in zip(optimizer.variables, before, strict=True):
        changed = (slot.value.astype("f4") != old.astype("f4")).any(1)
        assert changed.nonzero()[0].tolist() == [3, 7]


# Settings.


@few_makers
@pytest.mark.parametrize("before", [None, *FORMATS])
@pytest.mark.parametrize("after", [None, *FORMATS])
def test_setting_it_converts_to_nearest(maker: str, before: str | None, after: str | None) -> None:
    given, optimizer = variables(), MAKERS[maker](slot_dtype=before)
    train(optimizer, given)
    weights = [v.value.tobytes() for v in given]
    old = [np.array(slot.value, np.float32) for slot in optimizer.variables]
    slots = optimizer.variables
    optimizer.slot_dtype = after
    for x, slot, was in zip(old, optimizer.variables, slots, strict=True):
        same = format_of(slot) == format_of(was)
        assert (slot is was) == same
        if format_of(slot) == "8bit":
            wanted = x if same else decode_codes(encode_codes(x, NEAREST))
        else:
            wanted = x.astype(slot.dtype).astype(np.float32)
        assert_same_bits(np.asarray(slot).astype(np.float32), wanted)
    assert [v.value.tobytes() for v in given] == weights
    train(optimizer, given, 2, start=3)
    assert optimizer.iterations == 5


@every_format
def test_config_has_it(stored: str) -> None:
    optimizer = fv.optimizers.Adam(slot_dtype=stored, slot_dtype_min_size=7, seed=2**64 - 1)
    twin = fv.optimizers.Adam.from_config(optimizer.get_config())
    assert (twin.slot_dtype, twin.slot_dtype_min_size, twin.seed) == (stored, 7, 2**64 - 1)
    assert train(optimizer, variables()) == train(twin, variables())


WRONG = [
    ({"slot_dtype": "int8"}, "slot_dtype must be 'bfloat16' or '8bit', got 'int8'"),
    ({"slot_dtype": np.float16}, "slot_dtype must be 'bfloat16' or '8bit', got"),
    ({"slot_dtype_min_size": -1}, "slot_dtype_min_size must be >= 0, got -1"),
    ({"slot_dtype_min_size": 0.5}, r"slot_dtype_min_size must be a whole number, got 0\.5"),
    ({"seed": -1}, "seed must be >= 0, got -1"),
    ({"seed": 2**64}, r"seed must be < 2\*\*64, got 18446744073709551616"),
    ({"seed": None}, "seed must be a whole number, got None"),
]


@pytest.mark.parametrize(("options", "error"), WRONG, ids=range(len(WRONG)))
def test_wrong_settings_change_nothing(options: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"Adam: {error}"):
        fv.optimizers.Adam(**options)
    given, optimizer = variables(), fv.optimizers.Adam(slot_dtype="8bit")
    before = train(optimizer, given)
    for name, value in options.items():
        with pytest.raises((TypeError, ValueError), match=f"Adam: {error}"):
            setattr(optimizer, name, value)
    assert everything(optimizer, given) == before


def test_lbfgs_has_no_slots_to_store() -> None:
    with pytest.raises(TypeError, match="LBFGS: unknown argument 'slot_dtype'"):
        fv.optimizers.LBFGS(slot_dtype="8bit")


def test_memory_says_which_slots_no_slot_dtype_changes() -> None:
    now = "now; gradients are the caller's"
    big, small, smaller = (fv.Variable(np.zeros(n)) for n in (5000, 100, 10))
    adam = fv.optimizers.Adam(amsgrad=True)
    adam.build([big, small])
    assert adam.memory().footer.split("\n") == [
        f"163 kB {now}",
        "too small for slot_dtype: 1 of 2 variables (slot_dtype_min_size=4096)",
        "exact with every slot_dtype: velocity, velocity_hat",
    ]
    adam = fv.optimizers.Adam()
    adam.build([{"variables": [small]}, {"variables": [smaller], "slot_dtype_min_size": 50}])
    assert adam.memory().footer.split("\n")[1:] == [
        "too small for slot_dtype: 2 of 2 variables (slot_dtype_min_size=50, 4096)"
    ]
    adam = fv.optimizers.Adam(slot_dtype_min_size=0)
    adam.build([big, small])
    assert adam.memory().footer == f"122 kB {now}"
    sgd = fv.optimizers.SGD()  # no slots
    sgd.build([small])
    assert sgd.memory().footer == f"800 bytes {now}"
