"""The fixture of tests that start jobs of MPI."""

import pytest

from tests.support.mpi_jobs import MPIRUN, launch


@pytest.fixture(scope="module")
def mpi() -> None:
    """Skip where MPI is not installed, or cannot start a program at all."""
    pytest.importorskip("mpi4py")
    if MPIRUN is None:
        pytest.skip("no mpirun")
    process = launch(2, "true")
    _, err = process.communicate(timeout=120)
    if process.returncode:
        pytest.skip(f"mpirun cannot start a program here: {err[-300:]}")
