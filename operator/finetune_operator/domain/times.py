"""Times: seconds since 1970 inside, RFC 3339 in UTC outside."""

from __future__ import annotations

import datetime as dt


def stamp(seconds: float) -> str:
    """As Kubernetes writes a time: 2026-01-31T12:00:00Z."""
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_stamp(seconds: float) -> str:
    """As Kubernetes writes a MicroTime: 2026-01-31T12:00:00.000000Z."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_of(text: str | None) -> float | None:
    """The time that `text` says, in seconds; None when there is none or it cannot be read."""
    if not text:
        return None
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def human(seconds: float) -> str:
    """A duration for people: 45s, 3m12s, 2h05m, 4d03h."""
    left = max(0, int(seconds))
    if left < 60:
        return f"{left}s"
    if left < 3600:
        return f"{left // 60}m{left % 60:02d}s"
    if left < 86400:
        return f"{left // 3600}h{left % 3600 // 60:02d}m"
    return f"{left // 86400}d{left % 86400 // 3600:02d}h"
