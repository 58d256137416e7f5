"""How a command ends: its exit code, and what happens when standard output takes no more."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
import traceback
from typing import TextIO

from fastvar.cli import screen
from fastvar.cli.flags import spelled

FINE, DIFFERENT, TROUBLE, DAMAGED, INTERRUPTED, CLOSED = 0, 1, 2, 3, 130, 141

CODES = """\
exit codes:
  0    done, and everything is whole (diff: and equal)
  1    diff: the files differ
  2    it could not be done: wrong arguments, no such file, no space, ...
  3    a file is damaged, or has no known format
  130  interrupted by Ctrl-C
  141  the reader of the output, such as `head`, ended first
"""


def run(parser: argparse.ArgumentParser) -> int:
    """Run the command that the program was given and return its exit code.

    The arguments have `run`, a function of them that returns a code, and `parser`, that of the command. An error
    is printed as one line, without a traceback. No failure has the code of a damaged file.
    """
    _open_streams()
    code = _attempt(parser)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _lost(error)
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)
    return code


def _attempt(command: argparse.ArgumentParser) -> int:
    try:
        given = command.parse_args()
        command = given.parser
        code: int = given.run(given)
        return code
    except SystemExit as end:  # argparse has printed a message
        return end.code if isinstance(end.code, int) else FINE
    except KeyboardInterrupt:
        return INTERRUPTED
    except screen.Lost as lost:
        return _lost(lost.error)
    except (ImportError, OSError, TypeError, ValueError) as error:
        complain(f"{command.prog}: {spelled(message(error), command)}")
        return code_of(error)
    except Exception:
        complain(traceback.format_exc())
        return TROUBLE


def code_of(error: BaseException) -> int:
    """Return the exit code of an error: `DAMAGED` only if the bytes of a file were wrong."""
    from fastvar.checkpoint import CheckpointError  # it takes time to import

    return DAMAGED if isinstance(error, CheckpointError) and error.errno is None else TROUBLE


def message(error: BaseException) -> str:
    """Return the message of an error; leave out the number of a system error."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename) or repr('')}: {error.strerror}"
    return str(error)


def complain(text: str) -> None:
    """Print a message to standard error, if that can be written."""
    with contextlib.suppress(OSError):
        print(screen.clean(text), file=sys.stderr, flush=True)


def _open_streams() -> None:
    """Replace closed streams, and let others show any character: as an escape if they cannot encode it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _lost(error: OSError) -> int:
    """Return the exit code if standard output takes no more. The rest of it is dropped."""
    _drop(sys.stdout)
    if error.errno == errno.EPIPE:
        return CLOSED
    complain(f"fastvar: standard output: {error.strerror}")
    return TROUBLE


def _drop(stream: TextIO) -> None:
    """Let a stream lose what it holds and what is written to it."""
    with contextlib.suppress(OSError):  # such as of a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
