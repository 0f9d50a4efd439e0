"""Launch one run, or a sweep of runs, from Hydra's command line. ``python launch.py --help``."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import sweeps
from rundir import OptsweepError, UserError, exit_code_of

CONFIG = str(Path(__file__).resolve().parent / "conf")


@hydra.main(version_base="1.3", config_path=CONFIG, config_name="config")
def main(config: DictConfig) -> float | None:
    """Carry out one run. With -m or sweep=NAME Hydra calls sweeps.launch.planner instead.

    Returns:
        With another sweeper than ours the job's loss, for samplers.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return sweeps.run_as_job(config)
    code = exit_code_of(lambda: sweeps.run_composed(config))
    if code:  # ends here, or Hydra prints its overrides in front of an error
        sys.exit(code)
    return None


def _without_json(words: list[str]) -> list[str]:
    """Return a command line in Hydra's words: ``dry_run=true --json`` is ``dry_run=json``."""
    if "--json" not in words:
        return words
    if not {"dry_run=true", "dry_run=json"} & {word.lower() for word in words}:
        raise UserError("--json is for a dry run; add dry_run=true")
    return [*(w for w in words if w != "--json" and w.lower() != "dry_run=true"), "dry_run=json"]


def _is_about_input(error: Exception, *, is_at_work: bool) -> bool:
    """Say whether an error is the user's: any before there is a plan of runs, but for ours."""
    if isinstance(error, OSError) and not isinstance(error, sweeps.HYDRAS_OWN):  # one of which is
        return error.errno == errno.ENAMETOOLONG
    # Hydra names no module where it can't import what a config names.
    is_ours = isinstance(error, ImportError) and error.name is not None
    return not (is_ours or is_at_work or isinstance(error, (OptsweepError, MemoryError)))


def launch() -> int:
    """Let Hydra compose and run; put its errors in words of our own."""
    sys.argv[1:] = _without_json(sys.argv[1:])
    sweeps.require_known_options(sys.argv[1:])
    sweeps.use_frozen_tasks()
    with sweeps.launching() as this:
        try:
            main()
        except Exception as error:
            if not _is_about_input(error, is_at_work=this.is_at_work):
                raise
            if this.in_full:
                traceback.print_exc()
            raise sweeps.explain(sys.argv[1:], CONFIG, error) from error
    return 0


if __name__ == "__main__":
    sys.path.append(os.getcwd())  # tasks of the user's own lie where they launch
    sys.exit(exit_code_of(launch))
