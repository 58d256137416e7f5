"""examples/operations.sh without fastvar: look at the files of tests/before/batch_norm.py, and convert the latest.

python -m tests.before.operations FOLDER
"""

from __future__ import annotations

import argparse
import pickle
import time
from pathlib import Path

from safetensors.numpy import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    latest = None
    for path in sorted(folder.glob("*.pkl"), key=lambda path: path.stat().st_mtime):
        try:
            state = pickle.loads(path.read_bytes())
        except (EOFError, pickle.UnpicklingError) as error:  # finds a file that is cut short, but no flipped bit
            print(f"{path.name}: damaged: {error}")
            continue
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        epoch = state["progress"]["epoch"]
        print(f"{path.name}: epoch {epoch}, {written}, {path.stat().st_size:,} bytes, loss {state['loss']:.6f}")
        latest = state if path.stem != "best" else latest
    if latest is None:
        raise SystemExit(f"{folder}: no checkpoint")
    renamed = {"0": "body.0", "1": "norm", "3": "head"}
    weights = {}
    for name, array in latest["weights"].items():
        layer, _, rest = name.partition(".")
        weights[f"{renamed[layer]}.{rest}"] = array
    save_file(weights, folder / "model.safetensors")


if __name__ == "__main__":
    main()
