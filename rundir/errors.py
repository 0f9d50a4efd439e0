"""The exceptions of optsweep and the exit code that each one ends a command with.

OptsweepError            1   some run failed, or a command could not do its work
├── UserError            2   the user's input is wrong; nothing was submitted, nothing changed
│   └── IllegalValue         a value outside what its key allows
├── ClusterError         3   the cluster said no; carries its words
├── Diverged             1   raised by a task: the loss is not finite, or the divergence rule fired
├── RanksLost            4   raised by a task's rank that can't reach the others; another one failed
├── Superseded           5   a later attempt at the run has begun; this one records nothing more
└── Preempted            1   raised by a task that checkpointed because it was asked to stop

A message is one line in the form ``name = value; must be …; did you mean …?``.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class OptsweepError(Exception):
    """Base of every error that optsweep reports in words instead of a traceback."""

    exit_code = 1


class UserError(OptsweepError):
    """The user's input is wrong. Raised before anything is submitted or written."""

    exit_code = 2


class IllegalValue(UserError):
    """A value outside what its field allows."""

    def __init__(self, name: str, value: object, must: str) -> None:
        super().__init__(f"{_clipped(name)} = {_shown(value)}; must be {must}")
        self.name, self.value, self.must = name, value, must


class ClusterError(OptsweepError):
    """The scheduler refused or could not be reached; the message quotes it."""

    exit_code = 3


class Diverged(OptsweepError):
    """Training left the region where it means anything; the run ends in state ``diverged``."""


class RanksLost(OptsweepError):
    """One of a run's processes lost the others, so the reason of the failure lies elsewhere.

    Its exit code is its own, so that who waits for the process knows that too.
    """

    exit_code = 4


class Superseded(OptsweepError):
    """A later attempt at the run has begun, as this one was taken for gone; it must end.

    Its exit code is its own, so that who waits for the process knows that too.
    """

    exit_code = 5


class Preempted(OptsweepError):
    """The task saved a checkpoint and stopped early on request; the run can be resumed."""


def nearest(name: str, legal: Iterable[object]) -> str | None:
    """Return the legal spelling closest to ``name``, or None when nothing comes close."""
    matches = difflib.get_close_matches(name, [str(word) for word in legal], n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown(what: str, name: str, legal: Iterable[object], where: str = "") -> UserError:
    """Build the error for a name that is not among the legal ones.

    Args:
        what: the kind of thing, e.g. ``"key"`` or ``"sweep"``.
        name: what the user typed.
        legal: every name that would have been accepted.
        where: the place it was typed at, e.g. ``"optimizer.optimizer_params"``.
    """
    words = sorted({str(word) for word in legal})
    place = f" in {where}" if where else ""
    guess = nearest(name, words)
    hint = f"; did you mean {guess}?" if guess else ""
    listed = ", ".join(words) if words else "none exist"
    return UserError(f"unknown {what} {_clipped(name)}{place}; must be one of: {listed}{hint}")


def brings(extra: str) -> str:
    """Return the command that installs what an extra of setup.cfg holds, quoted for any shell."""
    return f"pip install -e '.[{extra}]' in optsweep's directory brings it"


def require(condition: bool, name: str, value: object, must: str) -> None:
    """Raise :class:`IllegalValue` ``name = value; must be …`` unless ``condition`` holds."""
    if not condition:
        raise IllegalValue(name, value, must)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"<{type(value).__name__} of more than 4300 digits>"
    return "null" if value is None else text.lower() if isinstance(value, bool) else _clipped(text)


def _clipped(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


def _in_one_line(text: str) -> str:
    """Return the text with whatever a terminal would not print as it is escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command line's work and return its exit code; an error is one line on stderr.

    Whatever the message quotes, it is printable and keeps to its line.
    """
    _replace_closed_streams()
    try:
        code = command()
        sys.stdout.flush()
    except OptsweepError as error:
        message, code = str(error), error.exit_code
    except BrokenPipeError:  # e.g. piped into head
        _drop_unwritable_output()
        return 0
    except OSError as error:  # e.g. a full disk
        _drop_unwritable_output()
        where = f"{error.filename}: " if error.filename else ""
        message, code = f"{where}{error.strerror or error}", OptsweepError.exit_code
    except KeyboardInterrupt:
        return 130
    else:
        return code
    tell(f"error: {_in_one_line(message)}")
    return code


def tell(line: str, end: str = "\n") -> None:
    """Say something on stderr, beside a command's result; go on in silence where nobody reads it.

    What is under way does not depend on somebody who watches it.
    """
    try:
        print(line, end=end, file=sys.stderr, flush=True)  # noqa: T201 - this is where it is said
    except OSError:  # of a pipe EPIPE, of a terminal that was closed EIO
        silence_stderr()


def silence_stderr() -> None:
    """Write no more to a stderr that nobody reads, by whatever name it is known."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _replace_closed_streams() -> None:
    """Let a process that was started without stdout or stderr, as by ``>&-``, write to neither."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _drop_unwritable_output() -> None:
    """Keep Python from failing once more, with exit code 120, when it flushes stdout at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
