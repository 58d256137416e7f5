from collections.abc import Iterable, Sequence
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from fastvar.slices import Rows

RULES: dict[str, CompiledRule]

@final
class CompiledRule:
    @property
    def slots(self) -> tuple[str, ...]: ...
    @property
    def scalars(self) -> tuple[str, ...]: ...

@final
class Plan:
    @property
    def stages(self) -> npt.NDArray[Any]: ...
    @property
    def owner(self) -> str: ...
    def __new__(
        cls,
        owner: str,
        rule: CompiledRule | Sequence[CompiledRule],
        names: Sequence[str],
        weights: Iterable[npt.NDArray[Any]],
        slots: Iterable[Sequence[npt.NDArray[Any]]],
        groups: Iterable[int],
        averages: Iterable[npt.NDArray[Any] | None] | None = None,
        directions: Iterable[npt.NDArray[Any]] | None = None,
        rows: bool = True,
    ) -> Self: ...
    def share_scalars(self, cohort_of: Iterable[int]) -> None: ...
    def bind(self, gradients: Iterable[Any], zero: bool = False) -> int: ...
    def sums_of_squares(self, each: bool, threads: int = 1) -> npt.NDArray[np.float64]: ...
    def run(
        self,
        scalars: Sequence[Sequence[float]],
        threads: int = 1,
        count: list[int] | None = None,
        commits: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] | None = None,
        guard: bool = False,
    ) -> list[tuple[int, bool]]: ...

def dot(x: npt.NDArray[Any], y: npt.NDArray[Any], threads: int = 1) -> float: ...
def merge(gradient: Rows, wide: bool) -> Rows: ...
def unit_sums(
    x: npt.NDArray[Any], rows: int, columns: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
def copy(
    targets: Iterable[npt.NDArray[Any]], sources: Iterable[npt.NDArray[Any] | bytes], threads: int = 1
) -> None: ...
def openmp() -> bool: ...
def max_threads() -> int: ...
