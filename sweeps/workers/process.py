"""The forked process of a run, or of one of its ranks."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from rundir import Status, Superseded, ending
from rundir.files import write_status
from sweeps.cluster import requeue
from sweeps.planning.plan import Plan
from sweeps.records import claims
from sweeps.records.ledger import Submission
from sweeps.workers import warmup
from sweeps.workers.execution import Job, execute
from sweeps.workers.ranks import Place
from sweeps.workers.slots import Attempt


def be_the_run(
    plan: Plan,
    submission: Submission,
    attempt: Attempt,
    place: Place,
    report: Callable[[Status], None] | None = None,
) -> NoReturn:
    """Carry out the attempt and exit.

    Args:
        plan: the run's sweep.
        submission: the worker's.
        attempt: what to carry out.
        place: this process's place among those of the run.
        report: told the final status; by default the run's record is all there is.
    """
    code = 1
    run, directory = attempt.run, plan.directory(attempt.run)
    successor = claims.path_of(plan.claims, str(run.index), attempt.number + 1)
    try:
        log = os.open(directory / place.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        composed = plan.composed(run)
        os.environ.update({**composed.hydra.job.env_set, **place.environment()})
        job = Job(
            composed,
            directory,
            run.name,
            run.signature,
            sweep=plan.sweep,
            index=run.index,
            rerun_of=plan.rerun_of,
            code=submission.code,
            git=submission.git,
            place=place,
        )
        threads, element = warmup.threads(submission.share), requeue.this_element(submission.share)
        status = execute(job, attempt.number, threads, successor=successor, slurm_job=element)
        code = status.exit_code or 0
        if report is not None:
            report(status)
    except BaseException as error:  # noqa: BLE001 - the state of the run must be recorded
        state, reason, code = ending(error)
        end = Status(state, attempt.number, os.uname().nodename, reason=reason, exit_code=code)
        if report is not None:
            report(end)
        else:
            with suppress(Superseded):
                write_status(directory, end, successor)
        traceback.print_exc()
    finally:
        os._exit(code)  # whatever was raised: a child that returned would work on as a worker
