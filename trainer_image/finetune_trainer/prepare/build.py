"""Encodes rows into shards: bounded memory, one pass over the data, then one over the ids to divide them into splits."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from finetune_api.data import DataSpec

from finetune_trainer.data import split as splitting
from finetune_trainer.data.encode import Encoded, RowEncoder, first_unknown, words_of
from finetune_trainer.data.encode_pairs import PairEncoder
from finetune_trainer.data.formats import Example, InvalidRow
from finetune_trainer.data.labels import LabelSet
from finetune_trainer.data.lengths import bin_start
from finetune_trainer.data.shards import SPLITS, Split, SplitCounts, SplitWriter
from finetune_trainer.fixes import rebalance
from finetune_trainer.prepare.rows import Invalid, Row
from finetune_trainer.proof import Prover, Seen

BATCH_ROWS = 512
_OTHER_TEMPLATE = "set spec.data.template to one that writes the whole row, or change the row"


@dataclass
class Found:
    """What was met on the way, for status and report."""

    truncated: int = 0
    dropped: int = 0
    special_text: int = 0
    lost_answers: int = 0
    lost_tokens: int = 0
    rebalanced: tuple[int, str] | None = None
    """Rows that were copied, with a sentence about them."""
    longest_seen: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows by the start of their length's bin: see data.lengths."""
    notes: list[str] = field(default_factory=list)


