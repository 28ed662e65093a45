"""Shards, format 1: tokenised rows as flat memory-mapped arrays in a sealed folder.

Of each split (train, validation, test), little-endian:

    SPLIT.tokens.i32    token ids of all rows, one after another
    SPLIT.mask.bits     one bit a token, lowest bit first: 1 where the loss counts the prediction of this token
    SPLIT.offsets.i64   rows + 1 offsets into the tokens
    SPLIT.prompt.i32    of each row, how many tokens precede the last answer: generation starts there
    SPLIT.source.i64    of each row: index into the manifest's `sources`, line (from 1), byte offset and length of the raw row in the
                        unpacked text (-1 and 0 for tables and Parquet; `readers.rows_at` finds any row again by its line)

and of a classifier's data one of these, whose labels are those of the manifest's `resolved.labels`, by their place there:

    SPLIT.labels.i32    of each row the one label it has
    SPLIT.labels.bits   of each row one bit a label, lowest bit first, each row filled up to a byte: 1 where it has the label

Rows are stored unpacked; packing is a plan of the training loop. The manifest holds the digests of data, tokenizer,
template, renderer and code, the counts, and the values that prepare resolved. The first token of a row is never trained:
nothing predicts it. What a row of an encoder-decoder model is (source, then target) and of a classifier (text, then its
pair) is told by their encoders: see `encode_pairs` and `encode_classes`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from finetune_api.method import Task

from finetune_trainer import sealed
from finetune_trainer.data import stepplan
from finetune_trainer.data.stepplan import StepPlan
from finetune_trainer.errors import BadInput

ONE_LABEL, SEVERAL_LABELS = "labels.i32", "labels.bits"
LABEL = np.dtype("<i4")
KIND = "shards"
FORMAT = 1
SPLITS = ("train", "validation", "test")

TOKENS, OFFSETS, PROMPT, SOURCE = np.dtype("<i4"), np.dtype("<i8"), np.dtype("<i4"), np.dtype("<i8")
_FLUSH_TOKENS = 1 << 18
_COUNTED_ROWS = 1 << 14


class Source(NamedTuple):
    """Where a row was written: file as the user knows it, and line from 1."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class SplitCounts:
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    longest_answer: int = 0


