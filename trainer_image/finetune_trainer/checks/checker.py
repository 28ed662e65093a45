"""The one shape of all checks of whole data: sees batches of rows in order, then says what it found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from finetune_api.checks import CheckCode
from finetune_api.findings import ROWS_SHOWN

from finetune_trainer.checks.row import Batch, Row


class Place(NamedTuple):
    """A row by the number of its file and its line. `text`: what is wrong with it, or an excerpt, fit to be seen."""

    file: int
    line: int
    text: str | None = None


@dataclass(slots=True)
class Hits:
    """Rows that something was found in: their number, and the first ones."""

    count: int = 0
    first: list[Place] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether further rows are only counted, so that no excerpt need be made of them."""
        return len(self.first) >= ROWS_SHOWN

    def add(self, row: Row, text: str | None = None) -> None:
        self.count += 1
        if not self.full:
            self.first.append(Place(row.file, row.line, text))


@dataclass(frozen=True, slots=True)
class Seen:
    """What all checks may know at the end. `rows`: by part."""

    names: Sequence[str]
    rows: tuple[int, int, int]

    @property
    def all_rows(self) -> int:
        return sum(self.rows)

    def where(self, file: int, line: int) -> str:
        return f"{self.names[file]}:{line}"


@dataclass(frozen=True, slots=True)
class Found:
    """What becomes a Finding. `of`: rows that were looked at."""

    code: CheckCode
    count: int
    of: int
    message: str
    first: Sequence[Place] = ()


class Checker(Protocol):
    """`codes`: what it can find. A checker none of whose codes is wanted is not made."""

    codes: tuple[CheckCode, ...]

    def see(self, batch: Batch) -> None: ...

    def found(self, seen: Seen) -> Iterable[Found]: ...
