"""Retention keeps a checkpoint if any rule wants it, whatever was saved and in any order."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastvar.checkpoint.retention import Found, Retention

HISTORY = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 1e6), st.none() | st.floats(), st.booleans()),
    min_size=1,
    max_size=40,
)
CHOICE = st.builds(
    Retention,
    st.integers(1, 5),
    st.none() | st.floats(1, 100),
    st.none() | st.integers(1, 20),
    st.none() | st.just("loss"),
    st.sampled_from(["min", "max"]),
    st.integers(1, 3),
)


@given(HISTORY, CHOICE)
def test_what_any_rule_wants_stays_whenever_it_is_asked(history: list[Any], choice: Retention) -> None:
    found = [
        Found(i + 1, step, time, f"ckpt-{i + 1}.h5", {} if loss is None else {"loss": loss}, pinned)
        for i, (step, time, loss, pinned) in enumerate(history)
    ]
    folder: list[Found] = []
    for one in found:  # saved one by one, as a run does
        folder.append(one)
        gone = choice.dispensable(folder)
        folder = [f for f in folder if f not in gone]
        assert choice.dispensable(folder) == []
        assert one in folder
    assert all(f in folder for f in found[-int(choice.newest or 0) :])
    assert all(f in folder for f in found if f.pinned)
    losses = [f.metrics["loss"] for f in found if not math.isnan(f.metrics.get("loss", math.nan))]
    if choice.monitor and losses:
        best = min(losses) if choice.mode == "min" else max(losses)
        assert any(f.metrics.get("loss") == best for f in folder)
    for rule, place in ((choice.hours, lambda f: f.time / 3600), (choice.steps, lambda f: f.step)):
        if rule is not None:  # there is a checkpoint near any point of the run
            assert all(any(abs(place(f) - place(kept)) < rule for kept in folder) for f in found)
