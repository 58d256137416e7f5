"""Checkpoints of many ranks: each writes what only it has, and reads what it needs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastvar import checkpoint
from fastvar.buffers import Array
from fastvar.checkpoint import parts
from fastvar.checkpoint.bookkeeping import add_notes
from fastvar.checkpoint.contents import Contents
from fastvar.checkpoint.file_format import CheckpointError, Entry, Saved, dtype_named, failing
from fastvar.checkpoint.locks import Lock
from fastvar.checkpoint.publishing import absolute, make_directory
from fastvar.checkpoint.report import Restored
from fastvar.checkpoint.restore import Choice, NameMap, assign, prepare_restore
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.distributed.optimizer import Distributed
from fastvar.distributed.world import World
from fastvar.optimizer.quantized import parts_of
from fastvar.optimizer.saved import slots_of

T = TypeVar("T")


class Share(NamedTuple):
    """What a rank has of a tensor: elements from `start` on, in C order, of one of this shape."""

    start: int
    shape: tuple[int, ...]
    here: Array


class Checkpoint(checkpoint.Checkpoint):
    """A checkpoint of objects that all ranks have, and of an optimizer whose slots they share out.

    It takes what `fastvar.Checkpoint` takes, and one `Distributed` optimizer, which must be built. All ranks make
    the same calls. `save` makes a set of files: one of each rank with its part of the variables and slots, and the
    file of the given name, which is written last and makes the set exist. `fastvar.Checkpoint`, the command line
    and h5py read the set as one file. `restore` reads sets of any number of ranks, and files of one process.

    Other objects, such as dicts and random generators, are those of rank 0, and are restored on all ranks.

    Examples
    --------
    >>> import fastvar as fv, fastvar.distributed as fd, numpy as np, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "model.h5")
    >>> def program(world, restore):
    ...     w = fv.Variable(np.ones(5000, np.float32), name="w")
    ...     optimizer = fd.Distributed(fv.optimizers.Adam(0.5), world, micro_batches=2)
    ...     optimizer.build([w])
    ...     checkpoint = fd.Checkpoint([w], optimizer=optimizer)
    ...     if restore:
    ...         checkpoint.restore(path)
    ...     for i in optimizer.micro_batches():
    ...         optimizer.add([np.ones(5000)])
    ...     optimizer.step()
    ...     if not restore:
    ...         checkpoint.save(path)
    ...     return optimizer.iterations, round(float(w[0]), 4)
    >>> fd.simulate(2, lambda world: program(world, False))
    [(1, 0.5), (1, 0.5)]
    >>> fd.simulate(3, lambda world: program(world, True))
    [(2, 0.0), (2, 0.0), (2, 0.0)]
    """

    def __init__(self, root: Any = None, /, **objects: Any) -> None:
        shared = {keyword: thing for keyword, thing in objects.items() if isinstance(thing, Distributed)}
        if len(shared) != 1:
            raise TypeError(f"Checkpoint: must be given one Distributed optimizer, got {len(shared)}")
        ((self._keyword, self._shared),) = shared.items()
        self._shared._built()
        self._world: World = self._shared.world
        super().__init__(root, **objects | {self._keyword: self._shared.optimizer})

    def _contents(self) -> Contents:
        contents = super()._contents()
        for whole, part in self._shared._pairs():
            contents._names[id(part)] = contents.name_of(whole)
        return contents

    def _shares(self, contents: Contents) -> dict[str, Share]:
        """Return what this rank has, by the names of tensors in files. Other tensors are the same on all ranks."""
        shared, shares = self._shared, dict[str, Share]()
        mine, slots = shared._exchange.mine, slots_of(shared.optimizer)
        tensors = contents.tensors()
        for i, (whole, part) in enumerate(shared._pairs()):
            name, start = contents.name_of(whole), mine[i].start
            if f"variables/{name}" in tensors:
                here = whole.value.reshape(-1)[mine[i]]
                shares[f"variables/{name}"] = Share(start, whole.shape, here)
            for slot, of_variables in slots.items():
                place = of_variables[i]
                for suffix, variable in parts_of(place).items() if place is not None else ():
                    array = variable.value
                    cut = shared._cut and array.shape == part.shape
                    share = Share(start, whole.shape, array) if cut else Share(0, array.shape, array)
                    shares[f"{self._keyword}/{name}/{slot}{suffix}"] = share
        return shares

    def _others(self, contents: Contents) -> set[str]:
        """Return the names of the variables of which only other ranks have something."""
        parts_here = self._shared._exchange.mine
        pairs = zip(self._shared.variables, parts_here, strict=True)
        return {contents.name_of(v) for v, part in pairs if v.size and part.stop == part.start}

    # Saving.

    def save(self, path: str | os.PathLike[str], *, step: int | None = None, overwrite: bool = False) -> str:
        """Write a set of files on all ranks, and return the absolute path of the one that makes it exist.

        It is durable on return. The folder must be the same for all ranks.

        Raises
        ------
        CheckpointError
            On all ranks, if one cannot write. Older files are untouched.
        """
        path = absolute(path)
        folder, name = os.path.split(path)
        lock = Lock(os.path.join(folder, f".fastvar-{name}.lock"))

        def begin() -> None:
            with failing(path):
                make_directory(folder)
                if os.path.lexists(path) and not overwrite:
                    raise FileExistsError(f"{path}: exists; pass overwrite=True to replace it")
                lock.acquire()

        try:
            self._on_first(f"save {path}", begin)
            with self._hold():
                write, commit = self._prepared(path, lock, step, replace=overwrite)
                record = self._together("save a part", write)
            commit(record)
        finally:
            lock.release()
        return path

    def _prepared(
        self,
        path: str,
        lock: Lock,
        step: int | None,
        *,
        replace: bool = False,
        saved: Saved | None = None,
        metrics: Mapping[str, float] | None = None,
        copy: Callable[[dict[str, Array]], dict[str, Array]] = dict,
    ) -> tuple[Callable[[], parts.PartRecord], Callable[[parts.PartRecord], None]]:
        """Return what writes this rank's part, in any thread, and what then makes the set exist, on all ranks.

        `copy` gives the arrays to write. The lock is that of rank 0.
        """
        set_id, world = self._on_first("save", parts.new_set), self._world
        contents = self._contents()
        tensors, arrays, state, own_step = self.collect()
        shares, others = self._shares(contents), self._others(contents)
        step = own_step if step is None else step
        here = {name: share.here for name, share in shares.items() if share.here.size}
        copies = copy(here | {name: array for name, array in tensors.items() if name not in shares})
        slices = {name: parts.Slice(shares[name].shape, shares[name].start, copies[name]) for name in here}
        rest = {name: array for name, array in copies.items() if name not in here} | arrays
        add_notes(state, metrics or {})
        empty = {
            name: (share.here.dtype.name, share.shape)
            for name, share in shares.items()
            if 0 in share.shape and self._variable_of(name) not in others
        }
        write = parts.prepare_part(path, set_id, world.rank + 1, world.size, slices, step=step, saved=saved)

        def commit(record: parts.PartRecord) -> None:
            said = world.agree("save: the parts", record=record, empty=empty)
            written = [one["record"] for one in said]
            empties = {name: of for one in said for name, of in one["empty"].items()}
            more = {name: np.empty(shape, dtype_named(dtype)) for name, (dtype, shape) in empties.items()}
            publish = functools.partial(parts.publish, step=step, lock=lock, replace=replace, saved=saved)
            self._on_first("publish", lambda: publish(path, written, rest | more, state))

        return write, commit

    def _variable_of(self, name: str) -> str:
        """Return the name of the variable of a tensor."""
        if name.startswith("variables/"):
            return name.removeprefix("variables/")
        return name.removeprefix(f"{self._keyword}/").rpartition("/")[0]

    def _on_first(self, what: str, act: Callable[[], T]) -> T:
        """Do something on rank 0, and return its JSON value on all."""
        result = self._together(what, act) if self._world.rank == 0 else self._together(what, lambda: None)
        return self._world.agree(f"{what}: done", result=result)[0]["result"]  # type: ignore[no-any-return]

    def _together(self, what: str, act: Callable[[], T]) -> T:
        """Do something on this rank. Raise an error on all ranks if it raises one on any."""
        error: Exception | None = None
        result: Any = None
        try:
            result = act()
        except Exception as raised:
            error = raised
        said = self._world.agree(what, error=str(error) if error else None)
        if error:
            raise error
        for rank, one in enumerate(said):
            if one["error"] is not None:
                raise CheckpointError(f"rank {rank}: {one['error']}")
        return result  # type: ignore[no-any-return]

    # Restoring.

    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        partial: bool = False,
        name_map: NameMap | None = None,
        hyperparameters: Choice = "saved",
        cast: bool = False,
    ) -> Restored:
        """Restore on all ranks; see `fastvar.Checkpoint.restore`. Each reads what it needs of the slots and its
        part of the variables, which it then sends to the others.

        Raises
        ------
        CheckpointError, ValueError
            On all ranks, if a file is damaged or does not match. Then nothing has changed.
        """
        self._world.agree(f"restore {absolute(path)}")
        contents = self._contents()
        shares, others = self._shares(contents), self._others(contents)
        with self._hold(), self._together("restore", lambda: RankFile(path)) as file:
            slots = [name for name in file.entries if name.startswith(f"{self._keyword}/") and name not in shares]
            file.share(shares, [name for name in slots if self._variable_of(name) in others])
            restored, commits, before = self._together(
                "restore", lambda: prepare_restore(contents, file, partial, name_map, hyperparameters, cast)
            )
            self._together("restore", lambda: assign(commits, before))
            self._shared._exchange.share_weights()
        return restored


class RankFile(CheckpointFile):
    """A checkpoint as one rank needs it: of what ranks share out, it reads this rank's elements."""

    _shares: Mapping[str, Share] = {}
    _whole: CheckpointFile | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._whole = CheckpointFile(path, check=False)  # whose entries stay those of whole tensors
        if self._whole.record != self.record:
            self.close()
            raise CheckpointError(f"{path}: has been replaced while it was opened")

    def close(self) -> None:
        if self._whole:
            self._whole.close()
        super().close()

    def share(self, shares: Mapping[str, Share], foreign: Iterable[str]) -> None:
        """Set what this rank needs, and forget what only others need."""
        for name in foreign:
            del self.entries[name]
        self._shares = shares
        for name, (_, shape, array) in shares.items():
            entry = self.entries.get(name)
            if name.startswith("variables/"):
                continue
            if not array.size and (entry is None or entry.shape != array.shape):
                self.entries[name] = Entry(array.dtype, array.shape, None, 0, "")
            elif entry is not None and entry.shape == shape:
                self.entries[name] = entry._replace(shape=array.shape, length=array.nbytes)

    def _mine(self, name: str) -> Array:
        """Return the array of a tensor, with this rank's elements in it."""
        start, shape, here = self._shares[name]
        whole = np.zeros(shape, self.entries[name].dtype) if name.startswith("variables/") else None
        array = np.empty(here.shape, self.entries[name].dtype)
        if array.size:
            self._read_elements(name, start, array)
        if whole is None:
            return array
        whole.reshape(-1)[start : start + array.size] = array.reshape(-1)
        return whole

    def _read_elements(self, name: str, start: int, array: Array) -> None:
        assert self._whole is not None
        self._whole.read_ranges([(name, start, array)])

    def read(self, name: str) -> Array:
        return self._mine(name) if name in self._shares else super().read(name)

    def read_small(self, names: Sequence[str]) -> list[bytes]:
        others = [name for name in names if name not in self._shares]
        data = dict(zip(others, super().read_small(others), strict=True))
        return [data[name] if name in data else self._mine(name).tobytes() for name in names]

    def read_into(self, targets: Sequence[tuple[str, Array]]) -> None:
        super().read_into([target for target in targets if target[0] not in self._shares])
        for name, array in targets:
            if name in self._shares:
                start, _, here = self._shares[name]
                flat = array.reshape(-1)
                flat = flat[start : start + here.size] if name.startswith("variables/") else flat
                if flat.size:
                    self._read_elements(name, start, flat)

    def verify(self, names: Iterable[str] | None = None) -> None:
        names = [*(self.entries if names is None else names)]
        super().verify([name for name in names if name not in self._shares])
        for name in names:
            if name in self._shares:
                self._mine(name)
