"""Read a checkpoint without fastvar, and verify every byte: see docs/format-on-disk.md.

python examples/read_checkpoint.py run/ckpt-3.h5
"""

import json
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import xxhash


def verified(data, expected, what):
    """Return the data, or raise ValueError if their hash is not the expected one."""
    if xxhash.xxh3_128_hexdigest(data) != expected:
        raise ValueError(f"{what}: damaged")
    return data


def read(path, expected=None):
    """Return the state of a checkpoint, and by name the dtype and the array of each tensor.

    Arrays of bfloat16 and 8-bit floats are of unsigned integers. `expected` is the root hash and the length.
    """
    path, data = Path(path), memoryview(Path(path).read_bytes())
    root = data[4080:4096].hex()
    record = verified(data[:4080], root, f"{path}, commit record")
    magic, version, length = struct.unpack_from("<12sIQ", record)
    if magic != b"\x89fastvar\r\n\x1a\n" or version not in (1, 2, 3) or any(record[136:]):
        raise ValueError(f"{path}: not a checkpoint of a known version")
    if len(data) != length or expected not in (None, (root, length)):
        raise ValueError(f"{path}: has another length, or belongs to another set")
    texts, taken = [], []
    for at in (56, 88):  # manifest, state
        start, size, digest = struct.unpack_from("<QQ16s", record, at)
        texts.append(json.loads(bytes(verified(data[start : start + size], digest.hex(), path))))
        taken.append((start, size))
    (manifest, state), tensors = texts, {}
    if version == 1:
        fields = ("dtype", "shape", "offset", "length", "hash")
        manifest = {name: [row[field] for field in fields] for name, row in manifest.items()}
    taken += [(start, size) for _, _, start, size, _ in manifest.values() if size]
    starts, ends = [start for start, _ in sorted(taken)], [start + size for start, size in sorted(taken)]
    between = zip([4096, *ends], [*starts, length], strict=True)
    verified(b"".join(data[end:start] for end, start in between), record[120:136].hex(), path)
    with h5py.File(path) as file:
        for name, (dtype, shape, _, _, digest) in manifest.items():
            array = np.asarray(file[name])
            if array.shape != tuple(shape):
                raise ValueError(f"{path}: {name} has another shape")
            verified(array.tobytes(), digest, f"{path}, {name}")
            tensors[name] = dtype, array
    if version == 3:
        parts = state["$parts"]
        pieces = [read(path.parent / name, (root, length))[1] for name, root, length in parts["files"]]
        for name, (dtype, shape, places) in parts["tensors"].items():
            whole = np.concatenate([pieces[part][name][1] for part, _, _ in places])
            tensors[name] = dtype, whole.reshape(shape)
    return state, tensors


if __name__ == "__main__":
    for name, (dtype, array) in read(sys.argv[1])[1].items():
        print(name, dtype, array.shape)
