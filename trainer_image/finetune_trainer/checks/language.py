"""Rows in another language than most, by py3langid on a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

from finetune_api.checks import CheckCode
from finetune_api.findings import ROWS_SHOWN

from finetune_trainer.checks.checker import Found, Hits, Seen
from finetune_trainer.checks.masking import excerpt
from finetune_trainer.checks.row import Batch, Row
from finetune_trainer.checks.wording import share

_ALL_OF, _EVERY = 500, 32
"""Rows that are all looked at; then one of so many: a look costs 0.2 ms."""
_LEAST_LETTERS, _LONGEST = 60, 400
_LEAST_SURE = 0.95
_FEWEST_ROWS, _LEAST_SHARE = 20, 0.005


class LanguageMix:
    codes: tuple[CheckCode, ...] = ("LanguageMix",)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, Hits] = {}
        self._looked_at = 0

    def see(self, batch: Batch) -> None:
        for row in batch.rows:
            if row.number >= _ALL_OF and row.number % _EVERY:
                continue
            self._looked_at += 1
            if language := _language(row):
                self._counts[language] += 1
                hits = self._first.setdefault(language, Hits())
                hits.add(row, None if hits.full else f"{language}: {excerpt(row.text)}")

    def found(self, seen: Seen) -> Iterable[Found]:
        known = self._counts.total()
        if known < _FEWEST_ROWS:
            return
        (main, most), *others = self._counts.most_common()
        others = [(language, count) for language, count in others if count >= 2 or count >= _LEAST_SHARE * known]
        count = sum(number for _, number in others)
        if not others or count < _LEAST_SHARE * known:
            return
        shown = ", ".join(f"{language} {share(number, known)}" for language, number in others[:5])
        looked_at = "a sample of " if seen.all_rows > self._looked_at else ""
        message = f"{looked_at}{known:,} rows are {main} ({share(most, known)}), but also {shown}"
        first = [place for language, _ in others for place in self._first[language].first][:ROWS_SHOWN]
        yield Found("LanguageMix", count, known, message, first)


def _language(row: Row) -> str | None:
    """None where it is too short, or where it may well be another."""
    text = " ".join(word for word in row.text[: 2 * _LONGEST].split() if word.strip(".,;:!?()\"'").isalpha())[:_LONGEST]
    if len(text) < _LEAST_LETTERS and not any(character >= "\u2e80" for character in text[:_LEAST_LETTERS]):
        return None
    language, sure = _identifier().classify(text)
    return str(language) if sure >= _LEAST_SURE else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
