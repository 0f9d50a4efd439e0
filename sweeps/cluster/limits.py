"""How much of a launch the cluster takes at once, as it says itself.

MaxArraySize, max_array_tasks and MaxJobCount hold for everybody. Where accounting enforces limits,
further ones bound how many elements may be queued or running at once:

    of the user in an account      MaxSubmitJobs
    of the account, those above    GrpSubmitJobs
    of the job's QOS, and of its   MaxSubmitJobsPerUser, MaxSubmitJobsPerAccount, GrpSubmitJobs
    partition's

The controller tells the associations' limits with their present use in one call. Of a QOS it tells
a user's limit only when it is in use, so that the limit itself is asked of the database.
"""

from __future__ import annotations

import getpass
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rundir import ClusterError
from sweeps.cluster.clusters import SlurmCluster
from sweeps.cluster.scheduler import ask
from sweeps.records.ledger import Share


@dataclass(frozen=True)
class Bound:
    """A limit on the elements that may be queued or running."""

    name: str
    """In SLURM's words, with its value, e.g. ``MaxSubmitJobs = 5 of account research``."""
    most: int
    used: int = 0


@dataclass(frozen=True)
class Accounting:
    """What the accounting database and the controller know; records by SLURM's field names."""

    associations: Sequence[Mapping[str, str]]
    """Those of the user, and those of the accounts (with an empty ``UserName``)."""
    default_qos: Mapping[tuple[str, str], str]
    """By (account, partition) of the user."""
    qos: Mapping[str, Mapping[str, str]]
    """By name, from the database."""
    use: Mapping[str, str]
    """By QOS, the controller's line about it."""
    partitions: Mapping[str, Mapping[str, str]]

    def bounds(self, account: str, partition: str, qos: str) -> Iterator[Bound]:
        """Yield every limit that a job comes under; empty strings stand for the defaults."""
        if not partition:
            named = (n for n, record in self.partitions.items() if record.get("Default") == "YES")
            partition = next(named, "")
        own = [a for a in self.associations if a["UserName"] and a["Partition"] in {"", partition}]
        if not account:
            account = next((a["Account"] for a in own if a["DefAssoc"] == "Yes"), "")
        own = [association for association in own if association["Account"] == account]
        for association in sorted(own, key=lambda a: a["Partition"], reverse=True)[:1]:
            yield from _bound(association, "MaxSubmitJobs", f"account {account}")
            yield from _bound(association, "GrpSubmitJobs", f"you in account {account}")
            where = (account, association["Partition"])
            qos = qos or self.default_qos.get(where) or "normal"
        for name in dict.fromkeys((qos, self.partitions.get(partition, {}).get("QoS", ""))):
            yield from self._of_qos(name, account)
        yield from self._of_accounts(account)

    def _of_accounts(self, account: str) -> Iterator[Bound]:
        accounts = {a["Account"]: a for a in self.associations if not a["UserName"]}
        while account in accounts:
            record = accounts.pop(account)
            yield from _bound(record, "GrpSubmitJobs", f"account {account}")
            account = record["ParentAccount"].partition("(")[0]

    def _of_qos(self, name: str, account: str) -> Iterator[Bound]:
        line = self.use.get(name, "")
        who = {
            "MaxSubmitPU": rf"(?:\w*\()?{os.getuid()}\)?={{[^}}]*MaxSubmitJobsPU=\w+\((\d+)\)",
            "MaxSubmitPA": rf"{re.escape(account)}={{[^}}]*MaxSubmitJobsPA=\w+\((\d+)\)",
            "GrpSubmit": r"GrpSubmitJobs=\w+\((\d+)\)",
        }
        for limit, pattern in who.items():
            most = self.qos.get(name, {}).get(limit)
            if most:
                used = re.search(rf"\s{pattern}", line)
                title = f"{_QOS_LIMITS[limit]} = {most} of QOS {name}"
                yield Bound(title, int(most), int(used[1]) if used else 0)


_QOS_LIMITS = {
    "MaxSubmitPU": "MaxSubmitJobsPerUser",
    "MaxSubmitPA": "MaxSubmitJobsPerAccount",
    "GrpSubmit": "GrpSubmitJobs",
}
"""sacctmgr's names of the columns, and SLURM's of the limits."""


