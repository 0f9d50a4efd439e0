"""Failures by node: a machine on which runs fail that succeed elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rundir import DONE, State
from sweeps.follow.states import RunState
from sweeps.records.failures import FAILURES

BLAMABLE = FAILURES | {State.TIMEOUT}
"""Ends that a node may be the cause of."""


@dataclass(frozen=True)
class Suspicion:
    """When a node is taken to be bad."""

    least_failures: int = 3
    """Failed runs on it."""
    least_share: float = 0.5
    """Share of the runs that ended on it that failed."""
    times_others: float = 2.0
    """How many times the share on all other nodes together that must be. Without runs on other
    nodes there is nothing to tell a bad node from a bad sweep by."""


@dataclass(frozen=True)
class NodeRecord:
    """How the latest attempts of a sweep's runs ended on one node."""

    node: str
    failed: int
    ended: int
    is_suspicious: bool

    def __str__(self) -> str:
        runs = "run" if self.ended == 1 else "runs"
        return f"{self.node}: {self.failed} of {self.ended} {runs} failed"


def by_node(surveyed: Iterable[RunState], suspicion: Suspicion | None = None) -> list[NodeRecord]:
    """Return the nodes on which runs have failed, the worst first."""
    rule = suspicion or Suspicion()
    told = [(s.node, s.state) for s in surveyed if s.node and s.state in BLAMABLE | DONE]
    ended = Counter(node for node, _ in told)
    failed = Counter(node for node, state in told if state in BLAMABLE)
    found = []
    for node, count in failed.items():
        others = len(told) - ended[node]
        elsewhere = (failed.total() - count) / others if others else 1.0
        share = count / ended[node]
        is_bad = (
            count >= rule.least_failures
            and share >= rule.least_share
            and share >= rule.times_others * elsewhere
        )
        found.append(NodeRecord(node, count, ended[node], is_bad))
    return sorted(found, key=lambda record: (-record.is_suspicious, -record.failed, record.node))
