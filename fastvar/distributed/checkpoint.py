"""Checkpoints of many ranks: each writes what only it has, and reads what it needs."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from fastvar import checkpoint
from fastvar.buffers import Array
from fastvar.checkpoint import parts
from fastvar.checkpoint.bookkeeping import ORDER, add_notes
from fastvar.checkpoint.contents import Contents, Rename
from fastvar.checkpoint.file_format import CheckpointError, Saved, dtype_named, failing
from fastvar.checkpoint.locks import Lock
from fastvar.checkpoint.masters import SUFFIX, masters_of
from fastvar.checkpoint.publishing import absolute, make_directory
from fastvar.checkpoint.report import Restored
from fastvar.checkpoint.restore import Choice, NameMap, assign, match, renamer, source_of
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.distributed.optimizer import Distributed
from fastvar.distributed.rank_file import RankFile, Share
from fastvar.distributed.reading import Reading
from fastvar.distributed.world import World
from fastvar.optimizer.quantized import parts_of
from fastvar.optimizer.saved import slots_of

T = TypeVar("T")
_KINDS: dict[str, type[Exception]] = {  # of errors that are of the same kind on all ranks
    kind.__name__: kind for kind in (FileExistsError, FileNotFoundError, TypeError, ValueError)
}


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

    @property
    def _order(self) -> dict[str, Any]:
        """On what the order of adding gradients depends."""
        return {"order": self._shared.order, "micro_batches": self._shared._total}

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
                for suffix, v in (("", whole), (SUFFIX, whole._master)):
                    if v is not None:
                        here = v.value.reshape(-1)[mine[i]]
                        shares[f"variables/{name}{suffix}"] = Share(start, whole.shape, here)
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
        state[ORDER] = self._order
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
        """Do something on this rank. If it raises an error on any, raise that of the first such rank on all."""
        error: Exception | None = None
        result: Any = None
        try:
            result = act()
        except Exception as raised:
            error = raised
        said = self._world.agree(what, error=[type(error).__name__, str(error)] if error else None)
        for rank, one in enumerate(said):
            if one["error"] is not None:
                kind, text = one["error"]
                if error and rank == self._world.rank:
                    raise error
                raise _KINDS.get(kind, CheckpointError)(f"rank {rank}: {text}") from error
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
        """Restore on all ranks; see `fastvar.Checkpoint.restore`.

        Together they read each byte once, and send each other what they need. Each holds its part of the
        variables and slots a second time, until all ranks have verified all that they have read.

        Raises
        ------
        CheckpointError, ValueError
            On all ranks, if a file is damaged or does not match. Then nothing has changed. Also if ranks saved it
            with another `order` or `micro_batches`, unless `hyperparameters="program"`: bits would differ from
            those of the run that is continued.
        """
        self._world.agree(f"restore {absolute(path)}")
        contents, rename = self._contents(), renamer(name_map)
        first = self._world.rank == 0
        with self._hold(), contextlib.ExitStack() as opened:
            file = self._together(
                "restore: opening", lambda: opened.enter_context(CheckpointFile(path, check=first))
            )
            mine = self._of_this_rank(file, contents, rename)
            reading = Reading(self._world, file)
            of_state = ("state/", *(f"{keyword}/" for keyword in contents.of_pytorch))
            self._fetch(reading, mine, [name for name in mine.entries if name.startswith(of_state)])
            differences = self._together("restore: order", lambda: self._differences(file, hyperparameters))
            matched = self._together(
                "restore: matching", lambda: match(contents, mine, partial, name_map, hyperparameters, cast)
            )
            matched.restored.hyperparameters.extend(differences)
            self._fetch(reading, mine, matched.sources)
            commits, before = self._together("restore: preparing", matched.read)
            self._together("restore", lambda: assign(commits, before))
            self._shared._exchange.share_weights()
        return matched.restored

    def _of_this_rank(self, file: CheckpointFile, contents: Contents, rename: Rename) -> RankFile:
        """Return what this rank needs of a file, given what gives the names there."""
        shares, masters = {}, masters_of(contents.variables)
        for name, share in self._shares(contents).items():
            suffix = SUFFIX if name in masters else ""
            source = source_of(name.removesuffix(suffix), rename)
            if source is not None:
                shares[source + suffix] = share
        others = {rename(name) for name in self._others(contents)}
        slots = [name for name in file.entries if name.startswith(f"{self._keyword}/") and name not in shares]
        return RankFile(file, shares, {name for name in slots if self._variable_of(name) in others})

    def _differences(self, file: CheckpointFile, hyperparameters: Choice) -> list[str]:
        """Return how the order of adding gradients differs from that of a file, which must be wanted."""
        saved, keyword = file.state.get(ORDER, self._order), self._keyword
        there = saved if isinstance(saved, dict) else {}
        found = [
            f"{keyword}.{name}: {value!r} here, {there.get(name)!r} in the file"
            for name, value in self._order.items()
            if there.get(name) != value
        ]
        if found and hyperparameters == "saved":
            raise ValueError(
                f"{file.path}: gradients were added in another order: {'; '.join(found)}; give Distributed what "
                'the file has to continue with the same bits, or restore with hyperparameters="program"'
            )
        return found

    def _fetch(self, reading: Reading, mine: RankFile, names: Iterable[str]) -> None:
        """Read tensors of a file on all ranks."""
        mine.data |= reading.fetch(mine.ranges(names))
        self._together("restore: reading", reading.check)
