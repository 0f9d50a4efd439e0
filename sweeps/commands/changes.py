"""What has changed since a run: its config, the code, and what it ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rundir import read_json, read_status
from rundir.files import PLAN_FILE, UNSIGNED_KEYS
from rundir.wording import count_of
from sweeps.commands.saved import Saved
from sweeps.follow import display
from sweeps.planning import tasks
from sweeps.planning.composition import Composed
from sweeps.records import freeze, provenance

SHOWN_FILES = 10
"""Names of changed files that are listed."""


@dataclass(frozen=True)
class Changes:
    """Differences between a saved run and what would run at this moment, one line each."""

    config: list[str]
    code: list[str]
    environment: list[str]

    def show(self) -> None:
        """Print them to stderr, and of each kind also that there are none."""
        for kind, lines in asdict(self).items():
            display.err.print(f"{kind}: {'' if lines else 'as it was'}".rstrip(), markup=False)
            for line in lines:
                display.err.print(f"  {line}", markup=False)


def since(saved: Saved, composed: Composed, *, here: bool) -> Changes:
    """Compare a saved run with the config it composes to and with this machine.

    Args:
        saved: the run.
        composed: what it composes to.
        here: whether it will run on this machine; else only what goes along is compared.
    """
    before = saved.config()
    config = ["the saved config is gone, or does not resolve here"]
    if before is not None:
        config = list(differences(before, composed.resolved))
    environment = [*_unfinished(saved), *_packages(saved), *(_machine(saved) if here else ())]
    return Changes(config, list(_code(saved, composed)), environment)


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Yield ``key: saved → now`` for what differs and can change the result."""
    for key in dict.fromkeys([*saved, *now]):
        if not prefix and key in UNSIGNED_KEYS:
            continue
        before, after = saved.get(key, "(absent)"), now.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after and repr(before) != repr(after):
            yield f"{prefix}{key}: {before} → {after}"


def _code(saved: Saved, composed: Composed) -> Iterator[str]:
    frozen = saved.frozen_code
    if frozen is not None:
        home = frozen.parent.parent
        names = (read_json(home / PLAN_FILE) or {}).get("tasks") or []
        before = freeze.frozen_contents(frozen)
        yield from _files(before, freeze.present_contents(names, home), frozen.name)
        return
    if saved.record.get("code"):
        yield f"the frozen code {saved.record['code']} is gone; by git:"
    yield from _git(saved.record.get("git"))
    origin = tasks.origin(str(composed.resolved.get("task")))
    if origin is not None and origin[0] != provenance.PROJECT_ROOT:
        yield f"{composed.resolved['task']} lies in {origin[0]}; a single run does not record it"


def _files(before: Mapping[str, str], now: Mapping[str, str], name: str) -> Iterator[str]:
    """Say which files of a frozen copy differ from the present ones."""
    words = {
        file: "removed" if file not in now else "added" if file not in before else "changed"
        for file in sorted({*before, *now})
        if before.get(file) != now.get(file)
    }
    if not words:
        return
    more = len(words) - SHOWN_FILES
    listed = [f"{file} ({word})" for file, word in list(words.items())[:SHOWN_FILES]]
    tail = f" and {more} more" if more > 0 else ""
    yield f"{count_of(len(words), 'file')} since {name}: {', '.join(listed)}{tail}"


def _git(before: Mapping[str, Any] | None) -> Iterator[str]:
    """Say what git knows of the code then and now."""
    now = provenance.git_state()
    if not before:
        yield "not on record"
    elif now is None:
        yield f"commit {before['sha'][:10]} then; the project is not in git here"
    elif before["sha"] != now["sha"]:
        files = provenance.changed_since(before["sha"])
        known = "unknown to this git" if files is None else _listed(files)
        yield f"commit {before['sha'][:10]} → {now['sha'][:10]}: {known}"
        if before["dirty"]:
            yield "it had uncommitted changes, which are not on record"
    elif before["diff_sha256"] != now["diff_sha256"]:
        word = {True: "with", False: "without"}
        then, today = word[before["dirty"]], word[now["dirty"]]
        other = "other " if before["dirty"] and now["dirty"] else ""
        yield (
            f"commit {now['sha'][:10]}, {then} uncommitted changes then, "
            f"{today} {other}uncommitted changes here"
        )


def _listed(files: list[str]) -> str:
    more = len(files) - SHOWN_FILES
    tail = f" and {more} more" if more > 0 else ""
    names = f": {', '.join(files[:SHOWN_FILES])}" if files else ""
    return f"{count_of(len(files), 'tracked file')} differ{'' if files else ', none'}{names}{tail}"


def _unfinished(saved: Saved) -> Iterator[str]:
    status = read_status(saved.directory)
    if status is not None and status.step is not None and status.step != status.total_steps:
        yield f"the saved run is {status.state} at step {status.step} of {status.total_steps}"


def _packages(saved: Saved) -> Iterator[str]:
    python = saved.record.get("python")
    if python and python != platform.python_version():
        yield f"python: {python} → {platform.python_version()}"
    before, now = saved.record.get("packages") or {}, provenance.packages()
    for name in sorted({*before, *now} if before else ()):
        if before.get(name) != now.get(name):
            yield f"{name}: {before.get(name, '(absent)')} → {now.get(name, '(absent)')}"


def _machine(saved: Saved) -> Iterator[str]:
    then = saved.attempt
    now = {**provenance.host(), "gpus": provenance.gpus()}
    for key in ("cpu", "gpus"):
        if key in then and then[key] != now[key]:
            yield f"{key}: {then[key] or 'none'} → {now[key] or 'none'}"
    if saved.cwd and saved.cwd != os.getcwd():
        yield f"working directory: {saved.cwd} → {os.getcwd()}"
    threads = then.get("threads")
    if threads and threads > now["cores"]:
        yield f"threads: {threads} as before, on only {count_of(now['cores'], 'core')}"
    if (then.get("world_size") or 1) > 1:
        yield f"ranks: {then['world_size']} → 1"
