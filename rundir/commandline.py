"""The command lines of ``python -m PACKAGE``: each complaint is one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from rundir.errors import UserError, unknown


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every error is told."""

    def error(self, message: str) -> NoReturn:
        """Raise the user's error."""
        raise UserError(f"{message}; see {self.prog} --help")


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, by name."""
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return dict(action.choices)
    return {}


def command_of(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command that comes first; show the help where that is asked for.

    Raises:
        UserError: there is none, or it is unknown.
    """
    commands = commands_of(parser)
    if not words or words[0].startswith("-"):
        parser.parse_args(words)  # shows the help, or says that a command is missing
    if words[0] not in commands:
        raise unknown("command", words[0], commands)
    return commands[words[0]]


def options_of(
    command: argparse.ArgumentParser, words: Sequence[str], hint: str = ""
) -> argparse.Namespace:
    """Parse what follows a command, its options before, after and between the other words.

    Args:
        command: its parser.
        words: what follows it.
        hint: added where there are too many words.

    Raises:
        UserError: in one line; of an unknown option with the nearest one.
    """
    parsed, rest = command.parse_known_intermixed_args(words)
    for word in rest:
        if word.startswith("-"):
            legal = [text for action in command._actions for text in action.option_strings]  # noqa: SLF001
            raise unknown("option", word.partition("=")[0], legal, command.prog)
    if rest:
        command.error(f"too many words: {' '.join(rest)}{hint}")
    return parsed
