"""What is met most often, in bounded memory: the rarer half is forgotten whenever it becomes too much."""

from __future__ import annotations

from finetune_trainer.checks.checker import Hits
from finetune_trainer.checks.row import Row

_MOST = 20_000


class Frequent:
    """Counts the commonest of any number of texts, each with its first rows. Whatever makes up a hundredth is counted nearly whole."""

    def __init__(self) -> None:
        self._hits: dict[str, Hits] = {}

    def add(self, text: str, row: Row) -> None:
        if (hits := self._hits.get(text)) is None:
            if len(self._hits) >= _MOST:
                least = sorted(hits.count for hits in self._hits.values())[_MOST // 2]
                self._hits = {text: hits for text, hits in self._hits.items() if hits.count > least}
            hits = self._hits[text] = Hits()
        hits.add(row)

    def most(self) -> tuple[str, Hits]:
        """The commonest one; empty where there is none."""
        return max(self._hits.items(), key=lambda item: item[1].count, default=("", Hits()))
