"""Answers that refuse, by how they begin: in English, German, French and Spanish."""

from __future__ import annotations

import re
from collections.abc import Iterable

from finetune_api.checks import CheckCode

from finetune_trainer.checks.checker import Found, Hits, Seen
from finetune_trainer.checks.masking import excerpt
from finetune_trainer.checks.row import Batch
from finetune_trainer.checks.wording import of_rows

_BEGINNING = 240
_HINTS = ("sorry", "apolog", "i can", "i am ", "i'm ", "i’m ", "as an ai", "as a lang", "as a large", "i must ", "i do not", "i don", "i won", "i will not", "leider", "tut mir leid", "désolé", "lo siento", "ich kann", "je ne peux", "no puedo")  # fmt: skip
_REFUSES = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|chatbot)\b"
    r"|\b(?:i(?:'|’)?m|i am) (?:(?:very |truly |so )?sorry,? ?(?:but |, )?(?:i|that is|that's|this|as)\b[^.!?\n]{0,40}?(?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t|unable|not able|am an ai|don(?:'|’)?t)"
    r"|(?:unable|not able) to (?:help|assist|provide|fulfil|comply|answer|do that|support|generate|create|discuss)|just an ai|only an ai|an ai\b)"
    r"|\bi (?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t|will not|must decline to|must refuse to|am not going to|do not feel comfortable|don(?:'|’)?t feel comfortable)(?: be able to)? ?(?:help|assist|provid|fulfil|comply|answer|engage|support|generat|creat|discuss|do that|participat|condone)"
    r"|\bi apologi[sz]e,? but i (?:can|am|do)"
    r"|\b(?:es )?tut mir leid,? (?:aber |doch )?(?:ich|das|dabei|als ki)|\bich kann (?:dir|ihnen)? ?(?:dabei |damit )?(?:leider )?nicht (?:helfen|weiterhelfen)|\bals (?:ki|künstliche intelligenz|sprachmodell)\b"
    r"|\bje suis désolée?,? mais je|\bje ne peux pas (?:vous |t')?aider|\ben tant qu(?:'|’)ia\b"
    r"|\blo siento,? pero (?:no|como)|\bno puedo (?:ayudar|asistir|proporcionar)|\bcomo (?:ia|modelo de lenguaje)\b",
)


class Refusals:
    codes: tuple[CheckCode, ...] = ("Refusals",)

    def __init__(self) -> None:
        self._hits = Hits()

    def see(self, batch: Batch) -> None:
        for row in batch.rows:
            if any(map(_refuses, row.answers)):
                self._hits.add(row, None if self._hits.full else excerpt(next(filter(_refuses, row.answers))))

    def found(self, seen: Seen) -> Iterable[Found]:
        if self._hits.count:
            message = of_rows(self._hits.count, seen.all_rows, "has an answer that refuses", "have answers that refuse")
            yield Found("Refusals", self._hits.count, seen.all_rows, message, self._hits.first)


def _refuses(answer: str) -> bool:
    beginning = answer[:_BEGINNING].lower()
    return any(hint in beginning for hint in _HINTS) and _REFUSES.search(beginning) is not None
