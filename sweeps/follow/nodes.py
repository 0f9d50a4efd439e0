"""Failures by node: a machine on which runs fail that succeed elsewhere."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rundir import DONE, State
from sweeps.follow.runstate import RunState
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
    most_chance: float = 0.05
    """The most that luck may account for: the chance that, of the failures strewn over all runs
    blindly, so many fall on it, times the number of nodes."""


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
    told = [(s.node, s) for s in _by_end(surveyed) if s.node and s.state in BLAMABLE | DONE]
    ended = Counter(node for node, _ in told)
    failed = Counter(node for node, s in told if s.state in BLAMABLE)
    telling = [(node, s.state in BLAMABLE) for node, s in told if not _failed_alike_elsewhere(s)]
    found = [
        NodeRecord(node, count, ended[node], _is_bad(node, telling, rule))
        for node, count in failed.items()
    ]
    return sorted(found, key=lambda record: (-record.is_suspicious, -record.failed, record.node))


def _by_end(surveyed: Iterable[RunState]) -> Iterable[RunState]:
    """Return one state for each end: that of an element counts once for all runs not begun."""
    return {(s.job if s.is_unbegun else s.run.index): s for s in surveyed}.values()


def _failed_alike_elsewhere(state: RunState) -> bool:
    """Say whether an earlier attempt failed for the same reason on another node: it blames none."""
    earlier = (state.status.earlier if state.status else None) or {}
    alike = {_words(why) for node, why in earlier.items() if node != state.node}
    return state.state in BLAMABLE and _words(state.reason or "") in alike


def _words(reason: str) -> str:
    """Return a reason without what differs from attempt to attempt."""
    return re.sub(r"\d+", "0", reason)


def _is_bad(node: str, told: list[tuple[str, bool]], rule: Suspicion) -> bool:
    """Say whether a node is suspicious, given of each run its node and whether it failed."""
    here = [has_failed for where, has_failed in told if where == node]
    elsewhere = [has_failed for where, has_failed in told if where != node]
    if sum(here) < rule.least_failures or not elsewhere:
        return False
    share = sum(here) / len(here)
    if share < max(rule.least_share, rule.times_others * sum(elsewhere) / len(elsewhere)):
        return False
    nodes = len({where for where, _ in told})
    return nodes * _chance(sum(here), len(here), sum(elsewhere), len(elsewhere)) <= rule.most_chance


def _chance(failed: int, ended: int, failed_elsewhere: int, ended_elsewhere: int) -> float:
    """Return the chance of at least ``failed`` by luck (Fisher's exact test, one-sided)."""

    def ways(of: int, some: int) -> float:
        return math.lgamma(of + 1) - math.lgamma(some + 1) - math.lgamma(of - some + 1)

    failures, runs = failed + failed_elsewhere, ended + ended_elsewhere
    return sum(
        math.exp(ways(ended, k) + ways(ended_elsewhere, failures - k) - ways(runs, failures))
        for k in range(failed, min(ended, failures) + 1)
    )
