"""Shards, format 1: tokenised rows as flat memory-mapped arrays in a sealed folder.

Of each split (train, validation, test), little-endian:

    SPLIT.tokens.i32    token ids of all rows, one after another
    SPLIT.mask.bits     one bit a token, lowest bit first: 1 where the loss counts the prediction of this token
    SPLIT.offsets.i64   rows + 1 offsets into the tokens
    SPLIT.prompt.i32    of each row, how many tokens precede the last answer: generation starts there
    SPLIT.source.i64    of each row: index into the manifest's `sources`, line (from 1), byte offset and length of the raw row

Rows are stored unpacked; packing is a plan of the training loop. The manifest holds the digests of data, tokenizer,
template, renderer and code, the counts, and the values that prepare resolved. The first token of a row is never trained:
nothing predicts it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from finetune_trainer import sealed
from finetune_trainer.data import stepplan
from finetune_trainer.data.stepplan import StepPlan
from finetune_trainer.errors import BadInput

KIND = "shards"
FORMAT = 1
SPLITS = ("train", "validation", "test")

TOKENS, OFFSETS, PROMPT, SOURCE = np.dtype("<i4"), np.dtype("<i8"), np.dtype("<i4"), np.dtype("<i8")
_FLUSH_TOKENS = 1 << 18


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

    def __init__(self, folder: Path, split: str) -> None:
        self._files: dict[str, BinaryIO] = {
            name: (folder / f"{split}.{name}").open("wb")
            for name in ("tokens.i32", "mask.bits", "offsets.i64", "prompt.i32", "source.i64")
        }
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
    ) -> None:
        """Add a row. `mask` has one entry a token; `source` is (file index, line, byte offset, byte length).

        Raises ValueError for an empty row, for lengths that differ, or a prompt longer than the row.
        """
        ids = np.asarray(tokens, dtype=TOKENS)
        bits = np.array(mask, dtype=bool)
        if not len(ids) or len(ids) != len(bits) or not 0 <= prompt_length <= len(ids):
            raise ValueError(f"a row of {len(ids)} tokens, {len(bits)} mask bits and a prompt of {prompt_length}")
        bits[0] = False
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

    def __init__(self, folder: Path, name: str, sources: Sequence[str]) -> None:
        self.name = name
        self._sources = sources
        self._offsets = _map(folder / f"{name}.offsets.i64", OFFSETS)
        self._tokens = _map(folder / f"{name}.tokens.i32", TOKENS)
        self._mask = _map(folder / f"{name}.mask.bits", np.dtype("u1"))
        self._prompt = _map(folder / f"{name}.prompt.i32", PROMPT)
        self._source = _map(folder / f"{name}.source.i64", SOURCE).reshape(-1, 4)
        self.rows = len(self._offsets) - 1
        total = int(self._offsets[-1]) if self.rows >= 0 else -1
        if (
            self.rows < 0
            or total != len(self._tokens)
            or -(-total // 8) != len(self._mask)
            or {self.rows} != {len(self._prompt), len(self._source)}
        ):
            raise sealed.Torn(f"{folder}: the arrays of split {name} do not fit each other")

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
        return np.diff(self._offsets)

    def prompt_length(self, row: int) -> int:
        """Tokens before the last answer of the row; equal to the row's length when it has none (plain text)."""
        return int(self._prompt[row])

    def source(self, row: int) -> Source:
        file, line, _, _ = self._source[row]
        return Source(self._sources[file], int(line))

    def source_ids(self, row: int) -> tuple[int, int, int, int]:
        """(index into the manifest's `sources`, line, byte offset, byte length), as `SplitWriter.append` takes it."""
        file, line, offset, length = (int(value) for value in self._source[row])
        return file, line, offset, length

    def raw_span(self, row: int) -> tuple[int, int]:
        """Byte offset and byte length of the raw row in its source file."""
        _, _, offset, length = self._source[row]
        return int(offset), int(length)

    def _bounds(self, row: int) -> tuple[int, int]:
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} is not in a split of {self.rows} rows")
        return int(self._offsets[row]), int(self._offsets[row + 1])


class Shards:
    """The sealed folder that prepare leaves: three splits, the step plan, and a manifest."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.train, self.validation, self.test = (Split(folder, name, manifest["sources"]) for name in SPLITS)

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
        """What prepare decided: max_length, global_batch_size, steps, epochs, checkpoint_every_steps, validate_every_steps, max_new_tokens, loss_on, format."""
        return self.manifest["resolved"]

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Ids: `pad` (int, only ever a filler), `eos` (int or None), `stop` (list of ints that end generation); and `vocab_size`."""
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
