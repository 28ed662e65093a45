"""How often each label of a classifier stands in the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from finetune_api.checks import CheckCode
from finetune_api.findings import ROWS_SHOWN

from finetune_trainer.checks.checker import Found, Hits, Seen
from finetune_trainer.checks.masking import excerpt
from finetune_trainer.checks.row import Batch
from finetune_trainer.checks.sameness import FEWEST_ROWS
from finetune_trainer.checks.wording import of_rows

_MOST_LABELS = 10_000
_DOMINANT = 0.8
_FAR_FEWER = 0.1
"""Of an even share of the rows."""


class Labels:
    """DominantLabel and LabelImbalance, over the rows of train."""

    codes: tuple[CheckCode, ...] = ("DominantLabel", "LabelImbalance")

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, Hits] = {}
        self._rows = 0

    def see(self, batch: Batch) -> None:
        for row in batch.rows:
            label = row.example.label
            if label is None or row.part != 0:
                continue
            self._rows += 1
            for one in map(_name, label if isinstance(label, tuple) else (label,)):
                if one not in self._counts and len(self._counts) >= _MOST_LABELS:
                    continue
                self._counts[one] += 1
                hits = self._first.setdefault(one, Hits())
                if not hits.full:
                    hits.add(row)

    def found(self, seen: Seen) -> Iterable[Found]:
        if self._rows < FEWEST_ROWS or len(self._counts) < 2:
            return
        (most, count), *_ = self._counts.most_common(1)
        if count >= _DOMINANT * self._rows:
            message = of_rows(count, self._rows, "has", "have") + f" the label {excerpt(most)!r}"
            yield Found("DominantLabel", count, self._rows, message, self._first[most].first)
        even = self._counts.total() / len(self._counts)
        rare = sorted((number, name) for name, number in self._counts.items() if number < _FAR_FEWER * even)
        if rare:
            shown = ", ".join(f"{excerpt(name)!r} ({number:,})" for number, name in rare[:5])
            more = f" and {len(rare) - 5:,} more" if len(rare) > 5 else ""
            one = len(rare) == 1
            message = f"{len(rare):,} of {len(self._counts):,} labels {'has' if one else 'have'} fewer than a tenth of an even share of the rows: {shown}{more}"
            first = [place for _, name in rare for place in self._first[name].first][:ROWS_SHOWN]
            yield Found("LabelImbalance", len(rare), len(self._counts), message, first)


def _name(label: str | int | bool) -> str:
    return label if isinstance(label, str) else str(label).lower()
