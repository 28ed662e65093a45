"""Data that says too little that is new: few phrases, prompts that begin alike, answers that begin or end alike."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from finetune_api.checks import CheckCode

from finetune_trainer.checks.checker import Found, Seen
from finetune_trainer.checks.frequent import Frequent
from finetune_trainer.checks.masking import excerpt
from finetune_trainer.checks.row import Batch
from finetune_trainer.checks.wording import of_rows, share

FEWEST_ROWS = 50
"""Fewer rows have no habits."""


class LowDiversity:
    """Of the phrases (three words) in a sample of up to a million, fewer than one in twenty is new."""

    codes: tuple[CheckCode, ...] = ("LowDiversity",)
    _MOST, _FEWEST, _LEAST_NEW = 1_000_000, 2_000, 0.05

    def __init__(self) -> None:
        self._every, self._number, self._size = 1, 0, 0
        self._sample: list[np.ndarray] = []

    def see(self, batch: Batch) -> None:
        """Every batch, then every second, fourth, ... so that the sample stays even."""
        if self._number % self._every == 0:
            self._sample.append(batch.shingles)
            self._size += len(batch.shingles)
            if self._size > self._MOST and len(self._sample) > 1:
                self._sample = self._sample[::2]
                self._size, self._every = sum(map(len, self._sample)), self._every * 2
        self._number += 1

    def found(self, seen: Seen) -> Iterable[Found]:
        if self._size < self._FEWEST or seen.all_rows < FEWEST_ROWS:
            return
        phrases = np.sort(np.concatenate(self._sample))
        different = 1 + int(np.count_nonzero(phrases[1:] != phrases[:-1]))
        if different < self._LEAST_NEW * self._size:
            sampled = " in a sample of the rows" if self._every > 1 else ""
            message = f"{self._size:,} phrases{sampled} are only {different:,} different ones ({share(different, self._size)})"
            yield Found("LowDiversity", different, self._size, message)


class DominantTemplate:
    """Most prompts begin with the same four words."""

    codes: tuple[CheckCode, ...] = ("DominantTemplate",)
    _WORDS, _SHARE = 4, 0.6

    def __init__(self) -> None:
        self._openings = Frequent()
        self._prompts = 0

    def see(self, batch: Batch) -> None:
        for row in batch.rows:
            if row.question:
                self._prompts += 1
                self._openings.add(" ".join(row.question[:200].split(None, self._WORDS)[: self._WORDS]), row)

    def found(self, seen: Seen) -> Iterable[Found]:
        opening, hits = self._openings.most()
        if self._prompts >= FEWEST_ROWS and hits.count >= self._SHARE * self._prompts:
            message = of_rows(hits.count, self._prompts, "begins", "begin", "prompts") + f" with {excerpt(opening)!r}"
            yield Found("DominantTemplate", hits.count, self._prompts, message, hits.first)


_ENDS = re.compile(r"(?<=[.!?。！？])\s+|\n+")


class Boilerplate:
    """Answers of several sentences, a fifth of which begin or end with the same one of at least three words."""

    codes: tuple[CheckCode, ...] = ("Boilerplate",)
    _SHARE, _WORDS, _LONGEST = 0.2, 3, 300

    def __init__(self) -> None:
        self._begin, self._end = Frequent(), Frequent()
        self._answers = 0

    def see(self, batch: Batch) -> None:
        for row in batch.rows:
            for answer in row.answers:
                self._answers += 1
                for frequent, sentence in zip(
                    (self._begin, self._end), _outer_sentences(answer, self._LONGEST), strict=True
                ):
                    if sentence.count(" ") >= self._WORDS - 1:
                        frequent.add(sentence, row)

    def found(self, seen: Seen) -> Iterable[Found]:
        (sentence, hits), verb = max(
            ((self._begin.most(), "begin"), (self._end.most(), "end")), key=lambda most: most[0][1].count
        )
        if self._answers >= FEWEST_ROWS and hits.count >= self._SHARE * self._answers:
            message = of_rows(hits.count, self._answers, f"{verb}s", verb, "answers") + f" with {excerpt(sentence)!r}"
            yield Found("Boilerplate", hits.count, self._answers, message, hits.first)


def _outer_sentences(answer: str, longest: int) -> tuple[str, str]:
    """The first and the last of several sentences; empty where there is but one, or where it is long."""
    answer = answer.strip()
    begin = _ENDS.search(answer, 0, longest + 1)
    if begin is None:
        return "", ""
    tail = answer[-longest:]
    last = ""
    for match in _ENDS.finditer(tail):
        last = tail[match.end() :]
    return answer[: begin.start()], last
