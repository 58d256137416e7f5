"""Every class and option beside Keras's own, step by step, on the backend of this process."""

from __future__ import annotations

from typing import Any

import keras
import pytest

import fastvar.keras.optimizers as ours
from tests.support.keras_steps import (
    BACKEND,
    EVERY_OWN,
    IDS,
    NAMES,
    STEPS,
    apply,
    assert_same,
    follow,
    gradients,
    make,
    pair,
    variables,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
EMA = {"use_ema": True, "ema_momentum": 0.75}
SCHEDULE = {
    "learning_rate": lambda: keras.optimizers.schedules.CosineDecay(0.0625, 10, warmup_steps=2, alpha=0.25)
}
OPTIONS: dict[str, dict[str, Any]] = {
    "weight_decay": {"weight_decay": 0.25},
    "clipnorm": {"clipnorm": 0.75},
    "clipvalue": {"clipvalue": 0.25},
    "global_clipnorm": {"global_clipnorm": 1.5},
    "clipnorm-0": {"clipnorm": 0.0, "clipvalue": None},
    "ema": EMA,
    "ema-overwrite": {**EMA, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 3},
    "accumulation-many": {
        **EMA,
        "gradient_accumulation_steps": 2,
        "ema_overwrite_frequency": 2,
        "global_clipnorm": 0.5,
        "weight_decay": 0.5,
    },
    "loss_scale": {"loss_scale_factor": 1024.0, "clipvalue": 0.001},
    "constraint": {"constraint": keras.constraints.NonNeg()},
    "schedule": SCHEDULE,
    "schedule-decay": {**SCHEDULE, "weight_decay": 0.25, "gradient_accumulation_steps": 2},
    "many": {
        **EMA,
        "weight_decay": 0.25,
        "clipnorm": 0.75,
        "loss_scale_factor": 7.0,
        "ema_overwrite_frequency": 4,
    },
}
every_class = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def comparable(request: pytest.FixtureRequest) -> None:
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name == "ScheduleFreeAdamW" and BACKEND == "torch" and "alone" not in request.keywords:
        pytest.skip("on torch, Keras's reads the new momentum as the old one: see test_on_torch.py")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "own"), EVERY_OWN, ids=IDS)
def test_follows_keras(name: str, own: dict[str, Any], dtype: str) -> None:
    follow(name, dtype, **own)


@pytest.mark.parametrize("option", OPTIONS)
@every_class
def test_follows_keras_with(name: str, option: str) -> None:
    if name == "Ftrl" and "schedule" in option:
        pytest.skip("it divides by the learning rate, which begins at 0")
    follow(name, **OPTIONS[option])


@every_class
def test_follows_keras_without_some_gradients(name: str) -> None:
    follow(name, missing=lambda t: {t % 3, 4} if t % 2 else {t % 3}, weight_decay=0.25, **EMA)


@pytest.mark.parametrize("by", ["names", "list"])
@every_class
def test_follows_keras_in_what_does_not_decay(name: str, by: str) -> None:
    def exclude(t: int, optimizer: Any, of: list[Any]) -> None:
        if t == 3:
            excluded = {"var_names": ["bias", "gain"]} if by == "names" else {"var_list": of[:1]}
            optimizer.exclude_from_weight_decay(**excluded)

    follow(name, each=exclude, weight_decay=0.25)


