"""Arguments of the command line; a misspelled command, flag or choice gets a suggestion."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest what was meant, and come from the command that was given."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments, as `argparse` does."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = getattr(given, "parser", self)
            flags = [flag for action in command._actions for flag in action.option_strings]
            hints = {_like(argument, flags) for argument in unknown if argument.startswith("-")}
            command.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(sorted(hints))}")
        return given

    def error(self, message: str) -> NoReturn:
        """Print the usage and a message to standard error, and end with exit code 2."""
        if found := re.match(r"argument [^:]+: invalid choice: '(.*?)' \(", message):
            message += _like(found[1], self._choices())
        super().error(message)

    def _choices(self) -> list[str]:
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        return [str(choice) for action in self._actions for choice in action.choices or ()] + flags


def _like(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean NAME?` for the known name that a word begins or misspells, or an empty string."""
    plain = {name.strip("-"): name for name in known}
    word = word.partition("=")[0].strip("-").replace("_", "-")
    begun: Sequence[str] = [name for name in plain if len(word) > 1 and name.startswith(word)]
    close = begun or difflib.get_close_matches(word, plain, n=1)
    return f"; did you mean {plain[close[0]]}?" if close else ""
