"""What is known of a job beyond the objects that are watched. Lost at a restart, and found again when it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from finetune_operator.domain.observed import ClaimView, ProgressReading, Refusal

FRESH_S = 4.0
"""For how long an answer to a read counts."""


@dataclass(slots=True)
class JobCache:
    """Of one job. `clock` is monotonic: a wall clock that is set back would keep answers for ever."""

    known: set[tuple[str, str]] = field(default_factory=set)
    claims: dict[str, ClaimView] = field(default_factory=dict)
    warnings: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    refusals: dict[tuple[str, str], Refusal] = field(default_factory=dict)
    progress: ProgressReading | None = None
    clock: Callable[[], float] = time.monotonic
    _read_at: dict[str, float] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.known or self.claims or self.warnings or self.refusals or self.progress or self._read_at)

    def read(self, name: str) -> None:
        self._read_at[name] = self.clock()

    def drop_stale(self) -> None:
        """Forget answers that are old: what a person has fixed must be seen."""
        now = self.clock()
        for name, at in list(self._read_at.items()):
            if now - at > FRESH_S:
                del self._read_at[name]
                self.claims.pop(name, None)
                self.warnings.pop(name, None)

    def exists(self, kind: str, name: str) -> None:
        self.known.add((kind, name))
        self.refusals.pop((kind, name), None)

    def refuse(self, refusal: Refusal) -> None:
        self.refusals[refusal.kind, refusal.name] = refusal

    def gone(self, items: Iterable[tuple[str, str]]) -> None:
        self.known.difference_update(items)
