"""Run a program in a new process."""

from __future__ import annotations

import os
import subprocess
import sys


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new process, in which only `environment` sets threads."""
    env = {k: v for k, v in os.environ.items() if "NUM_THREADS" not in k and k != "FASTVAR_ISA"}
    command = [sys.executable, "-W", "error", "-c", code]
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def output(code: str, **environment: str) -> str:
    done = run(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
