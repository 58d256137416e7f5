"""Settings of all tests. No test depends on the threads that another sets."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports Keras. tests/keras/test_backends.py runs tests on another backend.
os.environ["KERAS_BACKEND"] = os.environ.get("FASTVAR_KERAS_BACKEND", "numpy")

os.environ.pop("COLUMNS", None)  # pytest's processes have it: commands would break lines as on a terminal

settings.register_profile(
    "fastvar",
    deadline=None,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fastvar")


def pytest_collection_modifyitems(items):
    """Refuse names that differ between the processes which share the tests."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has an address in its name; give it `ids`")


@pytest.fixture(autouse=True)
def _threads_as_before():
    from fastvar import threads

    before = threads._chosen
    yield
    threads._chosen = before
