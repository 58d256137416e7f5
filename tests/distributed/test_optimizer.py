"""What `Distributed` refuses, and that ranks that differ learn of it together."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd
from tests.support import ranks


def build(world: fd.World, optimizer: Any = None, total: int = 4, **options: Any) -> tuple[Any, list[fv.Variable]]:
    net = ranks.network({})
    distributed = fd.Distributed(optimizer or fv.optimizers.Adam(0.1), world, total, **options)
    distributed.build(net)
    return distributed, net


def fill(optimizer: fd.Distributed, step: int = 0) -> None:
    for number in optimizer.micro_batches():
        optimizer.add(ranks.gradients(step, number))


def errors_of(size: int, program: Callable[[fd.World], object]) -> list[Exception]:
    """Return the error of each rank; the program must raise one on each, by itself."""
    found: dict[int, Exception] = {}

    def one(world: fd.World) -> None:
        try:
            program(world)
        except Exception as error:
            found[world.rank] = error

    fd.simulate(size, one, timeout=20)
    return [found[rank] for rank in range(size)]


def built() -> fv.Optimizer:
    optimizer = fv.optimizers.Adam()
    optimizer.build([fv.Variable([1.0])])
    return optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fv.optimizers.LBFGS, "takes no LBFGS: its line search"),
        (lambda: fv.optimizers.LossScaleOptimizer(fv.optimizers.Adam()), "takes no LossScaleOptimizer"),
        (lambda: fv.optimizers.Adam(gradient_accumulation_steps=2), "micro_batches accumulates"),
        (built, "already built"),
        (lambda: "adam", "optimizer must be an Optimizer, got str"),
    ],
)
def test_refuses_optimizers(make: Callable[[], Any], message: str) -> None:
    with fd.world() as world, pytest.raises((TypeError, ValueError), match=message):
        fd.Distributed(make(), world, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"micro_batches": 0}, ValueError, "micro_batches must be >= 1, got 0"),
        ({"micro_batches": 2.0}, TypeError, "micro_batches must be an int"),
        ({"micro_batches": True}, TypeError, "micro_batches must be an int"),
        ({"order": "ring"}, ValueError, "order must be one of 'tree', 'sequence', got 'ring'"),
        ({"compare_every": 0}, ValueError, "compare_every must be >= 1"),
    ],
)
def test_refuses_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with fd.world() as world, pytest.raises(error, match=message):
        fd.Distributed(fv.optimizers.Adam(), world, **{"micro_batches": 4, **options})


def test_calls_out_of_place() -> None:
    with fd.world() as world:
        optimizer = fd.Distributed(fv.optimizers.Adam(), world, 4)
        for call in (optimizer.step, optimizer.micro_batches, lambda: optimizer.add([1.0])):
            with pytest.raises(ValueError, match=r"call build\(variables\) first"):
                call()
        net = ranks.network({})
        optimizer.build(net)
        with pytest.raises(ValueError, match="is built already"):
            optimizer.build(net)
        with pytest.raises(RuntimeError, match="in a loop over micro_batches"):
            optimizer.add(ranks.gradients(0, 0))
        for number in optimizer.micro_batches():
            optimizer.add(ranks.gradients(0, number))
            with pytest.raises(RuntimeError, match="once for each micro-batch"):
                optimizer.add(ranks.gradients(0, number))
            if number == 2:
                break
        with pytest.raises(RuntimeError, match="3 of the 4 micro-batches of this rank"):
            optimizer.step()


def test_bad_gradient_changes_nothing() -> None:
    with fd.world() as world:
        optimizer, net = build(world)
        for number in optimizer.micro_batches():
            bad = ranks.gradients(0, number).copy()
            bad[2] = np.ones(8)
            with pytest.raises(ValueError, match="gradient of 'bias'"):
                optimizer.add(bad)
            with pytest.raises(TypeError, match="count must be an int"):
                optimizer.add(ranks.gradients(0, number), count=0.5)
            optimizer.add(ranks.gradients(0, number))
        optimizer.step()
        again, other = build(world)
        fill(again)
        again.step()
        assert ranks.digest(net) == ranks.digest(other)


def test_ranks_get_the_weights_of_rank_0() -> None:
    def program(world: fd.World) -> str:
        net = ranks.network({})
        if world.rank:
            for v in net:
                v.assign(v.numpy() + world.rank)
        fd.Distributed(fv.optimizers.Adam(), world, 4).build(net)
        return ranks.digest(net)

    for size in (2, 3, 5, 8):
        assert {*fd.simulate(size, program)} == {ranks.digest(ranks.network({}))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (2, 3)}, r"rank 2 and rank 0 differ in variables 'w'\[0\]\[0\]: 2 and 3"),
        ({"name": "v"}, "rank 2 and rank 0 differ in variables 'v': only one has it"),
        ({"total": 5}, "rank 2 and rank 0 differ in micro_batches: 5 and 4"),
        ({"order": "sequence"}, "rank 2 and rank 0 differ in order: 'sequence' and 'tree'"),
        ({"rate": 0.5}, "rank 2 and rank 0 differ in options learning_rate: 0.5 and 0.25"),
        ({"dtype": np.float64}, r"rank 2 and rank 0 differ in variables 'w'\[1\]: 'float64' and 'float32'"),
    ],
)
def test_all_learn_that_one_differs(change: dict[str, Any], message: str) -> None:
    def program(world: fd.World) -> None:
        own = {"shape": (3, 2), "name": "w", "total": 4, "order": "tree", "rate": 0.25, "dtype": np.float32}
        own |= change if world.rank == 2 else {}
        optimizer = fd.Distributed(fv.optimizers.SGD(own["rate"]), world, own["total"], own["order"])
        optimizer.build([fv.Variable(np.zeros(own["shape"], own["dtype"]), name=own["name"])])

    errors = errors_of(4, program)
    assert {str(error) for error in errors} == {str(errors[0])}
    with pytest.raises(ValueError, match=message):
        raise errors[0]


@pytest.mark.parametrize("what", ["learning_rate", "trainable"])
def test_a_change_on_one_rank_is_an_error_on_all(what: str) -> None:
    def program(world: fd.World) -> None:
        optimizer, net = build(world)
        fill(optimizer)
        optimizer.step()
        before = ranks.digest(net)
        if world.rank == 1:
            if what == "trainable":
                net[0].trainable = False
            else:
                optimizer.optimizer.learning_rate = 0.5
        fill(optimizer, 1)
        try:
            optimizer.step()
        finally:
            assert ranks.digest(net) == before

    for error in errors_of(3, program):
        with pytest.raises(ValueError, match=f"step 2: rank 1 and rank 0 differ in .*{what}"):
            raise error


def test_infinity_on_one_rank_is_refused_on_all() -> None:
    def program(world: fd.World) -> None:
        optimizer, net = build(world, fv.optimizers.Adam(0.1, nonfinite="raise"))
        before = ranks.digest(net)
        for number in optimizer.micro_batches():
            grads = [None if g is None else g.copy() for g in ranks.gradients(0, number)]
            if number == 3:
                grads[1][5] = np.inf
            optimizer.add(grads)
        try:
            optimizer.step()
        finally:
            assert ranks.digest(net) == before
            assert optimizer.iterations == 0
            fill(optimizer)
            optimizer.step()  # training can go on

    for error in errors_of(4, program):
        with pytest.raises(ValueError, match="gradient of 'long' must be finite"):
            raise error


def test_skipped_steps_are_counted_on_all() -> None:
    def program(world: fd.World) -> tuple[int, int]:
        optimizer, _ = build(world, fv.optimizers.Adam(0.1, nonfinite="skip"))
        for step in range(3):
            for number in optimizer.micro_batches():
                optimizer.add(ranks.gradients(step, number, step == 1))
            optimizer.step()
        return optimizer.iterations, optimizer.optimizer.skipped

    assert fd.simulate(3, program) == [(2, 1)] * 3


def test_counts_with_some_gradients_only() -> None:
    def program(world: fd.World) -> None:
        optimizer, _ = build(world)
        for number in optimizer.micro_batches():
            optimizer.add(ranks.gradients(0, number), count=3 if world.rank else None)
        optimizer.step()

    for error in errors_of(2, program):
        with pytest.raises(
            ValueError, match="count must be given with all gradients of a step or with none, got 2 of 4"
        ):
            raise error


def test_no_gradient_anywhere() -> None:
    def program(world: fd.World) -> None:
        optimizer, _ = build(world)
        for _ in optimizer.micro_batches():
            pass
        optimizer.step()

    for error in errors_of(3, program):
        with pytest.raises(ValueError, match="no variable has a gradient"):
            raise error


def test_weights_that_part_are_found() -> None:
    def program(world: fd.World) -> None:
        optimizer, net = build(world, compare_every=2)
        for step in range(2):
            fill(optimizer, step)
            optimizer.step()
        if world.rank == 1:
            net[2].assign(net[2].numpy() * 2)
        fill(optimizer)
        optimizer.step()

    messages = {str(error) for error in errors_of(2, program)}
    assert len(messages) == 1
    assert "step 3: rank 1 has other weights than rank 0" in messages.pop()


def test_whole_variables_cannot_be_asked_for_later() -> None:
    def program(world: fd.World) -> None:
        optimizer, net = build(world)
        net[1].constraint = fv.constraints.UnitNorm()
        fill(optimizer)
        optimizer.step()

    for error in errors_of(2, program):
        with pytest.raises(
            ValueError, match="the constraint of 'long' needs whole variables; set it before build"
        ):
            raise error


@pytest.mark.parametrize("options", [{"adaptive_clipnorm": 0.1}, {"slot_dtype": "bfloat16"}])
def test_options_for_whole_variables_cannot_be_set_later(options: dict[str, Any]) -> None:
    def program(world: fd.World) -> None:
        optimizer, _ = build(world)
        for name, value in options.items():
            setattr(optimizer.optimizer, name, value)
        fill(optimizer)
        optimizer.step()

    for error in errors_of(2, program):
        with pytest.raises(ValueError, match=f"{next(iter(options))} needs whole variables; set it before build"):
            raise error


def test_excluded_from_decay() -> None:
    def program(world: fd.World, alone: bool = False) -> str:
        net = ranks.network({})
        inner = fv.optimizers.AdamW(0.1, weight_decay=0.5)
        inner.exclude_from_weight_decay([net[1]], ["bias"])
        optimizer = fd.Distributed(inner, world, 1, "sequence")
        optimizer.build(net)
        fill(optimizer)
        optimizer.step()
        return ranks.digest(net)

    net = ranks.network({})
    plain = fv.optimizers.AdamW(0.1, weight_decay=0.5)
    plain.exclude_from_weight_decay([net[1]], ["bias"])
    plain.apply(ranks.gradients(0, 0), net)
    assert {*fd.simulate(3, program)} == {ranks.digest(net)}


def test_averages_come_to_all() -> None:
    def program(world: fd.World) -> str:
        optimizer, net = build(world, fv.optimizers.Adam(0.1, use_ema=True))
        for step in range(3):
            fill(optimizer, step)
            optimizer.step()
        optimizer.finalize_variable_values()
        return ranks.digest(net)

    assert {*fd.simulate(3, program)} == {ranks.alone(program)}


def test_slots_are_shared_out() -> None:
    """Each rank keeps its share of the slots, and all have all of them together."""

    def program(world: fd.World) -> int:
        optimizer, _ = build(world)
        return sum(slot.size for slot in optimizer.optimizer._state.slots["momentum"])

    sizes = fd.simulate(4, program)
    assert sum(sizes) == sum(v.size for v in ranks.network({}))
    assert max(sizes) < 1.8 * sum(sizes) / 4


def test_memory_of_micro_batches_is_used_again() -> None:
    with fd.world() as world:
        optimizer, _ = build(world, total=16)
        fill(optimizer)
        optimizer.step()
        first = len(optimizer._sums._spare)
        fill(optimizer, 1)
        optimizer.step()
        assert len(optimizer._sums._spare) == first <= 5


class Halfway(Exception):
    pass


def test_error_on_one_rank_ends_the_others() -> None:
    ended: list[str] = []

    def program(world: fd.World) -> None:
        try:
            optimizer, _ = build(world)
            fill(optimizer)
            if world.rank == 1:
                raise Halfway("no data")
            optimizer.step()
        except fd.Ended as error:
            ended.append(str(error))
            raise

    with pytest.raises(Halfway, match="no data"):
        fd.simulate(3, program, timeout=20)
    assert ended == ["rank 1 has ended: Halfway: no data"] * 2


def test_rank_that_leaves_early_is_named() -> None:
    def program(world: fd.World) -> None:
        optimizer, _ = build(world)
        fill(optimizer)
        if world.rank == 1:
            return
        optimizer.step()

    with pytest.raises(fd.Ended, match="rank 1 has come to the end, and rank 0 to step 1"):
        fd.simulate(2, program, timeout=20)


def test_rank_that_does_not_come_is_an_error() -> None:
    never = threading.Event()

    def program(world: fd.World) -> None:
        optimizer, _ = build(world)
        fill(optimizer)
        if world.rank == 1:
            never.wait(3)
        optimizer.step()

    with pytest.raises(fd.Ended, match="not all ranks have come to step 1 in time"):
        fd.simulate(2, program, timeout=0.5)


def test_world_of_one() -> None:
    with fd.world() as world:
        assert (world.rank, world.size, world.stopping) == (0, 1, False)
        assert repr(world) == "<fastvar.distributed.World: rank 0 of 1>"
    with pytest.raises(ValueError, match="timeout must be > 0"):
        fd.world(timeout=0)
    with pytest.raises(ValueError, match="size must be >= 1"):
        fd.simulate(0, lambda world: None)
