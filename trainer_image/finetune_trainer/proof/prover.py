"""Asserts of every row what it should be, in batches, and keeps some of them to be shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from finetune_api.data import DataFormat, LossOn
from finetune_api.findings import Proof
from finetune_api.method import Task

from finetune_trainer.data.encode import Encoded
from finetune_trainer.data.formats import Example
from finetune_trainer.errors import BadInput
from finetune_trainer.proof import rows
from finetune_trainer.proof.rows import Begin, Expected
from finetune_trainer.proof.samples import Samples
from finetune_trainer.proof.spelling import Spelling


class Seen(NamedTuple):
    """A row that will be trained on. `kept` is `whole`, or what is left of it when it was cut. `source`: file index, line, ..."""

    example: Example
    whole: Encoded
    kept: Encoded
    source: tuple[int, ...]

    @property
    def is_cut(self) -> bool:
        return len(self.kept.ids) < len(self.whole.ids)


class Prover:
    """Sees every row, in batches; `proof` says what was found. Holds a few hundred rows at most.

    Where an assertion fails, BadInput names the row: NothingToTrain, or InvalidTemplate where a chat template does not
    keep answers and prompts apart (InvalidModel where the tokenizer does not).
    """

    def __init__(
        self, tokenizer: Any, *, task: Task, form: DataFormat, loss_on: LossOn | None, names: Sequence[str]
    ) -> None:
        """`loss_on` as it is in force; of no meaning for classification. `names` are the data files', as users know them."""
        self._task, self._loss_on, self._names = task, loss_on or "completion", names
        self._chat = form in ("messages", "instruction") and task == "causal-lm"
        self._spelling = Spelling(tokenizer)
        special = np.zeros(len(self._spelling.lengths), dtype=bool)
        special[[number for number in tokenizer.all_special_ids if number < len(special)]] = True
        self._special = special
        self._begin, self._end = _mark(tokenizer, "bos_token"), _mark(tokenizer, "eos_token")
        enders = special.copy()
        if self._begin.id >= 0:
            enders[self._begin.id] = False
        if self._end.id >= 0:
            enders[self._end.id] = True
        self._enders = enders
        self._rows = self._trained = self._masked = self._template = 0
        self._last_tokens: Counter[int] = Counter()
        self._samples = Samples()

    def see(self, batch: Sequence[Seen]) -> None:
        """Raises BadInput for the first row of the batch that is not what it should be."""
        if not batch:
            return
        whole = _Joined.of([row.whole for row in batch])
        if self._task == "causal-lm":
            template = self._assert_texts(batch, whole)
        else:
            template = self._special[whole.ids]
            if self._task == "seq2seq-lm":
                self._assert_pairs(batch)
        if self._task != "sequence-classification":
            self._assert_learnt(batch)
        self._count(batch, whole, template)

    def proof(self, covered: Callable[[str], list[tuple[int, int]]] | None = None) -> Proof:
        """`covered` gives the character spans of a text that must not be shown, such as personal data and secrets."""
        end = self._last_tokens.most_common(1)
        return Proof(
            rows=self._rows,
            trained_tokens=self._trained,
            masked_tokens=self._masked,
            template_tokens=self._template,
            end_of_turn=self._spelling.texts([end[0][0]])[0] if end else None,
            samples=self._samples.shown(self._spelling, self._names, covered),
        )

    # ---- assertions

    def _assert_learnt(self, batch: Sequence[Seen]) -> None:
        for row in batch:
            if not row.kept.mask[1:].any():
                raise self._refused(
                    row,
                    f"none of its {len(row.kept.ids)} tokens would be learnt",
                    "add an answer, or leave the row out",
                    code="NothingToTrain",
                )

    def _assert_texts(self, batch: Sequence[Seen], whole: _Joined) -> np.ndarray:
        """Gives which tokens are not the rows' own text, bool of shape [tokens]."""
        expected = [self._expected(row) for row in batch]
        positions = self._spelling.place(whole.ids, whole.offsets, [row.text for row in expected])
        counts = [len(row.claims) for row in expected]
        owners = np.repeat(np.arange(len(batch)), counts)
        claims = [claim for row in expected for claim in row.claims]
        starts, ends, wanted = (np.array([claim[field] for claim in claims], dtype=np.int64) for field in range(3))
        first, last = positions.within(owners, starts, ends)
        first = np.maximum(first, whole.offsets[owners] + wanted)  # nothing predicts the first token of a row
        last = np.maximum(first, last)
        learnt = np.concatenate([[0], np.cumsum(whole.mask)])
        learnt = learnt[last] - learnt[first]
        wrong = np.flatnonzero(learnt != wanted * (last - first))
        if len(wrong):
            raise self._claim_broken(batch[owners[wrong[0]]], claims[wrong[0]], int(learnt[wrong[0]]))
        self._assert_ends(batch, expected, whole)
        return _outside(positions, expected, len(whole.ids))

    def _expected(self, row: Seen) -> Expected:
        if self._chat:
            return rows.of_conversation(row.example, row.whole, self._loss_on)
        return rows.of_text(row.example, row.whole, self._loss_on, self._begin, self._end)

    def _assert_ends(self, batch: Sequence[Seen], expected: Sequence[Expected], whole: _Joined) -> None:
        last = whole.offsets[1:] - 1
        ended = self._enders[whole.ids[last]] & whole.mask[last]
        for number in np.flatnonzero(~ended & np.array([row.ends for row in expected])):
            raise self._refused(
                batch[number],
                "the end of its answer would not be learnt, and the model would never learn to stop",
                "end each answer in the chat template with the tokenizer's end token",
            )

    def _assert_pairs(self, batch: Sequence[Seen]) -> None:
        for row in batch:
            ids, mask, source = row.whole.ids, row.whole.mask, row.whole.prompt_length
            if mask[:source].any() or not mask[source:].all():
                raise self._refused(row, "its source and its target are not kept apart", None)
            if ids[source - 1] != self._end.id or ids[-1] != self._end.id:
                raise self._refused(row, "its source or its target has no end token", None)

    def _claim_broken(self, row: Seen, claim: rows.Claim, learnt: int) -> BadInput:
        if claim.trained:
            return self._refused(
                row,
                f"{claim.what} would not be learnt",
                "correct the chat template (spec.data.template)" if self._chat else None,
            )
        return self._refused(
            row,
            f"{claim.what} would be learnt ({learnt} token{'s' * (learnt > 1)}): the {'chat template' if self._chat else 'tokenizer'} does not keep prompts and answers apart",
            "correct the chat template (spec.data.template), or set spec.data.lossOn to all"
            if self._chat
            else "set spec.data.lossOn to all",
        )

    def _refused(self, row: Seen, what: str, remedy: str | None, *, code: str | None = None) -> BadInput:
        where = f"{self._names[row.source[0]]}:{row.source[1]}"
        return BadInput(
            f"{where}: {what}", code=code or ("InvalidTemplate" if self._chat else "InvalidModel"), remedy=remedy
        )

    # ---- what is told

    def _count(self, batch: Sequence[Seen], whole: _Joined, template: np.ndarray) -> None:
        causal = self._task == "causal-lm"
        self._rows += len(batch)
        for number, row in enumerate(batch):
            tokens, trained = len(row.kept.ids), int(np.count_nonzero(row.kept.mask[1:]))
            self._trained += trained
            self._masked += tokens - trained
            # only rows of a causal model are cut at their end alone
            own = template[whole.offsets[number] :][:tokens] if causal else self._special[row.kept.ids]
            self._samples.offer(row, own)
            if not row.is_cut and trained and row.kept.mask[-1]:
                self._last_tokens[int(row.kept.ids[-1])] += 1
            self._template += int(np.count_nonzero(own))


class _Joined(NamedTuple):
    """Rows one after another."""

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> _Joined:
        offsets = np.concatenate([[0], np.cumsum([len(row.ids) for row in encoded])]).astype(np.int64)
        return cls(np.concatenate([row.ids for row in encoded]), np.concatenate([row.mask for row in encoded]), offsets)


def _outside(positions: Any, expected: Sequence[Expected], size: int) -> np.ndarray:
    owners = np.repeat(np.arange(len(expected)), [len(row.own) for row in expected])
    spans = np.array([span for row in expected for span in row.own], dtype=np.int64).reshape(-1, 2)
    keep = spans[:, 1] > spans[:, 0]
    first, last = positions.touching(owners[keep], spans[keep, 0], spans[keep, 1])
    depth = np.zeros(size + 1, dtype=np.int64)
    np.add.at(depth, first, 1)
    np.add.at(depth, last, -1)
    return np.cumsum(depth)[:-1] == 0


def _mark(tokenizer: Any, name: str) -> Begin:
    token, number = getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")
    return Begin(-1, b"") if token is None or number is None else Begin(number, str(token).encode())
