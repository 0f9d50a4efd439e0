"""How durations and counts are said, in every table and message."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """Return seconds as people say them: ``42 s``, ``3:05``, ``1:02:03``."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def count_of(count: int, noun: str) -> str:
    """Return ``1 run``, ``2 runs``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
