"""The table of memory says what `fastvar.optimizers` say, and what there is."""

from __future__ import annotations

import pytest

import fastvar as fv
import fastvar.keras.optimizers as ours
from tests.support.keras_sixteen import OPTIONS, built, every_choice, every_class, step, variables
from tests.support.keras_steps import as_array, everything, make

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("option", ["many", "8bit"])
@every_choice
@every_class
def test_bytes_are_those_of_fastvar_and_of_all_variables(name: str, dtype: str, master: bool, option: str) -> None:
    options = {"master": master, **OPTIONS[option]}
    of = variables(dtype)
    mine = built(name, of, **options)
    other = make(fv.optimizers, name, **options)
    other.build([fv.Variable(as_array(v), name=v.path) for v in of])
    before = everything(mine, of)
    table = mine.memory()
    assert (table.columns, table.rows) == (other.memory().columns, other.memory().rows)
    assert everything(mine, of) == before
    (total,) = [row[1] for row in table.rows if row[0] == "total"]
    if name not in ("Adafactor", "Muon", "Nadam", "SGD"):  # for which Keras keeps what the rule does not need
        state = [v for v in mine.variables if v.ndim]
        assert total == sum(as_array(v).nbytes for v in [*of, *state])
    step(mine, of, range(1))
    assert mine.memory().rows == table.rows


def test_memory_that_cannot_be_known() -> None:
    optimizer = ours.Adam()
    with pytest.raises(ValueError, match=r"^Adam: must be built before its memory is known$"):
        optimizer.memory()
    optimizer.build(variables("bfloat16"))
    with pytest.raises(ValueError, match=r"^Adam: only Keras's code can run it: .*, or master True or False, got"):
        optimizer.memory()
