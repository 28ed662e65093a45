"""Which attempt may seal checkpoints. A rank of an older attempt that still runs somewhere cannot harm a newer one.

The fence is a file on the workspace. Attempt n takes it at its start, unless a higher one holds it, and writes down which
checkpoints count that were sealed before. Before each seal the holder looks again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from finetune_trainer import sealed
from finetune_trainer.errors import PeerLost


class Fence:
    """Held by rank 0 of `attempt`. `accepted` names the folders that were sealed by earlier attempts and count."""

    def __init__(self, path: Path, attempt: int, accepted: frozenset[str]) -> None:
        self.path = path
        self.attempt = attempt
        self.accepted = accepted

    @classmethod
    def take(cls, path: Path, attempt: int, existing: Iterable[tuple[str, int]]) -> Fence:
        """Become the holder. `existing` are (folder name, attempt) of all checkpoints that are there.

        Raises PeerLost when a higher attempt holds the fence.
        """
        holder, accepted = _read(path)
        _refuse(attempt, holder)
        if holder < attempt:
            accepted = frozenset(name for name, by in existing if by == holder or name in accepted)
        path.parent.mkdir(parents=True, exist_ok=True)
        sealed.write_json(path, {"attempt": attempt, "accepted": sorted(accepted)})
        return cls(path, attempt, accepted)

    def check(self) -> None:
        """Raises PeerLost when a higher attempt took the fence meanwhile."""
        _refuse(self.attempt, _read(self.path)[0])

    def counts(self, name: str, attempt: int) -> bool:
        """Whether the checkpoint `name`, sealed by `attempt`, may be resumed from."""
        return attempt == self.attempt or name in self.accepted


def refuse_superseded(path: Path, attempt: int) -> None:
    """Raises PeerLost when a higher attempt holds the fence: for a late one to leave before it loads anything."""
    _refuse(attempt, _read(path)[0])


def _read(path: Path) -> tuple[int, frozenset[str]]:
    try:
        value = json.loads(path.read_bytes())
        return int(value["attempt"]), frozenset(value["accepted"])
    except FileNotFoundError:
        return 0, frozenset()


def _refuse(attempt: int, holder: int) -> None:
    if holder > attempt:
        raise PeerLost(
            f"attempt {holder} of this run has taken over; attempt {attempt} leaves without touching its checkpoints",
            code="Superseded",
        )
