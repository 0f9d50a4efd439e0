"""Any run again, from the overrides that it saved."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.utils import JobReturn, JobStatus, env_override
from hydra.utils import get_class
from omegaconf import OmegaConf

from rundir import DONE, State, UserError, read_status
from rundir.files import MULTIRUN
from sweeps.commands import changes, comparison
from sweeps.commands.changes import Changes
from sweeps.commands.comparison import RTOL, Verdict
from sweeps.commands.saved import Saved
from sweeps.follow import display
from sweeps.launch import submission
from sweeps.launch.entry import is_setting
from sweeps.launch.single import carry_out, job_of, new_directory
from sweeps.planning import tasks
from sweeps.planning.candidates import candidates
from sweeps.planning.composition import Composed
from sweeps.planning.plan import Plan


@dataclass(frozen=True)
class How:
    """How to repeat a run."""

    verify: bool = False
    """Compare the metrics afterwards; then their verdict is the exit code."""
    on_cluster: bool = False
    """Submit it to the cluster that its config names, instead of running it in the foreground."""
    rtol: float = RTOL
    """Largest relative difference that counts as equal."""
    as_json: bool = False
    """Print one JSON object to stdout."""


def rerun(run_dir: Path, extra: Sequence[str] = (), how: How | None = None) -> int:
    """Recompose a run from ``.hydra/overrides.yaml`` and carry it out in a directory of its own.

    What differs from the saved run is shown before it starts: the present config files and the
    present code count. The thread count is the recorded one, so that on the same machine the loss
    curve is the same to the bit.

    Args:
        run_dir: the run to repeat.
        extra: overrides applied on top.
        how: where to run it, and whether to compare.

    Raises:
        UserError: it is no run directory, does not compose any more, or has nothing to compare.
        ClusterError: the scheduler refused it.
    """
    how = how or How()
    saved = Saved.read(run_dir)
    overrides = saved.overrides_with(extra)
    composed = saved.compose(overrides)
    tasks.check(composed.resolved, here=not how.on_cluster)
    if how.verify:
        comparison.require_comparable(run_dir, how.rtol)
    found = changes.since(saved, composed, here=not how.on_cluster)
    found.show()
    if how.on_cluster:
        return _submit(saved, composed, overrides, how)
    return _here(saved, composed, found, how)


def compare(before: Path, after: Path, rtol: float = RTOL, *, as_json: bool = False) -> int:
    """Print whether two runs measured the same; return 0 if they did, else 1."""
    verdict = comparison.compare(before, after, rtol)
    if as_json:
        print(json.dumps(verdict.as_dict(), indent=1))  # noqa: T201 - a command's result
    else:
        _say(verdict)
    return verdict.exit_code


def _say(verdict: Verdict) -> None:
    display.out.print(str(verdict), markup=False, soft_wrap=True)
    for line in verdict.missing:
        display.err.print(f"  {line}", markup=False)


def _here(saved: Saved, composed: Composed, found: Changes, how: How) -> int:
    """Run it in the foreground."""
    directory = _created(new_directory(composed))
    job = job_of(composed, directory)
    job = replace(job, name=directory.name, rerun_of=str(saved.directory))
    with _as_a_job(composed):
        code = carry_out(job, threads=saved.attempt.get("threads"))
    status = read_status(directory)
    verdict = None
    if how.verify and status is not None and status.state in DONE:
        verdict = comparison.compare(saved.directory, directory, how.rtol)
    if how.as_json:
        record = {
            "directory": str(directory),
            "state": str(status.state) if status else None,
            **asdict(found),
            "comparison": verdict.as_dict() if verdict else None,
        }
        print(json.dumps(record, indent=1))  # noqa: T201 - a command's result
    elif verdict is not None:
        _say(verdict)
    elif how.verify:
        end = status.state if status is not None else State.FAILED
        display.err.print(f"not compared: the repeat ended as {end}")
    return verdict.exit_code if verdict is not None else code


@contextmanager
def _as_a_job(composed: Composed) -> Iterator[None]:
    """Set Hydra's ``env_set`` and call its callbacks, as around a run of ``launch.py``."""
    whole = OmegaConf.merge({"hydra": composed.hydra}, composed.config)
    name = str(composed.hydra.job.config_name)
    nothing: Callable[[Any], None] = lambda _: None  # noqa: E731
    callbacks = Callbacks(whole)  # type: ignore[arg-type]
    callbacks.on_run_start(config=whole, config_name=name)  # type: ignore[arg-type]
    with env_override(dict(composed.hydra.job.env_set)):
        callbacks.on_job_start(config=whole, task_function=nothing)  # type: ignore[arg-type]
        yield
    end = JobReturn(cfg=composed.config, overrides=list(composed.overrides))
    end.status = JobStatus.COMPLETED
    callbacks.on_job_end(config=whole, job_return=end)  # type: ignore[arg-type]
    callbacks.on_run_end(config=whole, config_name=name, job_return=end)  # type: ignore[arg-type]


def _submit(saved: Saved, composed: Composed, overrides: Sequence[str], how: How) -> int:
    """Submit it as a sweep of one run, and let go."""
    launcher = get_class(str(composed.hydra.launcher._target_))
    if not getattr(launcher, "is_detached", False):
        raise UserError("--cluster: the run's config names no cluster; add cluster=slurm")
    paths = composed.resolved.get("paths") or {}
    root = _created(Path(paths.get("multirun") or MULTIRUN) / new_directory(composed).name)
    settings = [text for text in overrides if is_setting(text)]
    task = [text for text in overrides if not is_setting(text)]
    plan = Plan(root.name, root, rerun_of=str(saved.directory))
    try:
        with saved.composer(settings) as composer:
            found = candidates(composer, plan.sweep, [{}], task, here=False)
        code = submission.launch(plan, found, launcher)
    finally:
        if not os.listdir(root):
            root.rmdir()
    again = root / found[0].directory
    if how.as_json:
        print(json.dumps({"directory": str(again), "sweep": str(root)}, indent=1))  # noqa: T201
    if how.verify:
        display.err.print(f"  compare  python -m sweeps compare {saved.directory} {again}")
    return code


def _created(original: Path) -> Path:
    """Create the directory ``<original>-rerun-<n>`` for the first ``n`` that is free."""
    parent = original.parent
    for n in itertools.count(1):
        again = parent / f"{original.name}-rerun-{n}"
        try:
            again.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise UserError(f"can't write {parent}: it is not a directory") from None
            continue
        except OSError as error:
            raise UserError(f"can't write {parent}: {error.strerror}") from None
        break
    return again
