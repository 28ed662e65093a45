"""Leaves out rows that say almost the same as an earlier one: the very rows that the check NearDuplicates finds."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_trainer.fixes.steps import Row, rows_say, was


class DropNearDuplicates:
    """A step that must `look` at all rows, then `settle`, before it is called with the same rows again."""

    def __init__(self) -> None:
        self.touched = 0
        self._number = 0
        self._later: set[int] = set()

    def look(self, part: str, rows: Sequence[Row]) -> None:
        """The next rows of a part of the data (train, validation or test)."""
        raise NotImplementedError

    def settle(self) -> None:
        """All rows were looked at."""

    def __call__(self, part: str, rows: Sequence[Row]) -> list[Row]:
        kept = [row for number, row in enumerate(rows, self._number) if number not in self._later]
        self._number += len(rows)
        self.touched += len(rows) - len(kept)
        return kept

    def detail(self) -> str:
        return f"{rows_say(self.touched, 'says', 'say')} almost the same as an earlier one, and {was(self.touched)} left out."
