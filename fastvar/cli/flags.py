"""Messages of Python functions name Python arguments; on the command line, these are flags."""

from __future__ import annotations

import argparse
import functools
import re


def spelled(text: str, command: argparse.ArgumentParser) -> str:
    """Return a message with the flags of a command in place of arguments, as `NAME=VALUE` or `NAME must ...`.

    Examples
    --------
    >>> command = argparse.ArgumentParser()
    >>> _ = command.add_argument("--steps", type=int), command.add_argument("--overwrite", action="store_true")
    >>> spelled("overwrite=True replaces it; steps must be >= 1; steps=5 would do", command)
    '--overwrite replaces it; --steps must be >= 1; --steps 5 would do'
    """
    for action in command._actions:
        flag = next((option for option in action.option_strings if option.startswith("--")), None)
        if flag is not None:
            value = "True" if action.nargs == 0 else "'[^']*'|\"[^\"]*\"|[\\w.-]+"
            pattern = rf"(?<![\w-]){action.dest}(?: must |=({value}))"
            text = re.sub(pattern, functools.partial(_written, flag, action.nargs != 0), text)
    return text


def _written(flag: str, has_value: bool, found: re.Match[str]) -> str:
    if found[1] is None:
        return f"{flag} must "
    return f"{flag} {found[1].strip(chr(39) + chr(34))}" if has_value else flag