class SplitWriter:
    """Writes one split, row by row, in bounded memory. Use as a context manager; `counts` is final after it."""

    def __init__(self, folder: Path, split: str, *, labels: Literal["one", "several"] | None = None) -> None:
        """`labels` says how many each row has, None that the rows are no classifier's."""
        names = ["tokens.i32", "mask.bits", "offsets.i64", "prompt.i32", "source.i64"]
        if labels:
            self._labels_file = ONE_LABEL if labels == "one" else SEVERAL_LABELS
            names.append(self._labels_file)
        self._labels = labels
        self._files: dict[str, BinaryIO] = {name: (folder / f"{split}.{name}").open("wb") for name in names}
        self._pending: list[tuple[np.ndarray, np.ndarray, int, tuple[int, int, int, int]]] = []
        self._pending_tokens = 0
        self._offset = 0
        self._bits = np.zeros(0, dtype=bool)  # mask bits that do not fill a byte yet
        self._write("offsets.i64", np.array([0], dtype=OFFSETS))
        self.counts = SplitCounts()

    def append(
        self,
        tokens: Sequence[int] | np.ndarray,
        mask: Sequence[bool] | np.ndarray,
        *,
        prompt_length: int,
        source: tuple[int, int, int, int],
        label: int | np.ndarray | None = None,
    ) -> None:
        """Add a row. `mask` has one entry a token; `source` is (file index, line, byte offset, byte length).

        `label` is its number where rows have one label, bool of shape [labels] where they have several.
        Raises ValueError for an empty row, for lengths that differ, or a prompt longer than the row.
        """
        if (label is None) != (self._labels is None):
            raise ValueError(f"a row with label {label} where labels is {self._labels}")
        ids = np.asarray(tokens, dtype=TOKENS)
        bits = np.array(mask, dtype=bool)
        if not len(ids) or len(ids) != len(bits) or not 0 <= prompt_length <= len(ids):
            raise ValueError(f"a row of {len(ids)} tokens, {len(bits)} mask bits and a prompt of {prompt_length}")
        bits[0] = False
        if label is not None:
            one = self._labels == "one"
            self._write(
                self._labels_file, np.array([label], dtype=LABEL) if one else np.packbits(label, bitorder="little")
            )
        self._pending.append((ids, bits, prompt_length, source))
        self._pending_tokens += len(ids)
        if self._pending_tokens >= _FLUSH_TOKENS:
            self._flush()

    def close(self) -> None:
        self._flush()
        if len(self._bits):
            self._write("mask.bits", np.packbits(self._bits, bitorder="little"))
            self._bits = self._bits[:0]
        for file in self._files.values():
            file.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        rows, prompts = [ids for ids, _, _, _ in self._pending], [prompt for _, _, prompt, _ in self._pending]
        lengths = np.array([len(ids) for ids in rows], dtype=OFFSETS)
        bits = np.concatenate([self._bits, *(bits for _, bits, _, _ in self._pending)])
        whole = len(bits) // 8 * 8
        trained = int(bits.sum()) - int(self._bits.sum())
        self._write("tokens.i32", np.concatenate(rows))
        self._write("mask.bits", np.packbits(bits[:whole], bitorder="little"))
        self._write("offsets.i64", self._offset + np.cumsum(lengths))
        self._write("prompt.i32", np.array(prompts, dtype=PROMPT))
        self._write("source.i64", np.array([source for _, _, _, source in self._pending], dtype=SOURCE))
        self._bits = bits[whole:].copy()
        self._offset += int(lengths.sum())
        old = self.counts
        self.counts = SplitCounts(
            rows=old.rows + len(rows),
            tokens=self._offset,
            trained_tokens=old.trained_tokens + trained,
            longest=max(old.longest, int(lengths.max())),
            longest_answer=max(old.longest_answer, int((lengths - np.array(prompts)).max())),
        )
        self._pending, self._pending_tokens = [], 0

    def _write(self, name: str, values: np.ndarray) -> None:
        self._files[name].write(values.tobytes())

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Split:
    """One split, read-only and memory-mapped. Rows are numbered from 0."""

    def __init__(self, folder: Path, name: str, sources: Sequence[str], *, labels: int = 0) -> None:
        """`labels` is how many there are in all; 0 where the rows are no classifier's."""
        self.name = name
        self.label_count = labels
        self._sources = sources
        offsets = _map(folder / f"{name}.offsets.i64", OFFSETS)
        self._starts, self._ends = offsets[:-1], offsets[1:]
        self._tokens = _map(folder / f"{name}.tokens.i32", TOKENS)
        self._mask = _map(folder / f"{name}.mask.bits", np.dtype("u1"))
        self._prompt = _map(folder / f"{name}.prompt.i32", PROMPT)
        self._source = _map(folder / f"{name}.source.i64", SOURCE).reshape(-1, 4)
        self.rows = len(offsets) - 1
        total = int(offsets[-1]) if self.rows >= 0 else -1
        if (
            self.rows < 0
            or total != len(self._tokens)
            or -(-total // 8) != len(self._mask)
            or {self.rows} != {len(self._prompt), len(self._source)}
        ):
            raise sealed.Torn(f"{folder}: the arrays of split {name} do not fit each other")
        self._label, self._label_bits = self._map_labels(folder) if labels else (None, None)

    def _map_labels(self, folder: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
        one, several = folder / f"{self.name}.{ONE_LABEL}", folder / f"{self.name}.{SEVERAL_LABELS}"
        width = -(-self.label_count // 8)
        label = _map(one, LABEL) if one.is_file() else None
        bits = _map(several, np.dtype("u1")) if several.is_file() else None
        have = len(label) if label is not None else len(bits) / width if bits is not None else -1
        if have != self.rows:
            raise sealed.Torn(f"{folder}: split {self.name} has no label for each of its rows")
        if label is not None and self.rows and not 0 <= label.min() <= label.max() < self.label_count:
            raise sealed.Torn(f"{folder}: split {self.name} has a label that is none of {self.label_count}")
        return label, bits.reshape(-1, width) if bits is not None else None

    def tokens(self, row: int) -> np.ndarray:
        """int32 ids of a row, a read-only view of shape [length]."""
        start, end = self._bounds(row)
        return self._tokens[start:end]

    def mask(self, row: int) -> np.ndarray:
        """bool of shape [length]: where the loss counts the prediction of this token. Never True at 0."""
        start, end = self._bounds(row)
        first = start // 8
        bits = np.unpackbits(self._mask[first : -(-end // 8)], bitorder="little")
        return bits[start - 8 * first : end - 8 * first].view(bool)

    def lengths(self) -> np.ndarray:
        """int64 of shape [rows]."""
        return self._ends - self._starts

    def prompt_length(self, row: int) -> int:
        """Tokens before the last answer of the row; equal to the row's length when it has none (plain text)."""
        return int(self._prompt[row])

    def labels(self, row: int) -> tuple[int, ...]:
        """Numbers of the labels that a row of a classifier's data has, sorted: one, or where it may have several any number of them."""
        if self._label is not None:
            return (int(self._label[row]),)
        assert self._label_bits is not None, "rows with labels"
        bits = np.unpackbits(self._label_bits[row], count=self.label_count, bitorder="little")
        return tuple(np.flatnonzero(bits).tolist())

    def label_counts(self) -> np.ndarray:
        """int64 of shape [labels]: how many rows have each."""
        if self._label is not None:
            return np.bincount(self._label, minlength=self.label_count)
        assert self._label_bits is not None, "rows with labels"
        counts = np.zeros(self.label_count, dtype=np.int64)
        for start in range(0, self.rows, _COUNTED_ROWS):
            bits = self._label_bits[start : start + _COUNTED_ROWS]
            counts += np.unpackbits(bits, axis=1, count=self.label_count, bitorder="little").sum(axis=0, dtype=np.int64)
        return counts

    def spread(self, most: int) -> Split:
        """At most so many of its rows, evenly spread, under new numbers."""
        if self.rows <= most:
            return self
        part, chosen = copy.copy(self), np.linspace(0, self.rows - 1, most).astype(np.int64)
        part.rows = most
        for name in ("_starts", "_ends", "_prompt", "_source", "_label", "_label_bits"):
            column = getattr(self, name)
            setattr(part, name, None if column is None else column[chosen])
        return part

    def source(self, row: int) -> Source:
        file, line, _, _ = self._source[row]
        return Source(self._sources[file], int(line))

    def source_ids(self, row: int) -> tuple[int, int, int, int]:
        """(index into the manifest's `sources`, line, byte offset, byte length), as `SplitWriter.append` takes it."""
        file, line, offset, length = (int(value) for value in self._source[row])
        return file, line, offset, length

    def _bounds(self, row: int) -> tuple[int, int]:
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} is not in a split of {self.rows} rows")
        return int(self._starts[row]), int(self._ends[row])


class Shards:
    """The sealed folder that prepare leaves: three splits, the step plan, and a manifest."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        resolved = manifest.get("resolved", {})
        labels = len(resolved.get("labels") or ())
        # `validation` is the part of its split that is measured while training.
        self.train, self.validation, self.test = (
            Split(folder, name, manifest["sources"], labels=labels) for name in SPLITS
        )
        self.validation = self.validation.spread(resolved.get("validated_rows", self.validation.rows))

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        tokenizer_digest: str | None = None,
        template_digest: str | None = None,
        content: bool = False,
    ) -> Shards:
        """Open shards whose files are all as sealed (sizes; with `content` also their hashes).

        Raises sealed.Torn when they are not, BadInput when they were made with another tokenizer or template, or by a
        version that writes another format.
        """
        manifest = sealed.verify(folder, content=content)
        if (manifest.get("kind"), manifest.get("format")) != (KIND, FORMAT):
            raise BadInput(
                f"{folder} holds {manifest.get('kind')} of format {manifest.get('format')}, but this trainer reads shards of format {FORMAT}",
                code="InvalidData",
                remedy="run the job again with a new spec.runToken, so that its data is prepared by this version",
            )
        for what, digest in (("tokenizer", tokenizer_digest), ("template", template_digest)):
            if digest is not None and digest != manifest["digests"][what]:
                raise BadInput(
                    f"spec.model: the {'tokenizer' if what == 'tokenizer' else 'chat template'} is not the one that the data was prepared with; the model's files changed in between",
                    code="InvalidModel",
                    remedy="run the job again with a new spec.runToken, and leave the model's files alone while it runs",
                )
        return cls(folder, manifest)

    @property
    def resolved(self) -> dict[str, Any]:
        """What prepare decided: task, max_length, global_batch_size, steps, epochs, checkpoint_every_steps, validate_every_steps, validated_rows, max_new_tokens, loss_on, format.

        Of a classifier also `labels` (their names, in the order of their numbers) and `multi_label`. Shards of an
        earlier version have no task: `task` knows.
        """
        return self.manifest["resolved"]

    @property
    def task(self) -> Task:
        """What the rows are made for."""
        return self.resolved.get("task", "causal-lm")

    @property
    def labels(self) -> list[str]:
        """Names of a classifier's labels, in the order of their numbers; empty for other tasks."""
        return self.resolved.get("labels") or []

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels, or none."""
        return bool(self.resolved.get("multi_label"))

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Ids: `pad` (int, only ever a filler), `eos` (int or None), `stop` (list of ints that end generation); `vocab_size`; `segments` (whether the model tells a text from its pair by token_type_ids)."""
        return self.manifest["tokenizer"]

    def plan(self) -> StepPlan:
        """Which rows of `train` each step takes."""
        return StepPlan.from_json(json.loads(stepplan.path_in(self.folder).read_bytes()))


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype)
    if path.stat().st_size % dtype.itemsize:
        raise sealed.Torn(f"{path} was cut in the middle of a number")
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
