"""Follow and steer sweeps, from any shell, any day: ``python -m sweeps status|watch|…``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rundir import UserError, exit_code_of
from rundir.commandline import Parser, command_of, options_of
from rundir.files import MULTIRUN
from sweeps.commands import following, listing, logs, shell_completion, steering
from sweeps.commands.comparison import RTOL
from sweeps.follow import selection

Command = Callable[[argparse.Namespace], int]


def completion(_arguments: argparse.Namespace) -> int:
    """Print what makes bash complete these commands: eval "$(python -m sweeps completion)"."""
    print(shell_completion.bash(_parser(), {"--state": sorted(steering.RETRIABLE)}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m sweeps", description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(function: Command, *, sweep: bool = True, json: bool = True) -> argparse.ArgumentParser:
        about = (function.__doc__ or "").splitlines()[0]
        command = kinds.add_parser(function.__name__, help=about, description=about)
        command.set_defaults(function=function)
        if sweep:
            command.add_argument("sweep", nargs="?", help="name or directory; default the latest")
        if json:
            command.add_argument("--json", action="store_true", help="for programs")
            where = {"type": Path, "default": Path(MULTIRUN), "metavar": "DIR"}
            command.add_argument("--multirun", **where, help="where the sweeps lie")  # type: ignore[arg-type]
        return command

    add(following.status).add_argument("--all", action="store_true", help="a row for every run")
    add(following.watch)
    of_one = add(logs.logs)
    of_one.add_argument("run", help="index or name of the run")
    of_one.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    of_one.add_argument("--worker", action="store_true", help="the log of its worker instead")
    runs = {"action": "append", "metavar": "RUN,…", "help": "only these: 3, 4-7 or names"}
    add(listing.ls, sweep=False).add_argument("--all", action="store_true", help="older ones too")
    add(steering.cancel).add_argument("--runs", **runs)  # type: ignore[arg-type]
    retry = add(steering.retry)
    retry.add_argument("--runs", **runs)  # type: ignore[arg-type]
    ended = {"action": "append", "metavar": "STATE,…", "help": "only runs that ended so"}
    retry.add_argument("--state", **ended)  # type: ignore[arg-type]
    retry.add_argument("--exclude-bad-nodes", action="store_true", help="avoid suspicious nodes")
    retry.add_argument("--dry-run", action="store_true", help="say what would be submitted")
    rerun = add(steering.rerun, sweep=False, json=False)
    rerun.add_argument("run_dir", type=Path, help="directory of the run to repeat")
    rerun.add_argument("overrides", nargs="*", help="overrides on top of the saved ones")
    rerun.add_argument("--verify", action="store_true", help="compare the metrics afterwards")
    where = rerun.add_mutually_exclusive_group()
    where.add_argument("--here", action="store_true", help="in this process; the default")
    where.add_argument("--cluster", action="store_true", help="as a job of the cluster it names")
    compare = add(steering.compare, sweep=False, json=False)
    compare.add_argument("run_a", type=Path, help="directory of a run")
    compare.add_argument("run_b", type=Path, help="directory of another")
    for command in (rerun, compare):
        tolerance = "largest relative difference that counts as equal; default: %(default)g"
        command.add_argument("--rtol", type=float, default=RTOL, help=tolerance)
        command.add_argument("--json", action="store_true", help="for programs")
    add(completion, sweep=False, json=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return exit_code_of(lambda: _run(words))


def _run(words: Sequence[str]) -> int:
    parsed = _parsed(command_of(_parser(), words), words[1:])
    code: int = parsed.function(parsed)
    return code


def _parsed(command: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse what follows a command; hint at commas where values of an option stand apart."""
    hint = _hint_of_commas(words)
    parsed = options_of(command, words, hint)
    if hint and parsed.sweep is not None:
        try:
            selection.directory_of(parsed.sweep, parsed.multirun)
        except UserError as error:
            if "did you mean" in str(error):
                raise
            raise UserError(f"{error}{hint}") from None
    return parsed


def _hint_of_commas(words: Sequence[str]) -> str:
    """Return what to write where two values of an option stand apart; empty where none do."""
    for option, first, more in zip(words, words[1:], words[2:], strict=False):
        if option in _SEVERAL and not more.startswith("-"):
            return f"; several values take commas: {option} {first},{more}"
    return ""


_SEVERAL = ("--runs", "--state")
"""Options that take several values."""


if __name__ == "__main__":
    sys.exit(main())
