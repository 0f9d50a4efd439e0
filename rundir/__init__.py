"""The run directory: all that sweeps, trainer and analysis share. Standard library only."""

from rundir.errors import ClusterError, Diverged, OptsweepError, Preempted, UserError, unknown
from rundir.files import DONE, ENDED, State, Status, read_json, read_status, write_json
from rundir.run import Run, ending

__all__ = [
    "DONE",
    "ENDED",
    "ClusterError",
    "Diverged",
    "OptsweepError",
    "Preempted",
    "Run",
    "State",
    "Status",
    "UserError",
    "ending",
    "read_json",
    "read_status",
    "unknown",
    "write_json",
]
