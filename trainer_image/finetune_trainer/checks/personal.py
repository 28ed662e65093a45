"""Rows with personal data, and rows with secrets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from finetune_api import secret_patterns
from finetune_api.checks import CheckCode
from finetune_api.spans import Span

from finetune_trainer.checks import pii
from finetune_trainer.checks.checker import Found, Hits, Seen
from finetune_trainer.checks.masking import excerpt
from finetune_trainer.checks.row import Batch
from finetune_trainer.checks.wording import of_kinds, of_rows


class _Spans:
    codes: tuple[CheckCode, ...]

    def __init__(self, find: Callable[[str], Sequence[Span]], kinds: Mapping[str, str], what: str) -> None:
        self._find, self._kinds, self._what = find, kinds, what
        self._hits = Hits()
        self._counts: Counter[str] = Counter()

    def see(self, batch: Batch) -> None:
        for row in batch.rows:
            if spans := self._find(row.text):
                self._counts.update(span.kind for span in spans)
                self._hits.add(row, None if self._hits.full else excerpt(row.text, spans[0].start))

    def found(self, seen: Seen) -> Iterable[Found]:
        if self._hits.count:
            kinds = of_kinds(self._counts, self._kinds)
            message = of_rows(self._hits.count, seen.all_rows, "holds", "hold") + f" {self._what}: {kinds}"
            yield Found(self.codes[0], self._hits.count, seen.all_rows, message, self._hits.first)


class Pii(_Spans):
    codes: tuple[CheckCode, ...] = ("Pii",)

    def __init__(self) -> None:
        super().__init__(pii.spans, pii.KINDS, "personal data")


class Secrets(_Spans):
    codes: tuple[CheckCode, ...] = ("Secrets",)

    def __init__(self) -> None:
        super().__init__(secret_patterns.spans, secret_patterns.KINDS, "secrets")
