"""What is known of a job besides the objects that are watched. It is lost at a restart and found again when it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from finetune_operator.domain.observed import ClaimView, EventView, NodeView, ProgressReading, Read, Refusal

FRESH_S = 4.0
"""How long an answer to a read counts."""


@dataclass(slots=True)
class JobCache:
    """Of one job. `clock` is monotonic: a wall clock that is set back would keep answers for ever."""

    known: set[tuple[str, str]] = field(default_factory=set)
    """(kind, name) of Services."""
    claims: dict[str, ClaimView] = field(default_factory=dict)
    warnings: dict[str, tuple[EventView, ...] | None] = field(default_factory=dict)
    nodes: dict[str, NodeView] = field(default_factory=dict)
    pods_read: set[str] = field(default_factory=set)
    jobs_read: dict[str, bool] = field(default_factory=dict)
    progress: ProgressReading | None = None
    clock: Callable[[], float] = time.monotonic
    _refusals: dict[tuple[str, str], Refusal] = field(default_factory=dict)
    _read_at: dict[Read, float] = field(default_factory=dict)
    _retry_at: float = float("-inf")

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost with it."""
        known = (
            self.known,
            self.claims,
            self.warnings,
            self.nodes,
            self.jobs_read,
            self.pods_read,
            self._refusals,
            self._read_at,
        )
        return not any(known) and self.progress is None

    @property
    def refusals(self) -> dict[tuple[str, str], Refusal]:
        due = self.clock() >= self._retry_at
        return {what: replace(refusal, due=due) for what, refusal in self._refusals.items()}

    def has_read(self, read: Read) -> bool:
        return read in self._read_at

    def read(self, read: Read) -> None:
        self._read_at[read] = self.clock()

    def drop_stale(self) -> None:
        """Forget answers that are old, so that a fix is seen, and at a retry what is believed to exist."""
        now = self.clock()
        if now >= self._retry_at > float("-inf"):
            self.retry_now()
        for read, at in list(self._read_at.items()):
            if now - at > FRESH_S:
                del self._read_at[read]
                match read.kind:
                    case "claim":
                        self.claims.pop(read.name, None)
                    case "warnings":
                        self.warnings.pop(read.name, None)
                    case "node":
                        self.nodes.pop(read.name, None)
                    case "pods":
                        self.pods_read.discard(read.name)
                    case "job":
                        self.jobs_read.pop(read.name, None)

    def retry_in(self, seconds: float) -> None:
        """Refused requests may be repeated then."""
        self._retry_at = self.clock() + seconds

    def retry_now(self) -> None:
        """Something changed, or the backoff has passed. A Service may have been deleted meanwhile."""
        self._retry_at = float("-inf")
        self.known.clear()

    def exists(self, kind: str, name: str) -> bool:
        """Returns whether it was refused before."""
        self.known.add((kind, name))
        return self.done(kind, name)

    def refuse(self, refusal: Refusal) -> None:
        self._refusals[refusal.kind, refusal.name] = refusal

    def done(self, kind: str, name: str) -> bool:
        """A request has succeeded. Returns whether it was refused before."""
        return self._refusals.pop((kind, name), None) is not None
