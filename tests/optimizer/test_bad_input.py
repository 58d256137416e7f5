"""Bad input is a clear error that names the variable, and nothing changes. Unusual input is converted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import CASES, Case, assert_same_bits, contents, digest

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"weight_decay": 0.1, "use_ema": True, "global_clipnorm": 1.0, "loss_scale_factor": 3.0},
    "accumulating": {"gradient_accumulation_steps": 2, "use_ema": True},
}
SHAPE = (4, 6)


class Scene:
    """An optimizer after three steps, with good gradients for the next one."""

    def __init__(self, case: Case, settings: dict[str, Any]) -> None:
        rng = np.random.default_rng(0)
        self.w, self.b, self.c = self.variables = [
            fv.Variable(rng.standard_normal(SHAPE).astype(np.float32), name=name) for name in ("w", "b", "c")
        ]
        self.optimizer = case.make(**settings)
        self.optimizer.build(self.variables)
        self.grads = [rng.standard_normal(SHAPE).astype(np.float32) for _ in self.variables]
        for _ in range(3):
            self.optimizer.apply(self.grads)

    def contents(self) -> list[str]:
        return contents(self.optimizer, self.variables) + [digest(g) for g in self.grads]

    def slots_like_b(self) -> list[fv.Variable]:
        return [v for v in self.optimizer.variables if v.shape == self.b.shape]

    def with_gradient(self, gradient: Any) -> None:
        """Step with another gradient of the middle variable."""
        self.optimizer.apply([self.grads[0], gradient, self.grads[2]])

    def clip_twice(self) -> None:
        self.optimizer.clipvalue = None
        self.optimizer.clipnorm = None if self.optimizer.global_clipnorm else 1.0
        self.optimizer.clipvalue = 1.0


class Unreadable:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("no data today")


class Reentrant:
    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.scene.optimizer.apply(self.scene.grads)
        return np.zeros(SHAPE, np.float32)


def shifted(array: Any) -> Any:
    """Return an array in the memory of `array`, shifted by one element: they overlap in part."""
    memory = array.reshape(-1)
    return np.ndarray(memory.size - 1, memory.dtype, memory.data, offset=memory.itemsize)


# The action, the type of the error, and a pattern for its message, which names the variable.
# fmt: off
BAD: dict[str, tuple[Callable[[Scene], Any], type[Exception] | tuple[type[Exception], ...], str]] = {
    "transposed shape": (
        lambda s: s.with_gradient(np.ones((6, 4), np.float32)),
        ValueError, "gradient of 'b'.*shape",
    ),
    "flat": (lambda s: s.with_gradient(np.ones(24, np.float32)), ValueError, "gradient of 'b'.*shape"),
    "scalar": (lambda s: s.with_gradient(1.0), ValueError, "gradient of 'b'.*shape"),
    "empty": (lambda s: s.with_gradient(np.ones((0, 6), np.float32)), ValueError, "gradient of 'b'.*shape"),
    "one axis more": (lambda s: s.with_gradient(np.ones((1, *SHAPE))), ValueError, "gradient of 'b'.*shape"),
    "complex": (lambda s: s.with_gradient(np.ones(SHAPE, complex)), TypeError, "gradient of 'b'.*complex128"),
    "object": (lambda s: s.with_gradient(np.ones(SHAPE, object)), TypeError, "gradient of 'b'.*object"),
    "text": (lambda s: s.with_gradient(np.full(SHAPE, "1")), TypeError, "gradient of 'b'.*<U1"),
    "dates": (lambda s: s.with_gradient(np.zeros(SHAPE, "M8[s]")), TypeError, "gradient of 'b'.*datetime"),
    "record": (lambda s: s.with_gradient(np.zeros(SHAPE, "f4,f4")), TypeError, "gradient of 'b'"),
    "ragged": (lambda s: s.with_gradient([[1.0], [1.0, 2.0]]), TypeError, "gradient of 'b'"),
    "no array": (lambda s: s.with_gradient(Unreadable()), TypeError, "gradient of 'b'.*no data today"),
    "a function": (lambda s: s.with_gradient(print), TypeError, "gradient of 'b'"),
    "a step inside": (lambda s: s.with_gradient(Reentrant(s)), (TypeError, RuntimeError), "step"),
    "its own weights": (
        lambda s: s.with_gradient(s.b.value),
        ValueError, "gradient of 'b'.*share memory.*'b'",
    ),
    "its own variable": (lambda s: s.with_gradient(s.b), ValueError, "gradient of 'b'.*share memory.*'b'"),
    "another's weights": (
        lambda s: s.with_gradient(s.w.value),
        ValueError, "gradient of 'b'.*share memory.*'w'",
    ),
    "too few": (lambda s: s.optimizer.apply(s.grads[:2]), ValueError, "3 gradients, got 2"),
    "too many": (lambda s: s.optimizer.apply([*s.grads, None]), ValueError, "3 gradients, got 4"),
    "none at all": (lambda s: s.optimizer.apply([None] * 3), ValueError, "no variable has a gradient"),
    "no list": (lambda s: s.optimizer.apply(None), TypeError, ""),
    "a number": (lambda s: s.optimizer.apply(3), TypeError, ""),
    "numbers by name": (
        lambda s: s.optimizer.apply({"w": 1, "b": 2, "c": 3}),
        ValueError, "gradient of 'w'.*shape",
    ),
    "by unknown name": (
        lambda s: s.optimizer.apply({"w": s.grads[0], "b": s.grads[1], "d": s.grads[2]}),
        ValueError, "unknown 'd'; missing '2'",
    ),
    "unknown variable": (
        lambda s: s.optimizer.apply(s.grads, [s.w, fv.Variable(s.b, name="new"), s.c]),
        ValueError,
        "unknown.*'new'.*build with all variables.*make an optimizer",
    ),
    "a variable twice": (
        lambda s: s.optimizer.apply(s.grads, [s.w, s.b, s.b]),
        ValueError, "'b' comes twice",
    ),
    "fewer variables": (
        lambda s: s.optimizer.apply(s.grads, [s.w]),
        ValueError, "3 gradients for 1 variable",
    ),
    "no variable": (
        lambda s: s.optimizer.apply(s.grads, [s.w, s.b, s.c.value]),
        TypeError, "variables must be fastvar.Variable, got ndarray",
    ),
    "built again": (lambda s: s.optimizer.build([s.w]), ValueError, "other variables"),
    "rate of NaN": (
        lambda s: setattr(s.optimizer, "learning_rate", np.nan),
        ValueError, "learning_rate.*finite",
    ),
    "rate below 0": (lambda s: setattr(s.optimizer, "learning_rate", -1), ValueError, "learning_rate.*>=? 0"),
    "rate of text": (
        lambda s: setattr(s.optimizer, "learning_rate", "0.1"),
        TypeError, "learning_rate.*real",
    ),
    "no rate": (lambda s: setattr(s.optimizer, "learning_rate", None), TypeError, "learning_rate.*real"),
    "group's rate": (
        lambda s: setattr(s.optimizer.groups[0], "learning_rate", np.inf),
        ValueError, "learning_rate",
    ),
    "scheduled NaN": (
        lambda s: scheduled(s, lambda t: np.nan),
        ValueError, "learning_rate at step 3.*finite",
    ),
    "scheduled text": (lambda s: scheduled(s, lambda t: "1"), TypeError, "learning_rate at step 3.*real"),
    "failing schedule": (lambda s: scheduled(s, lambda t: 1 / 0), ZeroDivisionError, ""),
    "two clips": (lambda s: s.clip_twice(), ValueError, "only one of clip"),
    "step without grad": (lambda s: s.optimizer.step(), ValueError, "no variable has a gradient"),
    "grad of a shape": (lambda s: setattr(s.b, "grad", np.ones(3)), ValueError, r"'b'.*shape \(4, 6\)"),
    "read-only to zero": (lambda s: zeroed(s, readonly(s.grads[1])), ValueError, "gradient of 'b'.*zeroed"),
    "strided to zero": (lambda s: zeroed(s, s.grads[1][:, ::-1]), ValueError, "gradient of 'b'.*zeroed"),
    "list to zero": (lambda s: zeroed(s, s.grads[1].tolist()), ValueError, "gradient of 'b'.*zeroed"),
    "weights to zero": (lambda s: zeroed(s, s.b.value), ValueError, "gradient of 'b'.*share memory"),
    "slot to zero": (
        lambda s: zeroed(s, s.slots_like_b()[-1].value),
        ValueError, "gradient of 'b'.*share",
    ),
    "one to zero twice": (lambda s: zeroed(s, s.grads[0]), ValueError, "gradient of '.'.*must not share"),
}


# fmt: on


def scheduled(scene: Scene, schedule: Any) -> None:
    scene.optimizer.learning_rate = schedule
    scene.optimizer.apply(scene.grads)


def readonly(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def zeroed(scene: Scene, gradient: Any) -> None:
    for v, g in zip(scene.variables, [scene.grads[0], gradient, scene.grads[2]], strict=True):
        v.grad = g
    scene.optimizer.step(zero_grad=True)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("row", BAD)
def test_bad_input_is_one_error_and_changes_nothing(row: str, settings: str) -> None:
    act, error, pattern = BAD[row]
    for case in CASES:
        scene = Scene(case, SETTINGS[settings])
        if row == "slot to zero" and not scene.slots_like_b():
            continue
        before = scene.contents()
        for _ in range(2):  # and it stays an error
            with pytest.raises(error, match=f"(?s){pattern}"):
                act(scene)
            assert scene.contents() == before, case.id


@every_case
def test_overlap_in_part_is_refused(case: Case) -> None:
    """A gradient begins in the middle of the weights, a slot or an average."""
    for part in ("weights", "average", *case.make().slots):
        memory = np.zeros(40, np.float32)
        v, other = fv.Variable(memory[:24], name="w", copy=False), fv.Variable(np.ones(3, np.float32))
        optimizer = case.make(use_ema=True)
        optimizer.build([v, other])
        if part in optimizer.slots and not optimizer.has_slot(part, v):
            continue
        target = v.value if part == "weights" else optimizer.slot(v, part).value
        small = shifted(target)[:3] if part != "weights" else memory[23:26]
        before = contents(optimizer, [v, other])
        with pytest.raises(ValueError, match=r"gradient of variable 1: must not share memory with .*'w'"):
            optimizer.apply([np.ones(24, np.float32), small])
        assert contents(optimizer, [v, other]) == before


# Building.


BAD_BUILD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "int": (
        lambda: [fv.Variable([1, 2], name="i")],
        TypeError,
        "'i' must be float32, float64, bfloat16 or float16, got int64",
    ),
    "complex": (
        lambda: [fv.Variable([1.0], dtype="c8", name="h")],
        TypeError,
        "'h' must be float32, float64, bfloat16 or float16, got complex64",
    ),
    "array": (lambda: [np.zeros(3)], TypeError, "must be fastvar.Variable, got ndarray"),
    "twice": (lambda: [fv.Variable([1.0], name="v")] * 2, ValueError, "'v' comes twice"),
    "nameless twice": (lambda: [fv.Variable([1.0])] * 2, ValueError, "variable 1 comes twice"),
    "one name": (lambda: [fv.Variable([1.0], name="v") for _ in "ab"], ValueError, "'v' comes twice"),
    "shared memory": (lambda: overlapping(0, 4, 2, 6), ValueError, "'a' and .*'b' must not share memory"),
    "one in another": (lambda: overlapping(0, 6, 2, 4), ValueError, "'a' and .*'b' must not share memory"),
    "groups": (lambda: [{"variables": overlapping(0, 3, 2, 6)}], ValueError, "must not share memory"),
    "two groups": (
        lambda: [{"variables": [v]} for v in [fv.Variable([1.0], name="v")] * 2],
        ValueError,
        "'v' comes twice",
    ),
    "group's decay": (
        lambda: [{"variables": [fv.Variable([1.0])], "weight_decay": -1}],
        ValueError,
        "weight_decay must be >= 0",
    ),
}


def overlapping(a: int, b: int, c: int, d: int) -> list[fv.Variable]:
    memory = np.zeros(8)
    return [fv.Variable(memory[a:b], name="a", copy=False), fv.Variable(memory[c:d], name="b", copy=False)]


@pytest.mark.parametrize("row", BAD_BUILD)
def test_bad_build_is_one_error_and_can_be_repeated_rightly(row: str) -> None:
    make, error, pattern = BAD_BUILD[row]
    optimizer = fv.optimizers.Adam()
    with pytest.raises(error, match=f"(?s){pattern}"):
        optimizer.build(make())
    assert optimizer.variables == []
    good = fv.Variable([1.0])
    optimizer.apply([[1.0]], [good])
    assert good[0] < 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(
            ["learning_rate", "weight_decay", "clipnorm"], [np.nan, np.inf, -1.0, "1", [1.0], True]
        ),
        *itertools.product(["beta_1", "beta_2"], [1.0, -0.1, 1.5, np.nan, None]),
        *itertools.product(["clipvalue", "global_clipnorm", "loss_scale_factor"], [0.0, -1.0, np.nan, "x"]),
        *itertools.product(["gradient_accumulation_steps"], [0, 1, -2, 2.0, True, "2"]),
        *itertools.product(["ema_overwrite_frequency"], [0, -1, 1.5]),
        *itertools.product(["ema_momentum"], [-0.1, 1.1, None]),
        *itertools.product(["use_ema", "amsgrad"], [1, "yes", None]),
        ("epsilon", -1e-9),
        ("name", 3),
    ],
)
def test_hyperparameter_out_of_range_is_refused_and_kept(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=f"Adam: {name} must be"):
        fv.optimizers.Adam(**{name: value})
    optimizer = fv.optimizers.Adam()
    before = optimizer.get_config()
    with pytest.raises((ValueError, TypeError), match=f"Adam: {name} must be"):
        setattr(optimizer, name, value)
    assert optimizer.get_config() == before


# Unusual input that is equal to a contiguous copy of it.


def strided(a: Any) -> Any:
    memory = np.zeros((a.shape[0], a.shape[1] * 2), a.dtype)
    memory[:, ::2] = a
    return memory[:, ::2]


def misaligned(a: Any) -> Any:
    memory = np.zeros(a.nbytes + 1, np.uint8)
    array = memory[1:].view(a.dtype).reshape(a.shape)
    array[...] = a
    return array


ODD: dict[str, Callable[[Any], Any]] = {
    "strided": strided,
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "Fortran": np.asfortranarray,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": misaligned,
    "read-only": readonly,
    "list": lambda a: a.tolist(),
    "tuple of rows": tuple,
    "subclass": lambda a: a.copy().view(np.recarray),
    "variable": fv.Variable,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "wide swapped": lambda a: a.astype(">f8"),
    "half": lambda a: a.astype("f2"),
    "integers": lambda a: (a * 8).astype("i2"),
    "booleans": lambda a: a > 0,
}


@pytest.mark.parametrize("row", ODD)
@pytest.mark.parametrize("settings", SETTINGS)
def test_odd_gradient_means_its_contiguous_twin(row: str, settings: str) -> None:
    for case in CASES:
        results = []
        for twin in (False, True):
            scene = Scene(case, SETTINGS[settings])
            odd = ODD[row](scene.grads[1])
            plain = np.array(np.asarray(odd), order="C")
            scene.with_gradient(plain.astype("f8" if plain.dtype.itemsize == 8 else "f4") if twin else odd)
            results.append([*scene.variables, *scene.optimizer.variables])
        for a, b in zip(*results, strict=True):
            assert_same_bits(a.numpy(), b.numpy(), case.id)


@every_case
def test_float64_gradient_of_a_float32_variable_is_rounded_once(case: Case) -> None:
    wide, rounded = Scene(case, {}), Scene(case, {})
    gradient = np.random.default_rng(3).standard_normal(SHAPE)
    wide.with_gradient(gradient)
    rounded.with_gradient(gradient.astype("f4"))
    assert wide.contents() == rounded.contents()


@every_case
def test_none_and_empty_are_harmless(case: Case) -> None:
    scene = Scene(case, {})
    before = scene.b.numpy()
    scene.with_gradient(None)
    assert_same_bits(scene.b.numpy(), before)
    empty = [fv.Variable(np.zeros(shape)) for shape in [(0,), (3, 0), (0, 5)]]
    optimizer = case.make(global_clipnorm=1.0, use_ema=True)
    for _ in range(3):
        optimizer.apply([np.zeros(v.shape) for v in empty], empty)
    assert optimizer.iterations == 3


class Shrinking:
    """A gradient that shrinks another one while it is read."""

    def __init__(self, victim: Any) -> None:
        self.victim = victim

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.victim.resize(1, *self.victim.shape[1:], refcheck=False)
        return np.zeros(SHAPE, np.float32)


class Keeping:
    """A gradient that returns an array to which others have access."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.array


