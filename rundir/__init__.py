"""The run directory: all that sweeps, trainer and analysis share. Standard library only."""

from rundir.errors import (
    ClusterError,
    Diverged,
    IllegalValue,
    OptsweepError,
    Preempted,
    RanksLost,
    Superseded,
    UserError,
    exit_code_of,
    require,
    tell,
    unknown,
)
from rundir.files import DONE, ENDED, State, Status, read_json, read_status, write_json
from rundir.run import Run, ending

__all__ = [
    "DONE",
    "ENDED",
    "ClusterError",
    "Diverged",
    "IllegalValue",
    "OptsweepError",
    "Preempted",
    "RanksLost",
    "Run",
    "State",
    "Status",
    "Superseded",
    "UserError",
    "ending",
    "exit_code_of",
    "read_json",
    "read_status",
    "require",
    "tell",
    "unknown",
    "write_json",
]