CHANGES = {
    "learning_rate": ("SGD", {"momentum": 0.5}, 0.5),
    "momentum": ("SGD", {"momentum": 0.5}, 0.75),
    "nesterov": ("SGD", {"momentum": 0.5}, True),
    "beta_1": ("Adam", {}, 0.5),
    "epsilon": ("Adam", {}, 0.5),
    "weight_decay": ("AdamW", {}, 0.5),
    "clipnorm": ("RMSprop", {}, 0.5),
    "global_clipnorm": ("Lamb", {}, 0.5),
    "ema_momentum": ("Lion", EMA, 0.25),
    "exclude_layers": ("Muon", {}, []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_hyperparameters_can_be_set_at_any_time(what: str) -> None:
    name, options, value = CHANGES[what]
    if name not in NAMES:
        pytest.skip("Keras's has another meaning")

    def change(t: int, optimizer: Any, of: list[Any]) -> None:
        if t == 4:
            setattr(optimizer, what, value)

    follow(name, each=change, **options)


def test_variables_in_another_order() -> None:
    mine, of, other, theirs = pair("Adam")
    for t in range(4):
        for optimizer, its in ((mine, of), (other, theirs)):
            apply(optimizer, gradients(t)[::-1][t:], its[::-1][t:])
        assert_same(mine, of, other, theirs, f"step {t}")
    assert (mine.kernel_steps, mine.keras_steps) == (4, 0)


@every_class
def test_state_is_exchanged(name: str) -> None:
    """The state of either library continues in the other."""
    options = {"weight_decay": 0.25, **EMA}
    mine, of, other, theirs = pair(name, **options)
    for t in range(STEPS):
        if t == 5:
            state = [[v.numpy() for v in optimizer.variables] for optimizer in (mine, other)]
            weights = [[v.numpy() for v in its] for its in (of, theirs)]
            for optimizer, its, k in ((mine, of, 1), (other, theirs, 0)):
                optimizer.set_weights(state[k])
                for v, value in zip(its, weights[k], strict=True):
                    v.assign(value)
        apply(mine, gradients(t), of)
        apply(other, gradients(t), theirs)
        assert_same(mine, of, other, theirs, f"step {t}")
    assert (mine.kernel_steps, mine.keras_steps) == (STEPS, 0)


@every_class
def test_converted_optimizers_continue(name: str) -> None:
    options = {"weight_decay": 0.25, **EMA}
    mine, of, other, theirs = pair(name, **options)
    for optimizer in (mine, other):
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    for t in range(4):
        apply(mine, gradients(t), of)
        apply(other, gradients(t), theirs)
    there, here = ours.to_keras(mine), ours.from_keras(other)
    assert isinstance(here, getattr(ours, name))
    assert isinstance(there, getattr(keras.optimizers, name))
    assert not isinstance(there, ours.KernelStep)
    assert there.get_config() == mine.get_config()
    assert here.get_config() == other.get_config()
    for t in range(4, STEPS):
        apply(here, gradients(t), theirs)
        apply(there, gradients(t), of)
        assert_same(here, theirs, there, of, f"step {t}")
    assert (here.kernel_steps, here.keras_steps) == (STEPS - 4, 0)


def test_accumulated_gradients_are_not_lost() -> None:
    """In Keras a variable loses what it got in a window if its last gradient there is None."""
    of, its = variables(), variables()
    mine, plain = make(ours, "SGD", gradient_accumulation_steps=2), make(ours, "SGD")
    mine.build(of)
    plain.build(its)
    apply(mine, gradients(0), of)
    apply(mine, gradients(1, missing=[0]), of)
    half = keras.ops.divide(gradients(0)[0], 2.0)
    apply(plain, [half], its[:1])
    assert of[0].numpy().tobytes() == its[0].numpy().tobytes()
    assert not mine._accumulated_gradients[0].numpy().any()


def test_sums_of_a_window_continue_in_another_optimizer() -> None:
    """Which variables have accumulated is known from the sums alone, which files keep."""
    of, its = variables(), variables()
    runs = [make(ours, "SGD", gradient_accumulation_steps=2) for _ in range(2)]
    for optimizer, those in zip(runs, (of, its), strict=True):
        optimizer.build(those)
        apply(optimizer, gradients(0), those)
    fresh = make(ours, "SGD", gradient_accumulation_steps=2)
    fresh.build(its)
    fresh.set_weights([v.numpy() for v in runs[1].variables])
    for optimizer, those in ((runs[0], of), (fresh, its)):
        apply(optimizer, gradients(1, missing=[0]), those)
    assert [v.numpy().tobytes() for v in of] == [v.numpy().tobytes() for v in its]
