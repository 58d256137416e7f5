"""Start jobs of MPI, if it is there."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPEATS = int(os.environ.get("FASTVAR_FAULTS", "0"))  # of each fault; `make ranks` sets it
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def start(size: int, *command: str) -> subprocess.Popen[str]:
    """Start as many ranks of a program in Python."""
    return launch(size, sys.executable, *command)


def launch(size: int, *command: str) -> subprocess.Popen[str]:
    """Start as many processes as asked for, on however few processors."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_"))}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.Popen(
        [str(MPIRUN), "--oversubscribe", "--bind-to", "none", "-n", str(size), *command],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def running(pid: int) -> bool:
    for _ in range(50):  # mpirun may end before what it has killed
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True
