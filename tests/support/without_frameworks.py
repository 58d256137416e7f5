"""A pytest plugin: tests that need a framework which is not installed are skipped. For tools/versions.py."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

FRAMEWORKS = {"autograd", "expecttest", "jax", "keras", "optax", "pandas", "sklearn", "threadpoolctl", "torch"}


def missing(error: BaseException | None) -> str:
    """Return the framework whose absence led to an error, or ""."""
    while error is not None:
        name = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and name in FRAMEWORKS:
            return name
        error = error.__cause__ or error.__context__
    return ""


def skipped(report: Any, call: Any) -> Any:
    """Return a report of a test or file, as skipped if a framework is missing."""
    if report.outcome == "failed" and (name := missing(call.excinfo.value)):
        report.outcome, report.longrepr = "skipped", (report.nodeid, 0, f"Skipped: needs {name}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    return skipped((yield), call)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    return skipped(report, report.call)
