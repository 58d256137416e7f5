"""Sparse gradients that stay sparse: their rows alone are added, sent and updated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvar as fv
import fastvar.distributed as fd
from fastvar.distributed.orders import ORDERS, Piece, Stack
from tests.distributed.test_traffic import counted

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "weight_decay": {"weight_decay": 0.125},
    "average": {"use_ema": True},
    "overwrite": {"use_ema": True, "ema_overwrite_frequency": 2},
    "skip": {"nonfinite": "skip"},
    "bfloat16": {"slot_dtype": "bfloat16", "slot_dtype_min_size": 1},
}
RULES: dict[str, Callable[..., fv.Optimizer]] = {
    "adam": fv.optimizers.Adam,
    "momentum": lambda **options: fv.optimizers.SGD(0.1, momentum=0.9, nesterov=True, **options),
    "adagrad": fv.optimizers.Adagrad,
    "ftrl": fv.optimizers.Ftrl,
}
SPARSE = [0, 2]


def network() -> list[fv.Variable]:
    random = np.random.default_rng(0)
    shapes = {"table": (40, 3), "kernel": (60, 50), "wide": (9, 2, 300), "bias": (7,)}
    dtypes = {"wide": np.float64}
    return [
        fv.Variable(random.normal(size=shape).astype(dtypes.get(name, np.float32)), name=name)
        for name, shape in shapes.items()
    ]


def gradients(net: list[fv.Variable], step: int, number: int) -> list[Any]:
    """Return gradients with rows that occur twice, in any order, or not at all."""
    random = np.random.default_rng([step, number])
    found: list[Any] = [random.normal(size=v.shape).astype(v.dtype) for v in net]
    for i in SPARSE:
        n = int(random.integers(0, 6))
        at = random.integers(0, net[i].shape[0], n)
        found[i] = fv.IndexedSlices(random.normal(size=(n, *net[i].shape[1:])).astype(net[i].dtype), at)
    if (step + number) % 4 == 1:
        found[number % 4] = None
    if step == 1 and number == 2:
        found[2] = fv.IndexedSlices(np.full((1, *net[2].shape[1:]), np.nan), [1])
    return found


def summed(net: list[fv.Variable], step: int, total: int, order: str) -> list[Any]:
    """Return the mean gradients of a step by the definition, with dicts of rows."""
    by = ORDERS[order]
    means: list[Any] = []
    for i, v in enumerate(net):

        def add(first: dict[Any, Any], second: dict[Any, Any]) -> None:
            for row, values in second.items():
                first[row] = first[row] + values if row in first else values

        stack: Stack[dict[Any, Any]] = Stack(by, total, add)
        for number in range(total):
            gradient = gradients(net, step, number)[i]
            value: dict[Any, Any] = {}
            if isinstance(gradient, fv.IndexedSlices):
                for row, values in zip(gradient.indices.tolist(), gradient.values, strict=True):
                    add(value, {row: values.astype(v.dtype)})
            elif gradient is not None:
                value = {None: gradient}
            stack.push(Piece(number, number + 1), value)
        ((_, total_of),) = stack.held
        given = any(gradients(net, step, number)[i] is not None for number in range(total))
        scale = v.dtype.type(1 / total)
        if i not in SPARSE:
            means.append(total_of[None] * scale if given else None)
        elif given:
            rows = sorted(total_of)
            values = np.array([total_of[row] * scale for row in rows], v.dtype).reshape(-1, *v.shape[1:])
            means.append(fv.IndexedSlices(values, rows))
        else:
            means.append(None)
    return means


def trained(world: fd.World, rule: str, options: dict[str, Any], total: int, order: str) -> list[bytes]:
    net = network()
    optimizer = fd.Distributed(RULES[rule](**options), world, total, order, compare_every=1)
    optimizer.build(net, sparse=[net[i] for i in SPARSE])
    for step in range(3):
        for number in optimizer.micro_batches():
            optimizer.add(gradients(net, step, number))
        optimizer.step()
    return [v.numpy().tobytes() for v in net]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("option", OPTIONS)
def test_bits_of_one_process_that_is_given_the_sums(rule: str, option: str) -> None:
    """The oracle adds rows as the order says, and steps the plain optimizer with them."""
    for total, order in ((1, "tree"), (7, "tree"), (5, "sequence")):
        net = network()
        plain = RULES[rule](**OPTIONS[option])
        with np.errstate(all="ignore"):
            for step in range(3):
                plain.apply(summed(net, step, total, order), net)
        expected = [v.numpy().tobytes() for v in net]
        for size in (1, 2, 5):
            found = fd.simulate(size, lambda world, t=total, o=order: trained(world, rule, OPTIONS[option], t, o))
            assert found == [expected] * size, (total, order, size)


@settings(max_examples=30, deadline=None)
@given(
    named=st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=9),
    counts=st.lists(st.integers(0, 5), min_size=9, max_size=9),
    size=st.integers(1, 4),
    order=st.sampled_from([*ORDERS]),
)
def test_counts_weigh_rows(named: list[list[int]], counts: list[int], size: int, order: str) -> None:
    total = len(named)
    if not sum(counts[:total]):
        counts = [1] * 9

    def program(world: fd.World) -> Any:
        table = fv.Variable(np.zeros((10, 2)), name="table")
        optimizer = fd.Distributed(fv.optimizers.SGD(1.0), world, total, order)
        optimizer.build([table], sparse=[table])
        for number in optimizer.micro_batches():
            rows = named[number]
            values = np.full((len(rows), 2), number + 1.0)
            optimizer.add([fv.IndexedSlices(values, rows)], count=counts[number])
        optimizer.step()
        return table.numpy()

    expected = np.zeros((10, 2))
    for number, rows in enumerate(named):
        np.subtract.at(expected, rows, counts[number] * (number + 1.0) / sum(counts[:total]))
    first, *others = fd.simulate(size, program)
    np.testing.assert_allclose(first, expected, atol=1e-12)
    assert all(other.tobytes() == first.tobytes() for other in others)


def test_only_touched_rows_travel() -> None:
    n, width, touched = 50_000, 8, 20

    def program(world: fd.World) -> int:
        table = fv.Variable(np.zeros((n, width), np.float32), name="table")
        optimizer = fd.Distributed(fv.optimizers.Adam(0.1), world, 4)
        optimizer.build([table], sparse=[table])
        sent = counted(world)
        for number in optimizer.micro_batches():
            rows = np.arange(touched) + touched * number
            optimizer.add([fv.IndexedSlices(np.ones((touched, width), np.float32), rows)])
        optimizer.step()
        return sum(count for _, count in sent)

    row = 8 + 4 * width
    assert sum(fd.simulate(4, program)) == 3 * touched * row + 3 * 4 * touched * row


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (fv.optimizers.Lamb, TypeError, "gradients of 'table' must be dense for this rule"),
        (lambda: fv.optimizers.SGD(adaptive_clipnorm=0.1), TypeError, "must be dense for this rule"),
        (
            lambda: fv.optimizers.Adam(slot_dtype="8bit", slot_dtype_min_size=1),
            ValueError,
            "rows of 'table' must have a multiple of 256 elements, got 3",
        ),
    ],
)
def test_refused_on_all_ranks(make: Callable[[], fv.Optimizer], error: type[Exception], message: str) -> None:
    def program(world: fd.World) -> None:
        net = network()
        with pytest.raises(error, match=message):
            fd.Distributed(make(), world, 2).build(net, sparse=net[:1])

    fd.simulate(2, program, timeout=20)


def test_what_sparse_may_hold() -> None:
    net, other = network(), fv.Variable([1.0], name="other")
    with fd.world() as world:
        optimizer = fd.Distributed(fv.optimizers.Adam(), world, 2)
        with pytest.raises(ValueError, match="sparse must hold variables that build is given"):
            optimizer.build(net, sparse=[other])
        scalar = fv.Variable(1.0, name="scalar")
        with pytest.raises(TypeError, match="'scalar' has no rows: take it out of sparse"):
            fd.Distributed(fv.optimizers.Adam(), world, 2).build([scalar], sparse=[scalar])


def test_dense_gradient_of_a_sparse_variable() -> None:
    with fd.world() as world:
        net = network()
        optimizer = fd.Distributed(fv.optimizers.Adam(), world, 1)
        optimizer.build(net, sparse=[net[0]])
        for _ in optimizer.micro_batches():
            with pytest.raises(TypeError, match="gradient of 'table': must be IndexedSlices, as build was told"):
                optimizer.add([np.zeros(v.shape) for v in net])
            with pytest.raises(ValueError, match=r"gradient of 'table': .*40"):
                optimizer.add([fv.IndexedSlices(np.zeros((1, 3)), [40]), *(np.zeros(v.shape) for v in net[1:])])
            optimizer.add([fv.IndexedSlices(np.zeros((1, 3)), [39]), *(np.zeros(v.shape) for v in net[1:])])
        optimizer.step()


def test_rows_are_of_the_users_no_more() -> None:
    """A gradient may be overwritten after `add`."""

    def program(world: fd.World) -> Any:
        table = fv.Variable(np.zeros((4, 2), np.float32), name="table")
        optimizer = fd.Distributed(fv.optimizers.SGD(1.0), world, 2)
        optimizer.build([table], sparse=[table])
        values, rows = np.ones((2, 2), np.float32), np.array([1, 3])
        for _ in optimizer.micro_batches():
            optimizer.add([fv.IndexedSlices(values, rows)])
        values[...], rows[...] = np.nan, 0
        optimizer.step()
        return table.numpy().tolist()

    assert fd.simulate(1, program) == [[[0, 0], [-1, -1], [0, 0], [-1, -1]]]


def test_continues_on_other_numbers_of_ranks(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"

    def program(world: fd.World, first: int, last: int) -> list[bytes]:
        net = network()
        optimizer = fd.Distributed(fv.optimizers.Adam(0.1), world, 4)
        optimizer.build(net, sparse=[net[i] for i in SPARSE])
        checkpoint = fd.Checkpoint(net, optimizer=optimizer)
        if first:
            checkpoint.restore(path)
        for step in range(first, last):
            for number in optimizer.micro_batches():
                optimizer.add(gradients(net, step, number))
            optimizer.step()
        checkpoint.save(path, overwrite=True)
        return [v.numpy().tobytes() for v in net]

    expected = fd.simulate(1, lambda world: program(world, 0, 4))[0]
    for before, after in ((3, 2), (1, 4), (5, 1)):
        fd.simulate(before, lambda world: program(world, 0, 2))
        assert fd.simulate(after, lambda world: program(world, 2, 4)) == [expected] * after
