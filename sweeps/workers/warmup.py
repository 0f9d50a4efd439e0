"""What a worker does once for all its runs, so that a forked run costs no imports."""

from __future__ import annotations

import importlib
import os
import traceback

from sweeps.planning.plan import Plan
from sweeps.records import provenance
from sweeps.records.ledger import SLURM, Share

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def threads(share: Share) -> int | None:
    """Return the CPU threads of a run's process: what SLURM allots, shared by those beside it."""
    if share.backend != SLURM:
        return share.threads
    if os.environ.get("SLURM_CPUS_PER_TASK"):
        return max(1, int(os.environ["SLURM_CPUS_PER_TASK"]) // share.slots)
    if os.environ.get("SLURM_CPUS_ON_NODE"):
        tasks = int(os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
        return max(1, int(os.environ["SLURM_CPUS_ON_NODE"]) // (share.slots * tasks))
    return share.threads


def warm_up(plan: Plan, share: Share) -> None:
    """Import the task, call its ``preload()``, look for the GPUs and the packages' versions."""
    count = str(threads(share) or max(1, len(os.sched_getaffinity(0)) // share.slots))
    for name in _THREAD_VARIABLES:
        os.environ[name] = count
    provenance.packages()  # cached here for all runs: nvidia-smi may take a second
    provenance.gpus()
    index, _ = share.runs[0]
    try:
        task = plan.composed(plan.runs[index]).resolved["task"]
        module = importlib.import_module(str(task).rpartition(".")[0])
        getattr(module, "preload", lambda: None)()
    except Exception:  # noqa: BLE001 - the run it belongs to will fail with it, no other
        traceback.print_exc()
