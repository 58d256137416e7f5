"""Saves and restores a set of objects: all of them, verified, or none."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Concatenate, Never, ParamSpec, TypeVar

from fastvar.buffers import Array
from fastvar.checkpoint.contents import Contents
from fastvar.checkpoint.file_format import check_names, failing, uncollected
from fastvar.checkpoint.foreign import open_foreign
from fastvar.checkpoint.foreign.source import Opaque
from fastvar.checkpoint.importing import prepare_import
from fastvar.checkpoint.masters import masters_of
from fastvar.checkpoint.publishing import absolute, make_directory
from fastvar.checkpoint.reader import prefetch
from fastvar.checkpoint.report import Restored, summary
from fastvar.checkpoint.restore import Choice, NameMap, assign, match
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.checkpoint.writer import write
from fastvar.kernels.turn import Hold
from fastvar.optimizer import Optimizer
from fastvar.tables import Shown, Table, count

P = ParamSpec("P")
R = TypeVar("R")


def _between_steps(method: Callable[Concatenate[Checkpoint, P], R]) -> Callable[Concatenate[Checkpoint, P], R]:
    """Let no other thread step the checkpoint's optimizers during the method."""

    @functools.wraps(method)
    def held(self: Checkpoint, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._hold():
            return method(self, *args, **kwargs)

    return held


class Checkpoint(Shown):
    """A set of objects that are saved and restored together.

    A save or restore waits for a step that another thread makes with one of the optimizers, and steps wait for it.
    What other threads write to the variables outside steps may be saved or not; the file is whole in any case.

    Parameters
    ----------
    root : Module or other tree, optional
        Its variables are named by their paths in it, such as `encoder/0/kernel`.
    **objects
        Variables, and trees of them: modules, dicts, lists, tuples, named tuples, dataclasses (named by keyword
        and path, unless a variable has a name of its own); optimizers; random generators of NumPy and Python;
        dicts of state, restored in place; objects with `state_dict()` and `load_state_dict(state)`. State may hold
        None, bool, int, float, str, lists, dicts with str keys, and NumPy arrays and scalars of numbers. Every
        value comes back with its exact type; `save` refuses other types, subclasses included. Also modules,
        optimizers, schedulers, gradient scalers and random generators of PyTorch.

    Raises
    ------
    TypeError, ValueError
        For other objects, and if two variables have one name.

    Examples
    --------
    >>> import fastvar as fv, tempfile, os
    >>> w = fv.Variable([1.0, 2.0], name="w")
    >>> progress = {"epoch": 3}
    >>> checkpoint = fv.Checkpoint(variables=[w], progress=progress)
    >>> path = checkpoint.save(os.path.join(tempfile.mkdtemp(), "model.h5"))
    >>> w[...] = 0
    >>> progress["epoch"] = 0
    >>> checkpoint.restore(path).taken
    ['progress', 'variables/w']
    >>> w.value, progress
    (array([1., 2.]), {'epoch': 3})
    """

    def __init__(self, root: Any = None, /, *unnamed: Never, **objects: Any) -> None:
        if unnamed:
            raise TypeError("Checkpoint: name the objects: Checkpoint(model=model, optimizer=optimizer)")
        self._root, self._objects = root, objects
        check_names(self._contents().tensors())  # raise errors about the objects here, not at the first save

    def _contents(self) -> Contents:
        return Contents(self._root, self._objects)

    def _hold(self) -> Hold:
        """Return a context that waits until no other thread is in a step, and makes steps wait."""
        optimizers = [thing for thing in self._objects.values() if isinstance(thing, Optimizer)]
        return Hold(turn for optimizer in optimizers for turn in optimizer._turns)

    @_between_steps
    @uncollected()
    def save(self, path: str | os.PathLike[str], *, step: int | None = None, overwrite: bool = False) -> str:
        """Write everything to one HDF5 file and return its absolute path. The file is durable then.

        Parameters
        ----------
        path : str or path-like
            The file. Missing folders are made.
        step : int, optional
            Stored in the file; by default the `iterations` of the only optimizer, else 0.
        overwrite : bool
            Whether to replace a file of that name, in one instant.

        Raises
        ------
        FileExistsError
            If the file exists, and `overwrite` is false.
        CheckpointError
            If the file cannot be written. Older files are untouched.
        """
        path = absolute(path)
        tensors, arrays, state, own_step = self.collect()
        with failing(path):
            make_directory(os.path.dirname(path))
        write(path, tensors | arrays, state, step=own_step if step is None else step, replace=overwrite)
        return path

    def collect(self) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any], int]:
        """Return what a save writes: tensors (not copied), arrays of the state (copied), state, step."""
        contents = self._contents()
        try:
            state, slots, arrays = contents.state()
        except RecursionError as error:
            raise ValueError("Checkpoint: state is nested too deeply") from error
        tensors, masters = contents.tensors(), masters_of(contents.variables)
        for one, other in ((tensors, masters), (tensors, slots)):
            if both := one.keys() & other.keys():
                raise ValueError(f"Checkpoint: two tensors are named {min(both)!r}")
        tensors |= masters
        written = {name: place._array for name, place in tensors.items()}
        return written | slots, arrays, state, _step_of(contents)

    def step(self) -> int:
        """Return the `iterations` of the only optimizer, else 0."""
        return _step_of(self._contents())

    @property
    def has_step(self) -> bool:
        """Whether there is exactly one optimizer, whose iterations count the steps."""
        return len(self._contents().optimizers) == 1

    @_between_steps
    @uncollected()
    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        partial: bool = False,
        name_map: NameMap | None = None,
        hyperparameters: Choice = "saved",
        cast: bool = False,
    ) -> Restored:
        """Read a file, verify all of it, and only then restore the state of every object.

        Large tensors are read twice, first to verify them, then into place, so that memory holds them once. (Slots
        of an optimizer that is not built yet hold nothing that could be lost, and are read once.) If the file
        changes between the two reads, that is an error, and everything but large tensors is unchanged.

        Objects with `load_state_dict` get their state first. If one refuses it, nothing else has changed, and the
        objects before it get back what their `state_dict()` returned. KeyboardInterrupt and other exceptions of
        signal handlers wait until everything is assigned.

        An optimizer that is not built yet is built as it was saved, with the slots that its hyperparameters need.
        A schedule that is a plain function stays that of the program. The streams of random generators come back;
        the count of children that they have spawned does not.

        Parameters
        ----------
        path : str or path-like
            The file; of a set of part files, the commit file.
        partial : bool
            Restore what matches by name, and leave the rest unchanged. By default everything must match.
        name_map : mapping or callable, optional
            From the name of a variable here, or the leading part of its path, to that in the file. None leaves
            the variable as it is. The empty path stands for all variables. In a mapping, a key that is not a name
            here is an error, and so is a target that is not one in the file.
        hyperparameters : {"saved", "program"}
            Which hyperparameters to use from now on, by default those of the file. The report lists all that
            differ. With "program", the state of schedules still comes back, and the slots must be those of the
            file.
        cast : bool
            With "program", convert slots that have another `slot_dtype` in the file, which rounds them. By default
            they are an error.

        Returns
        -------
        Restored
            What was restored, what the file lacks, and what only the file has. It prints as a short report.

        Raises
        ------
        CheckpointError
            If the file is damaged or not a checkpoint.
        ValueError
            If names, shapes or dtypes do not match: one error for all of them.

        Warns
        -----
        RuntimeWarning
            If a hyperparameter changes that the program had set.

        Examples
        --------
        >>> import fastvar as fv, tempfile
        >>> w = fv.Variable([1.0], name="w")
        >>> optimizer = fv.optimizers.Adam(0.01)
        >>> optimizer.apply([[1.0]], [w])
        >>> path = fv.Checkpoint(w=w, optimizer=optimizer).save(tempfile.mkdtemp() + "/a.h5")
        >>> optimizer = fv.optimizers.Adam(0.001, clipnorm=1.0)
        >>> report = fv.Checkpoint(w=w, optimizer=optimizer).restore(path, hyperparameters="program")
        >>> report.hyperparameters[0]
        'optimizer.learning_rate: 0.001 here, 0.01 in the file'
        >>> optimizer.learning_rate, optimizer.clipnorm, optimizer.iterations
        (0.001, 1.0, 1)
        """
        prefetch(path)
        contents = self._contents()
        with CheckpointFile(path) as file:
            matched = match(contents, file, partial, name_map, hyperparameters, cast)
            assign(*matched.read())
        return matched.restored

    @_between_steps
    def import_weights(
        self,
        path: str | os.PathLike[str],
        *,
        partial: bool = False,
        name_map: NameMap | None = None,
        cast: bool = False,
        edited: bool = False,
        opaque: Opaque | None = None,
    ) -> Restored:
        """Import variables from a file of another library: HDF5, Keras's `.weights.h5`, `.npz`, safetensors.

        Everything is read and checked before anything is assigned. State such as `iterations` and hyperparameters
        is not imported. Slots of a built optimizer are imported if the file has them as `optimizer/NAME/SLOT`, or
        if a mapping gives their names; bias corrections continue from the optimizer's own `iterations`.
        `load_foreign` describes what is refused in files.

        Parameters
        ----------
        path : str or path-like
            The file.
        partial : bool
            Restore what matches by name, and leave the rest unchanged. By default everything must match.
        name_map : mapping or callable, optional
            As for `restore`, such as `{"encoder/kernel": "layers/dense/vars/0"}` for a file of Keras, or
            `lambda name: name.replace("/", ".")` for one of PyTorch's names.
        cast : bool
            Convert dtypes where that may lose digits, such as float64 in the file to float32 here. Conversions
            that lose none are always done. Numbers that are too large for the dtype are an error.
        edited : bool
            Accept a checkpoint of fastvar that another program has changed, without verification.
        opaque : dtype or str, or mapping of str to these or None, optional
            The dtype of opaque bytes in the file, such as `"bfloat16"`; see `load_foreign`.

        Returns
        -------
        Restored
            What was restored, what the file lacks, and what only the file has. It prints as a short report.

        Raises
        ------
        CheckpointError
            If the file has another format, is damaged, or contains something that is refused.
        ValueError
            If names, shapes or dtypes do not match, or fastvar wrote the file (use `restore`).

        Examples
        --------
        >>> import fastvar as fv, numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/other.npz"
        >>> np.savez(path, weight=np.ones((2, 3)), bias=np.zeros(3))
        >>> w = fv.Variable(np.zeros((2, 3)), name="w")
        >>> checkpoint = fv.Checkpoint(variables=[w])
        >>> checkpoint.import_weights(path, partial=True, name_map={"w": "weight"}).taken
        ['variables/w']
        """
        with open_foreign(path, edited=edited, opaque=opaque) as file:
            restored, commits = prepare_import(self._contents(), file, partial, name_map, cast)
        assign(commits)
        return restored

    def _table(self) -> Table:
        contents = self._contents()
        names = [*contents.variables, *contents.tensors_of_modules]
        rows = [("variables", summary(names))] if names else []
        rows += [
            (name, f"{type(optimizer).__name__}, {count(optimizer.iterations, 'iteration')}")
            for name, optimizer in contents.optimizers.items()
        ]
        rows += [(name, type(thing).__name__) for name, thing in (contents.of_pytorch | contents.states).items()]
        return Table(f"Checkpoint of {count(len(names), 'variable')}", ("", ""), rows)


def _step_of(contents: Contents) -> int:
    optimizers = list(contents.optimizers.values())
    return optimizers[0].iterations if len(optimizers) == 1 else 0
