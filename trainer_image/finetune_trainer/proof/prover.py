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
from finetune_trainer.proof.rows import Claim, Expected, Mark, Spans
from finetune_trainer.proof.samples import Samples
from finetune_trainer.proof.spelling import Positions, Spelling


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
        whole = kept = _Joined.of([row.whole for row in batch])
        if any(row.is_cut for row in batch):
            kept = _Joined.of([row.kept for row in batch])
        if self._task != "sequence-classification":
            self._assert_learnt(batch, kept)
        if self._task == "causal-lm":
            template = self._assert_texts(batch, whole)
            if kept is not whole:  # rows of a causal model lose their end alone
                template = np.concatenate(
                    [template[start:][: len(row.kept.ids)] for start, row in zip(whole.offsets, batch, strict=False)]
                )
        else:
            template = self._special[kept.ids]
            if self._task == "seq2seq-lm":
                self._assert_pairs(batch)
        self._count(batch, kept, template)

    def proof(self, covered: Callable[[str], Sequence[Sequence[Any]]] | None = None) -> Proof:
        """`covered` gives the spans (start, end, ...) of a text that must not be shown, such as personal data and secrets."""
        end = self._last_tokens.most_common(1)
        return Proof(
            rows=self._rows,
            trained_tokens=self._trained,
            masked_tokens=self._masked,
            template_tokens=self._template,
            end_of_turn=self._spelling.shown([end[0][0]])[0] if end else None,
            samples=self._samples.shown(self._spelling, self._names, covered),
        )

    # ---- assertions

    def _assert_learnt(self, batch: Sequence[Seen], kept: _Joined) -> None:
        first = kept.offsets[:-1]
        learnt = np.add.reduceat(kept.mask.astype(np.int64), first) - kept.mask[first]
        for number in np.flatnonzero(learnt == 0):
            raise self._refused(
                batch[number],
                f"none of its {len(batch[number].kept.ids)} tokens would be trained on",
                "add an answer, or leave the row out",
                code="NothingToTrain",
            )

    def _assert_texts(self, batch: Sequence[Seen], whole: _Joined) -> np.ndarray:
        """Gives which tokens are not the rows' own text, bool of shape [tokens]."""
        expected = Expected(self._loss_on)
        for row in batch:
            if self._chat:
                expected.conversation(row.example, row.whole)
            else:
                expected.text(row.example, row.whole, self._begin, self._end)
        positions = self._spelling.place(whole.ids, whole.offsets, expected.texts)
        self._assert_ends(batch, whole, expected)
        self._assert_claims(batch, whole, expected, positions)
        return _outside(positions, Spans.of(expected.own), len(whole.ids))

    def _assert_claims(self, batch: Sequence[Seen], whole: _Joined, expected: Expected, positions: Positions) -> None:
        spans = Spans.of(expected.claims)
        wanted = np.fromiter((claim[3] for claim in expected.claims), np.int64, len(expected.claims))
        first, last = positions.within(*spans)
        first = np.maximum(first, whole.offsets[spans.rows] + wanted)  # nothing predicts the first token of a row
        last = np.maximum(first, last)
        sums = np.concatenate([[0], np.cumsum(whole.mask)])
        learnt = sums[last] - sums[first]
        for number in np.flatnonzero(learnt != wanted * (last - first)):
            claim = Claim(*expected.claims[number])
            raise self._broken(batch[claim.row], claim, int(learnt[number]))

    def _assert_ends(self, batch: Sequence[Seen], whole: _Joined, expected: Expected) -> None:
        last = whole.offsets[1:] - 1
        ended = self._enders[whole.ids[last]] & whole.mask[last]
        for number in np.flatnonzero(~ended & np.array(expected.ends)):
            raise self._refused(
                batch[number],
                "the end of its answer would not be trained on, and the model would never learn to stop",
                "end each answer in the chat template with the tokenizer's end token",
            )

    def _assert_pairs(self, batch: Sequence[Seen]) -> None:
        for row in batch:
            ids, mask, source = row.whole.ids, row.whole.mask, row.whole.prompt_length
            if mask[:source].any() or not mask[source:].all():
                raise self._refused(row, "its source and its target are not kept apart", None)
            if ids[source - 1] != self._end.id or ids[-1] != self._end.id:
                raise self._refused(row, "its source or its target has no end token", None)

    def _broken(self, row: Seen, claim: Claim, learnt: int) -> BadInput:
        name, template = claim.named(row.example), "correct the chat template (spec.data.template)"
        if claim.trained:
            return self._refused(row, f"{name} would not be trained on", template if self._chat else None)
        what, other = ("chat template", f"{template}, or set") if self._chat else ("tokenizer", "set")
        return self._refused(
            row,
            f"{name} would be trained on ({learnt} token{'s' * (learnt > 1)}): the {what} does not keep prompts and answers apart",
            f"{other} spec.data.lossOn to all to learn prompts too",
        )

    def _refused(self, row: Seen, what: str, remedy: str | None, *, code: str | None = None) -> BadInput:
        where = f"{self._names[row.source[0]]}:{row.source[1]}"
        code = code or ("InvalidTemplate" if self._chat else "InvalidModel")
        return BadInput(f"{where}: {what}", code=code, remedy=remedy)

    # ---- what is told

    def _count(self, batch: Sequence[Seen], kept: _Joined, template: np.ndarray) -> None:
        trained = int(np.count_nonzero(kept.mask)) - int(np.count_nonzero(kept.mask[kept.offsets[:-1]]))
        self._rows += len(batch)
        self._trained += trained
        self._masked += len(kept.ids) - trained
        self._template += int(np.count_nonzero(template))
        last = kept.offsets[1:] - 1
        ends, counts = np.unique(kept.ids[last][kept.mask[last]], return_counts=True)
        for token, count in zip(ends.tolist(), counts.tolist(), strict=True):
            if self._enders[token]:  # others end a row that was cut
                self._last_tokens[token] += count
        self._samples.offer(batch, kept.offsets, template)


class _Joined(NamedTuple):
    """Rows one after another."""

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> _Joined:
        offsets = np.concatenate([[0], np.cumsum([len(row.ids) for row in encoded])]).astype(np.int64)
        return cls(np.concatenate([row.ids for row in encoded]), np.concatenate([row.mask for row in encoded]), offsets)


def _outside(positions: Positions, own: Spans, size: int) -> np.ndarray:
    first, last = positions.touching(*own)
    depth = np.zeros(size + 1, dtype=np.int64)
    np.add.at(depth, first, 1)
    np.add.at(depth, last, -1)
    return np.cumsum(depth)[:-1] <= 0


def _mark(tokenizer: Any, name: str) -> Mark:
    token, number = getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")
    return Mark(-1, b"") if token is None or number is None else Mark(number, str(token).encode())
