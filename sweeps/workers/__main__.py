"""The start of a worker. Stop signals wait from here on, so that none ends it unheard.

    python -m sweeps.workers SWEEP_DIR SUBMISSION [--element I]

Without that, one that comes while Hydra is imported, which takes seconds on a network disk, would
kill the worker: its run would have failed instead of going back into the queue.
"""

import sys

from sweeps.workers import signals


def main() -> int:
    """Hold signals back, then import all else."""
    signals.block()
    from rundir import exit_code_of
    from sweeps.workers import worker

    return exit_code_of(worker.main)


if __name__ == "__main__":
    sys.exit(main())
