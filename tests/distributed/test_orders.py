"""Orders of adding: what ranks add apart gives what one adds."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvar.distributed.orders import ORDERS, Piece, Stack, pieces
from fastvar.distributed.partition import Partition, micro_batches
from fastvar.kernels.stages import BLOCK

Formula = list[str]


def added(order: str, total: int, formulas: Iterable[tuple[Piece, Formula]]) -> list[tuple[Piece, Formula]]:
    """Return what remains of sums of formulas."""

    def add(first: Formula, second: Formula) -> None:
        first[0] = f"({first[0]}+{second[0]})"

    stack: Stack[Formula] = Stack(ORDERS[order], total, add)
    for piece, formula in formulas:
        left = stack.before(piece)
        if left is not None and piece.stop == piece.start + 1:  # a gradient is added to it at once
            add(left, formula)
            stack.extend(piece)
        else:
            stack.push(piece, formula)
    return stack.held


def of_ranks(order: str, total: int, size: int) -> str:
    remain = []
    for rank in range(size):
        mine = micro_batches(total, size, rank)
        held = added(order, total, ((Piece(i, i + 1), [str(i)]) for i in mine))
        assert tuple(piece for piece, _ in held) == pieces(ORDERS[order], total, mine)
        remain += held
    ((piece, formula),) = added(order, total, remain)
    assert piece == (0, total)
    return formula[0]


@pytest.mark.parametrize("order", ORDERS)
@given(total=st.integers(1, 200), size=st.integers(1, 210))
def test_ranks_add_in_the_order_of_one(order: str, total: int, size: int) -> None:
    assert of_ranks(order, total, size) == of_ranks(order, total, 1)


def test_formulas() -> None:
    assert of_ranks("tree", 7, 3) == "(((0+1)+(2+3))+((4+5)+6))"
    assert of_ranks("sequence", 5, 2) == "((((0+1)+2)+3)+4)"


@given(total=st.integers(1, 4096), size=st.integers(1, 64))
def test_tree_leaves_few_sums(total: int, size: int) -> None:
    for rank in range(size):
        mine = micro_batches(total, size, rank)
        assert len(pieces(ORDERS["tree"], total, mine)) <= 2 * max(len(mine), 1).bit_length()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("times", [1, 2, 16])
def test_powers_of_two_leave_one_sum(size: int, times: int) -> None:
    for rank in range(size):
        assert len(pieces(ORDERS["tree"], size * times, micro_batches(size * times, size, rank))) == 1


@given(
    sizes=st.lists(st.one_of(st.integers(0, 3), st.integers(0, 9000)), min_size=1, max_size=9),
    size=st.integers(1, 12),
    whole=st.booleans(),
)
def test_parts_cover_each_element_once(sizes: list[int], size: int, whole: bool) -> None:
    partition = Partition(sizes, size, [whole] * len(sizes))
    of_all = [partition.of(rank) for rank in range(size)]
    for i, n in enumerate(sizes):
        mine = [of_rank[i] for of_rank in of_all if of_rank[i].stop > of_rank[i].start]
        assert [k for part in mine for k in (part.start, part.stop)] == ([0] if n else []) + [
            k for part in mine[1:] for k in (part.start, part.start)
        ] + ([n] if n else [])
        assert all(part.start % BLOCK == 0 for part in mine)
        held = [(rank, of_rank[i]) for rank, of_rank in enumerate(of_all) if of_rank[i].stop > of_rank[i].start]
        assert [*partition.holders(i)] == held
        assert not whole or len(mine) <= 1
    if not whole:
        shares = [sum(part.stop - part.start for part in of_rank) for of_rank in of_all]
        assert max(shares) <= np.ceil(sum(sizes) / size) + BLOCK
