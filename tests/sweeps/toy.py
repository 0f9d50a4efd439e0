"""A task that is not ours: no torch, a few milliseconds a step, and every way to end badly."""

import itertools
import logging
import os
import signal
import time
from contextlib import suppress

from rundir import Diverged, OptsweepError, Preempted, Run, UserError


def check(config: dict) -> None:
    lr = config["optimizer"]["optimizer_params"]["lr"]
    if lr < 0:
        raise UserError(f"optimizer.optimizer_params.lr = {lr}; must be ≥ 0")


def run(config: dict, run: Run) -> None:
    steps = config["training"]["training_params"]["max_steps"]
    lr = config["optimizer"]["optimizer_params"]["lr"]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    logging.getLogger(__name__).info("GPUs %s threads %s", gpus, run.threads)
    for name in sorted(name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))):
        logging.getLogger(__name__).info("%s=%s", name, os.environ[name])
    state = run.checkpoints / "step.txt"
    first = int(state.read_text()) if state.exists() else 0
    for step in range(first, steps):
        if run.stop_requested:
            run.checkpoints.mkdir(exist_ok=True)
            state.write_text(str(step))
            raise Preempted(f"stopped by {run.stop_requested} after a checkpoint at step {step}")
        time.sleep(float(os.environ.get("TOY_STEP_S", "0.01")))
        run.log("train", step + 1, loss=1 / (step + 1) + lr)
        run.progress(step + 1, steps, loss=1 / (step + 1) + lr, tokens_per_second=1000.0)
    misbehave(config["seed"])


def run_deafly(config: dict, run: Run) -> None:
    """Go on for ever, whatever the verbs raise."""
    for step in itertools.count(1):
        time.sleep(0.01)
        with suppress(OptsweepError):
            run.log("train", step, loss=1.0)
            run.progress(step, step + 1)


def check_slowly(config: dict) -> None:
    """A check that leaves time for another launch."""
    time.sleep(1)


def misbehave(seed: int) -> None:
    """End as the seed says."""
    if seed == 901:
        os.kill(os.getpid(), signal.SIGSEGV)
    if seed == 902:
        os._exit(3)
    if seed == 903:
        raise RuntimeError("the task is broken")
    if seed == 904:
        raise Diverged("loss is nan at step 2")
    if seed == 905:
        raise MemoryError
    if seed == 906:
        os.kill(os.getpid(), signal.SIGKILL)