@every_case
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["array", "kept", "rows"])
def test_gradients_that_shrink_while_others_are_read_change_nothing(case: Case, settings: str, kind: str) -> None:
    scene = Scene(case, SETTINGS[settings])
    victim = np.ones(SHAPE, np.float32)
    before = scene.contents()
    gradient = {"array": victim, "kept": Keeping(victim), "rows": fv.IndexedSlices(victim, range(4))}[kind]
    with pytest.raises((ValueError, TypeError), match=r"gradient of 'w': must (not change while|be dense)"):
        scene.optimizer.apply([gradient, Shrinking(victim), scene.grads[2]])
    assert scene.contents() == before


@every_case
@pytest.mark.parametrize("constraint", [None, fv.constraints.UnitNorm()])
def test_gradients_may_come_from_a_generator(case: Case, constraint: Any) -> None:
    for settings in SETTINGS.values():
        listed, generated = Scene(case, settings), Scene(case, settings)
        for scene in (listed, generated):
            scene.b.constraint = constraint
        listed.optimizer.apply(listed.grads)
        generated.optimizer.apply(g for g in generated.grads)
        assert listed.contents() == generated.contents()


def test_zeroed_gradients_that_begin_to_overlap_are_refused_every_time() -> None:
    """A plan remembers the addresses of the last step, and still refuses a shared one."""
    scene = Scene(CASES[0], {})
    zeroed(scene, scene.grads[1])
    for first, second in [(0, 0), (2, 1), (0, 0), (1, 1)]:
        for v, k in zip(scene.variables, [0, first, second], strict=True):
            v.grad = scene.grads[k]
        for _ in range(2):
            if len({0, first, second}) < 3:
                before = scene.contents()
                with pytest.raises(ValueError, match="must not share memory"):
                    scene.optimizer.step(zero_grad=True)
                assert scene.contents() == before
    scene.b.grad, scene.c.grad = None, scene.grads[1]
    scene.optimizer.step(zero_grad=True)
    scene.b.grad = scene.grads[1]
    with pytest.raises(ValueError, match="must not share memory"):
        scene.optimizer.step(zero_grad=True)
