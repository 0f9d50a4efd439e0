"""``python -m analysis``: tables to stdout, progress and hints to stderr, documented exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from analysis import MEASURE
from analysis.collecting.forgone import forgo_pandas
from rundir import exit_code_of
from rundir.commandline import Parser, command_of, options_of


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code_of(lambda: _run(words))


def _run(words: list[str]) -> int:
    options = options_of(command_of(_parser(), words), words[1:])
    code: int = options.command(options) or 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m analysis",
        description="Run directories into a Parquet store, and the store into comparisons.",
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    store = Parser(add_help=False)
    store.add_argument(
        "--store", type=Path, default=Path("store"), metavar="DIR", help="default: store"
    )
    _add_collect(verbs.add_parser("collect", parents=[store], help="bring the store up to date"))
    _add_table(verbs.add_parser("table", parents=[store], help="runs, the best first"))
    diff = verbs.add_parser("diff", parents=[store], help="what differs between two runs")
    diff.add_argument("run_a", metavar="A", help="run id, directory, name, or the end of an id")
    diff.add_argument("run_b", metavar="B")
    diff.add_argument("--json", action="store_true", help="as one JSON object")
    diff.set_defaults(command=_from("commands", "diff"))
    plot = verbs.add_parser("plot", parents=[store], help="figures fit for a paper")
    plot.add_argument("sweep", nargs="?", metavar="SWEEP", help="name or directory; default: all")
    plot.add_argument(
        "--out", type=Path, default=Path("plots"), metavar="DIR", help="default: plots"
    )
    plot.add_argument(
        "--format", default="png", metavar="FORM", help="png, pdf or svg; default: png"
    )
    plot.set_defaults(command=_from("commands", "plot"))
    _add_report(verbs.add_parser("report", parents=[store], help="one HTML page of a sweep"))
    return parser


def _add_collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "roots", nargs="*", type=Path, metavar="ROOT", help="default: outputs multirun"
    )
    parser.add_argument(
        "--workers", type=_at_least(1), metavar="N", help="processes; default: one a core"
    )
    parser.add_argument("--no-wait", action="store_true", help="fail if another collector works")
    parser.set_defaults(command=_from("refresh", "collect"))


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="name or directory; default: all")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="default: reports/SWEEP.html")
    parser.add_argument("--open", action="store_true", help="show it in a browser")
    parser.set_defaults(command=_from("commands", "report"))


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="name or directory; default: all")
    parser.add_argument(
        "--by",
        default=MEASURE,
        metavar="COLUMN",
        help="to sort by, also at_STEP.STREAM.METRIC; default: %(default)s",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="e.g. 'lr >= 0.01 and not (optimizer = muon or state in (failed, lost))'; operators "
        "= != < <= > >= in ~ (contains); null; may be repeated",
    )
    parser.add_argument(
        "--limit",
        type=_at_least(0),
        default=100,
        metavar="N",
        help="rows to print, 0 for all; default: 100",
    )
    parser.add_argument("--all", action="store_true", help="every column, under its full name")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON array; NaN as a text")
    form.add_argument("--csv", action="store_true", help="null as an empty field")
    parser.set_defaults(command=_from("commands", "table"))


def _at_least(bound: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from a bound on."""

    def whole(text: str) -> int:
        number = int(text) if text.strip().lstrip("+-").isdecimal() else bound - 1
        if number < bound:
            raise argparse.ArgumentTypeError(
                f"{text!r}; must be a whole number of at least {bound}"
            )
        return number

    return whole


def _from(module: str, name: str) -> Callable[[argparse.Namespace], int | None]:
    """Return a command that is imported when it is called: each loads only what it needs."""

    def command(options: argparse.Namespace) -> int | None:
        function = getattr(import_module(f"analysis.{module}"), name)
        code: int | None = function(options)
        return code

    return command


if __name__ == "__main__":
    if sys.argv[1:2] == ["collect"]:
        forgo_pandas()
    sys.exit(main())
