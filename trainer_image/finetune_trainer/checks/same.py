"""Rows that say the same, prompts with several answers, and held-out rows that are trained on too: exactly, by 64-bit keys."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from finetune_api.checks import CheckCode

from finetune_trainer.checks.checker import Found, Seen
from finetune_trainer.checks.columns import repeated
from finetune_trainer.checks.kept import NO_PROMPT, Kept, where_in, within_parts
from finetune_trainer.checks.row import TRAIN, Batch
from finetune_trainer.checks.wording import of_rows


class ExactDuplicates:
    codes: tuple[CheckCode, ...] = ("ExactDuplicates",)

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def see(self, batch: Batch) -> None:
        """All that it needs is kept."""

    def found(self, seen: Seen) -> Iterable[Found]:
        later, earlier = repeated(within_parts(self._kept.content, self._kept.part))
        if len(later):
            message = of_rows(len(later), seen.all_rows, "repeats an earlier one", "repeat an earlier one")
            first = self._kept.beside(later, earlier, "is the same as", seen)
            yield Found("ExactDuplicates", len(later), seen.all_rows, message, first)


class ConflictingAnswers:
    codes: tuple[CheckCode, ...] = ("ConflictingAnswers",)

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def see(self, batch: Batch) -> None:
        """All that it needs is kept."""

    def found(self, seen: Seen) -> Iterable[Found]:
        prompt, content = self._kept.prompt, self._kept.content
        asks = np.flatnonzero(prompt != NO_PROMPT)
        later, earlier = repeated(within_parts(prompt[asks], self._kept.part[asks]))
        later, earlier = asks[later], asks[earlier]
        other = content[later] != content[earlier]
        later, earlier = later[other], earlier[other]
        if not len(later):
            return
        prompts = len(np.unique(earlier))
        message = of_rows(len(later), seen.all_rows, "answers", "answer") + (
            f" a prompt otherwise than an earlier row: {prompts:,} {'prompt has' if prompts == 1 else 'prompts have'} several answers"
        )
        first = self._kept.beside(later, earlier, "answers otherwise than", seen)
        yield Found("ConflictingAnswers", len(later), seen.all_rows, message, first)


class Leakage:
    """Between files of their own for validation or test, and train. One list that is split never parts equal rows."""

    codes: tuple[CheckCode, ...] = ("Leakage",)

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def see(self, batch: Batch) -> None:
        """All that it needs is kept."""

    def found(self, seen: Seen) -> Iterable[Found]:
        held, rows, in_train = leaked(self._kept)
        if len(rows):
            message = of_rows(len(rows), held, "is", "are", "rows of validation and test") + " also in train"
            first = self._kept.beside(rows, in_train, "is the same as", seen)
            yield Found("Leakage", len(rows), held, message, first)


def leaked(kept: Kept, *, prompts: bool = False) -> tuple[int, np.ndarray, np.ndarray]:
    """How many rows are held out, which of them are in train too, and where there. `prompts`: that ask the same."""
    keys, part = kept.prompt if prompts else kept.content, kept.part
    held, train = np.flatnonzero(part != TRAIN), np.flatnonzero(part == TRAIN)
    if prompts:
        held, train = held[keys[held] != NO_PROMPT], train[keys[train] != NO_PROMPT]
    found, first = where_in(keys[held], keys[train])
    return int((part != TRAIN).sum()), held[found], train[first]