@dataclass
class Limits:
    """What bounds the arrays of one launch; counts what the launch takes up."""

    array_size: int
    """Elements that one array may have: MaxArraySize, or the lower max_array_tasks."""
    job_count: int
    """MaxJobCount: jobs and elements that the controller keeps."""
    accounting: Accounting | None = None
    _taken: Counter[str] = field(default_factory=Counter)

    def fit(self, cluster: SlurmCluster, share: Share) -> tuple[list[Share], Bound | None]:
        """Return the arrays that a share may be handed over as, and the limit that cuts it short.

        A draining share keeps all its runs and has fewer workers; of another one the runs for
        which there is no room are left out.
        """
        bounds = list(self._bounds(cluster))
        rooms = {bound: bound.most - bound.used - self._taken[bound.name] for bound in bounds}
        tightest = min(rooms, key=lambda bound: rooms[bound])
        elements = max(0, min(share.elements, rooms[tightest]))
        cut = tightest if elements < share.elements else None
        if share.drain:
            elements = min(elements, self.array_size)
            parts = [replace(share, elements=elements)] if elements else []
        else:
            starts = range(0, elements, self.array_size)
            cuts = [share.runs[i : min(i + self.array_size, elements)] for i in starts]
            parts = [replace(share, runs=runs, elements=len(runs)) for runs in cuts]
        self._taken.update({bound.name: elements for bound in bounds})
        return parts, cut

    def _bounds(self, cluster: SlurmCluster) -> Iterator[Bound]:
        yield Bound(f"MaxJobCount = {self.job_count} of the cluster", self.job_count - 1)
        if self.accounting:
            more = cluster.additional_parameters or {}
            asked = {
                name: str(more.get(name) or getattr(cluster, name) or "")
                for name in ("account", "partition", "qos")
            }
            yield from self.accounting.bounds(**asked)


def usual_limits() -> Limits:
    """Return those of a SLURM whose configuration names none."""
    return Limits(array_size=1001, job_count=10000)


def read_limits() -> Limits:
    """Ask the cluster: one call of 5 ms, and four more where accounting enforces limits.

    Raises:
        ClusterError: the controller does not answer, or takes no arrays.
    """
    lines = ask("scontrol", "show", "config").splitlines()
    config = {name.strip(): value.strip() for name, _, value in (ln.partition("=") for ln in lines)}
    limits = Limits(_array_size(config), int(config["MaxJobCount"]))
    if {"limits", "safe"} & set(config.get("AccountingStorageEnforce", "").split(",")):
        try:
            limits.accounting = _accounting()
        except ClusterError:  # the site hides them, or its database is down: sbatch will tell
            return limits
    return limits


def _array_size(config: Mapping[str, str]) -> int:
    """Return how many elements an array may have.

    Raises:
        ClusterError: the cluster takes no arrays.
    """
    most = int(config["MaxArraySize"])
    lower = re.search(r"\bmax_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
    if lower and int(lower[1]):
        most = min(most, int(lower[1]))
    if most < 1:
        raise ClusterError(
            f"MaxArraySize = {most}: this cluster takes no job arrays, which sweeps are "
            "submitted as; cluster=local inside an allocation does without; nothing was submitted"
        )
    return most


def _accounting() -> Accounting:
    user = getpass.getuser()
    line = ("scontrol", "--oneliner", "show")
    known = ask(*line, "assoc_mgr", f"users={user}", "flags=assoc,qos").splitlines()
    table = ("sacctmgr", "--noheader", "--parsable2", "show")
    own = ask(*table, "assoc", "where", f"user={user}", "format=Account,Partition,DefaultQOS")
    columns = ("Name", *_QOS_LIMITS)
    rows = ask(*table, "qos", f"format={','.join(columns)}").splitlines()
    qos = [dict(zip(columns, row.split("|"), strict=True)) for row in rows]
    shown = [_record(text) for text in ask(*line, "partition").splitlines()]
    return Accounting(
        [_record(text) for text in known if text.startswith("ClusterName=")],
        {(row[0], row[1]): row[2] for row in (text.split("|") for text in own.splitlines())},
        {record["Name"]: record for record in qos},
        {_record(text)["QOS"].partition("(")[0]: text for text in known if text[:4] == "QOS="},
        {record["PartitionName"]: record for record in shown},
    )


def _record(line: str) -> dict[str, str]:
    """Return the fields of a line of ``scontrol --oneliner``; of a repeated name the first."""
    found: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(\S*)", line):
        found.setdefault(name, value)
    return found


def _bound(record: Mapping[str, str], limit: str, owner: str) -> Iterator[Bound]:
    """Yield a limit that SLURM shows as ``most(used)``; one that is not set shows no number."""
    shown = re.fullmatch(r"(\d+)\((\d+)\)", record.get(limit, ""))
    if shown:
        yield Bound(f"{limit} = {shown[1]} of {owner}", int(shown[1]), int(shown[2]))
