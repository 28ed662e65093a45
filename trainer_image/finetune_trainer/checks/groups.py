"""A first look at bias: how often words for groups of people are met, and beside which other words.

Both count words in rows, no more: they cannot know what is meant. English words only (group_terms.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from finetune_api.checks import CheckCode
from finetune_api.findings import ROWS_SHOWN

from finetune_trainer.checks.checker import Found, Hits, Seen
from finetune_trainer.checks.group_terms import GROUPS, by_word
from finetune_trainer.checks.masking import excerpt
from finetune_trainer.checks.row import Batch
from finetune_trainer.checks.wording import share

_FEWEST_ROWS = 100
"""With words of an axis: fewer say nothing about balance."""
_TIMES = 5.0
_FEWEST_TOGETHER, _FEWEST_OTHERS, _LIFT, _G = 20, 50, 3.0, 20.0


class Groups:
    """DemographicImbalance and StereotypeAssociation."""

    codes: tuple[CheckCode, ...] = ("DemographicImbalance", "StereotypeAssociation")

    def __init__(self) -> None:
        self._words = by_word()
        self._listed = frozenset(self._words)
        self._rows: Counter[tuple[str, str]] = Counter()
        self._together: Counter[tuple[str, str, str]] = Counter()
        self._first: dict[tuple[str, ...], Hits] = {}

    def see(self, batch: Batch) -> None:
        for row in batch.rows:
            met = {self._words[word] for word in self._listed.intersection(row.words)}
            groups = [one for one in met if one[0]]
            if not groups:
                continue
            self._rows.update(groups)
            keys: list[tuple[str, ...]] = [*groups]
            for _, attribute in met.difference(groups):
                keys += [(*group, attribute) for group in groups]
            self._together.update(key for key in keys if len(key) == 3)
            for key in keys:
                hits = self._first.setdefault(key, Hits())
                if not hits.full:
                    hits.add(row, excerpt(row.text))

    def found(self, seen: Seen) -> Iterable[Found]:
        yield from self._imbalance()
        yield from self._associations()

    def _imbalance(self) -> Iterable[Found]:
        found = []
        for axis, groups in GROUPS.items():
            counts = sorted(((self._rows[axis, group], group) for group in groups), reverse=True)
            total = sum(count for count, _ in counts)
            (most, common), (least, rare) = counts[0], counts[1] if axis != "gender" else counts[-1]
            if total >= _FEWEST_ROWS and most >= _TIMES * max(least, 1):
                sentence = f"words for {common} stand in {most:,} rows, words for {rare} in {least:,}"
                found.append((most, total, sentence, self._first[axis, common].first))
        if found:
            message = "; ".join(sentence for _, _, sentence, _ in found)
            rows = [place for _, _, _, first in found for place in first][:ROWS_SHOWN]
            yield Found(
                "DemographicImbalance", sum(row[0] for row in found), sum(row[1] for row in found), message, rows
            )

    def _associations(self) -> Iterable[Found]:
        found = []
        for (axis, group, attribute), together in self._together.items():
            alone = self._rows[axis, group]
            others = sum(self._rows[axis, other] for other in GROUPS[axis] if other != group)
            beside = sum(self._together[axis, other, attribute] for other in GROUPS[axis] if other != group)
            if together < _FEWEST_TOGETHER or others < _FEWEST_OTHERS:
                continue
            lift = (together / alone) / ((beside + 0.5) / (others + 1))
            if lift >= _LIFT and log_likelihood(together, alone, beside, others) >= _G:
                sentence = f"words for {group} occur with '{attribute}' in {share(together, alone)} of their rows, those for others in {share(beside, others)}"
                found.append((lift, together, alone, sentence, (axis, group, attribute)))
        if found:
            found.sort(reverse=True)
            more = f"; and {len(found) - 3} more pairs" if len(found) > 3 else ""
            message = "; ".join(sentence for _, _, _, sentence, _ in found[:3]) + more
            rows = [place for *_, key in found for place in self._first[key].first][:ROWS_SHOWN]
            yield Found(
                "StereotypeAssociation", sum(row[1] for row in found), sum(row[2] for row in found), message, rows
            )


def log_likelihood(together: int, alone: int, beside: int, others: int) -> float:
    """Dunning's G (1993) of two shares being one: 10.8 is met by chance once in a thousand."""
    rate = (together + beside) / (alone + others)
    return 2 * sum(
        count * math.log(count / expected)
        for count, expected in (
            (together, alone * rate),
            (alone - together, alone * (1 - rate)),
            (beside, others * rate),
            (others - beside, others * (1 - rate)),
        )
        if count and expected
    )
