"""The attempts in a job's status, as tests compare them."""

from __future__ import annotations

from typing import Any

History = list[tuple[str, int, str]]
"""Stage, number and outcome of each attempt."""

DONE: History = [("prepare", 1, "Succeeded"), ("train", 1, "Succeeded"), ("publish", 1, "Succeeded")]


def history(status: dict[str, Any]) -> History:
    return [(a["stage"], a["number"], a["outcome"]) for a in status.get("attempts", [])]