class Part:
    """Rows of one list of data files (train, validation or test), written unsplit with the key of each row's content.

    Labels are kept by the numbers that `labels` gave them so far; `divide` writes their last ones.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        seed: int,
        tokenizer: Any,
        encoder: RowEncoder,
        labels: LabelSet | None,
        max_length: int,
        drop: bool,
        found: Found,
        prover: Prover,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.name = folder, name
        self._writer = SplitWriter(folder, name)
        self._keys: list[int] = []
        self._prover = prover
        self._label_set = labels
        self.labels: list[tuple[int, ...]] = []
        self._seed, self._encoder, self._max_length, self._drop, self._found = seed, encoder, max_length, drop, found
        self.largest_id = -1
        self._tokenizer = tokenizer
        unknown = tokenizer.unk_token_id
        ends = (None, tokenizer.eos_token_id, tokenizer.bos_token_id)  # of a vocabulary that has every byte, as GPT-2's
        self._unknown = -1 if unknown in ends else unknown

    def add(self, batch: Sequence[Row], invalid: Invalid) -> None:
        """Raises BadInput for a row of which the wrong tokens would be learnt."""
        seen = []
        if isinstance(self._encoder, PairEncoder):
            batch = [row for row in batch if not self._has_rounds(row, invalid)]
        for row, result in zip(batch, self._encoder.encode([row.example for row in batch]), strict=True):
            file, line, *_ = row.source
            if isinstance(result, str):
                error = (
                    InvalidRow(result, "TemplateMismatch", _OTHER_TEMPLATE)
                    if row.example.messages
                    else InvalidRow(result, "NothingToTrain")
                )
                invalid.add(file, line, error, was_read=True)
                continue
            fitting = self._fitted(row, result, invalid)
            if fitting is None or self._is_unwritable(row, fitting, invalid):
                continue
            if self._label_set is not None and row.example.label is not None:
                try:
                    self.labels.append(self._label_set.add(row.example.label, learn=self.name == "train"))
                except InvalidRow as error:
                    invalid.add(file, line, error, was_read=True)
                    continue
            if result.special_text:
                self._found.special_text += 1
                invalid.examination.note("SpecialTokens", file, line)
            self._found.lost_answers += result.lost_answers
            if (rendered := result.rendered) is not None and row.example.messages:
                if rendered.omitted:
                    turns = (
                        f"the {row.example.messages[turn]['role']}'s (messages[{turn}])" for turn in rendered.omitted
                    )
                    invalid.examination.note("OmittedTurns", file, line, ", ".join(turns))
                if rendered.unwritten.strip():
                    invalid.examination.note("UntrainedPrompt", file, line, f"no {rendered.unwritten.strip()}")
            self._found.lengths[bin_start(len(fitting.ids))] += 1
            self.largest_id = max(self.largest_id, int(fitting.ids.max()))
            seen.append(Seen(row.example, result, fitting, row.source))
            self._writer.append(fitting.ids, fitting.mask, prompt_length=fitting.prompt_length, source=row.source)
            self._keys.append(splitting.content_key(self._seed, row.example.canonical()))
        self._prover.see(seen)

    def _has_rounds(self, row: Row, invalid: Invalid) -> bool:
        """Of a row for an encoder-decoder model, which reads one question: whether it is left out, since it has more."""
        more = len(row.example.messages or ()) > 2 or bool(row.example.tools)
        if more:
            file, line, *_ = row.source
            reason = "has a system prompt, a history or tools, and an encoder-decoder model reads one prompt"
            invalid.add(file, line, InvalidRow(reason, "UnknownFormat", "write them in instruction"), was_read=True)
        return more

    def _fitted(self, row: Row, encoded: Encoded, invalid: Invalid) -> Encoded | None:
        """None: the row is left out, because it is too long or nothing of it would be learnt."""
        file, line, *_ = row.source
        found, length = self._found, self._encoder.length(encoded)
        found.longest_seen = max(found.longest_seen, length)
        too_long = length > self._max_length
        if too_long:
            invalid.examination.note("TooLong", file, line, f"{length:,} tokens")
            found.lost_tokens += length if self._drop else length - self._max_length
            if self._drop:
                found.dropped += 1
                return None
            encoded = self._encoder.shortened(row.example, encoded, self._max_length)
        if self._encoder.learns_tokens and not encoded.mask[1:].any():
            if not too_long:
                invalid.add(file, line, InvalidRow("has no token to train on", "NothingToTrain"), was_read=True)
            else:
                found.dropped += 1
            return None
        found.truncated += too_long
        return encoded

    def _is_unwritable(self, row: Row, encoded: Encoded, invalid: Invalid) -> bool:
        """Whether the row is left out, because it would teach the unknown token. Unknown characters in a prompt are noted."""
        unknown = encoded.ids == self._unknown
        if not unknown.any() or encoded.special_text:  # then the row may spell the unknown token itself
            return False
        file, line, *_ = row.source
        whole, answers = _words(row.example)
        if (unknown & encoded.mask).any():
            everything = bool(encoded.mask.all())
            characters = first_unknown(self._tokenizer, answers)
            if everything or encoded.rendered is None:  # else the rest of the trained text is the template's own
                characters = characters or first_unknown(self._tokenizer, whole)
            if characters:
                where = "text" if everything else "answer"
                reason = f"the tokenizer cannot write {characters!r}, which is in the {where}"
                remedy = "replace it, or choose a model whose tokenizer has it"
                invalid.add(file, line, InvalidRow(reason, "UnwritableAnswer", remedy), was_read=True)
                return True
        if characters := first_unknown(self._tokenizer, whole):
            invalid.examination.note("UnknownCharacters", file, line, repr(characters))
        return False

    def close(self) -> Split:
        self._writer.close()
        return Split(self.folder, self.name, [])

    @property
    def keys(self) -> np.ndarray:
        return np.array(self._keys, dtype=np.uint64)


def _words(example: Example) -> tuple[str, str]:
    """All text of a row, and that of its answers alone."""
    if example.messages is not None:
        answers = [words_of(message) for message in example.messages if message["role"] == "assistant"]
        return " ".join(map(words_of, example.messages)), " ".join(answers)
    return f"{example.prompt or ''}{example.completion}{example.text}{example.pair or ''}", example.completion


def divide(
    parts: dict[str, Part], data: DataSpec, target: Path, found: Found, labels: LabelSet | None
) -> dict[str, SplitCounts]:
    """Write the three splits into `target` and say how large they became. A list that is named replaces its fraction."""
    keys = parts["train"].keys
    assignment = splitting.assign(
        keys,
        validation=0.0 if data.validation else data.split.validation,
        test=0.0 if data.test else data.split.test,
    )
    found.notes += assignment.notes
    counts = {}
    train = parts["train"].close()
    order = labels.order() if labels else None
    kind: Literal["one", "several"] | None = None if labels is None else "several" if labels.multi_label else "one"
    for code, name in enumerate(SPLITS):
        with SplitWriter(target, name, labels=kind) as writer:
            rows = np.flatnonzero(assignment.split == code)
            if name == "train" and "Rebalance" in (data.fixes or ()) and labels is not None and kind == "one":
                rows = _rebalanced(rows, keys, parts["train"], labels, found)
            for row in rows:
                _copy(train, int(row), writer, _label(parts["train"], int(row), order, kind))
            if name != "train" and name in parts:
                own = parts[name].close()
                for row in range(own.rows):
                    _copy(own, row, writer, _label(parts[name], row, order, kind))
                shared = int(np.isin(parts[name].keys, keys).sum())
                if shared:
                    found.notes.append(
                        f"{shared} of {own.rows} rows of spec.data.{name} are also in spec.data.train: its figures are too good"
                    )
        counts[name] = writer.counts
    for part in parts.values():
        shutil.rmtree(part.folder, ignore_errors=True)
    return counts


def _rebalanced(rows: np.ndarray, keys: np.ndarray, part: Part, labels: LabelSet, found: Found) -> np.ndarray:
    """The training rows, followed by copies of those whose labels are rare."""
    numbers = labels.order()[np.array([part.labels[row][0] for row in rows], dtype=np.int64)]
    added = rebalance.copies(numbers, keys[rows])
    if len(added):
        found.rebalanced = len(added), rebalance.sentence(numbers, added, labels.names())
    return np.concatenate([rows, rows[added]])


def _label(part: Part, row: int, order: np.ndarray | None, kind: str | None) -> int | np.ndarray | None:
    """As `SplitWriter.append` takes it."""
    if order is None:
        return None
    numbers = [int(order[number]) for number in part.labels[row]]
    return numbers[0] if kind == "one" else np.isin(np.arange(len(order)), numbers)


def _copy(split: Split, row: int, writer: SplitWriter, label: int | np.ndarray | None) -> None:
    writer.append(
        split.tokens(row),
        split.mask(row),
        prompt_length=split.prompt_length(row),
        source=split.source_ids(row),
        label=label,
    )
