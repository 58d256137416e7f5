"""Settings of all tests. No test depends on the threads that another sets."""

import os

import pytest
from hypothesis import HealthCheck, settings

os.environ["KERAS_BACKEND"] = "numpy"  # before anything imports Keras

settings.register_profile(
    "fastvar",
    deadline=None,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fastvar")


@pytest.fixture(autouse=True)
def _threads_as_before():
    from fastvar import threads

    before = threads._chosen
    yield
    threads._chosen = before
