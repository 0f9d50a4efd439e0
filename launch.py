"""Launch one run, or a sweep of runs, from Hydra's command line. ``python launch.py --help``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import sweeps
from rundir import OptsweepError

CONFIG = str(Path(__file__).resolve().parent / "conf")


@hydra.main(version_base="1.3", config_path=CONFIG, config_name="config")
def main(config: DictConfig) -> None:
    """Carry out one run. With -m or sweep=NAME Hydra calls sweeps.planner instead."""
    try:
        code = sweeps.run_composed(config)
    except OptsweepError as error:  # caught here, or Hydra prints its overrides in front of it
        code = report(error)
    if code:
        sys.exit(code)


def cli() -> int:
    """Run Hydra and return the exit code; whatever the user got wrong is one line on stderr."""
    # Hydra prints an error in its own many lines, unless it is told to let it through.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        return report(sweeps.explain(sys.argv[1:], CONFIG, error))
    except OptsweepError as error:
        return report(error)
    except OSError as error:  # e.g. a full disk
        return report(OptsweepError(f"{error.strerror}: {error.filename}"))
    except KeyboardInterrupt:
        return 130
    return 0


def report(error: OptsweepError) -> int:
    """Print an error as one line and return its exit code."""
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command prints
    return error.exit_code


if __name__ == "__main__":
    sys.exit(cli())
