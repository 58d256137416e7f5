"""Helpers for the tests of CheckpointManager."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import fastvar as fv


def manager(folder: Path, w: fv.Variable, **options: Any) -> fv.CheckpointManager:
    return fv.CheckpointManager(fv.Checkpoint(w=w), folder, **options)


def files(folder: Path) -> list[str]:
    """Return all file names except that of the lock."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import fastvar as fv, os, sys\n" + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
