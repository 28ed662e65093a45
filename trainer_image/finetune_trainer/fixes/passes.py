"""Passes over all files: what one wrote, the next one reads. Rows go through a pass's fixes in batches, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from finetune_api.checks import Fix
from finetune_api.data import DataFormat
from finetune_api.findings import FixedFile

from finetune_trainer.data import formats
from finetune_trainer.data.formats import InvalidRow
from finetune_trainer.data.readers import SUFFIXES, Unreadable
from finetune_trainer.fixes.mended import Writer, read_rows
from finetune_trainer.fixes.near import DropNearDuplicates
from finetune_trainer.fixes.steps import STEPS, Row, Step

BATCH_ROWS = 2048
KIND, FORMAT = "mended data", 1


class DataFile(Protocol):
    """`name` is how the user knows it; `part` is train, validation or test."""

    @property
    def part(self) -> Any: ...
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    def _replace(self, *, path: Path) -> Any: ...


@dataclass(slots=True)
class Copy:
    """What was made of one file. `path` is the mended one, or what the last pass left; `touched`: rows by fix."""

    index: int
    name: str
    original: Path
    path: Path
    digest: str = ""
    fixed_digest: str = ""
    rows: int = 0
    kept: int = 0
    touched: Counter[Fix] = field(default_factory=Counter)
    unusable: int = 0
    first_unusable: tuple[int, str] | None = None

    def record(self, fixed: str) -> FixedFile:
        """For people, who know the mended file as `fixed`."""
        return FixedFile(original=self.name, original_digest=self.digest, fixed=fixed, fixed_digest=self.fixed_digest)

    def manifest(self, fixes: Sequence[Fix]) -> dict[str, Any]:
        """Says nothing of time and place, so that the same data gives the same manifest."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "original": {"name": self.name, "sha256": self.digest, "rows": self.rows},
            "fixed": {"sha256": self.fixed_digest, "rows": self.kept},
            "fixes": list(fixes),
            "counts": {"unusable": self.unusable, **{fix: self.touched[fix] for fix in fixes if fix in self.touched}},
        }


def grouped(fixes: Sequence[Fix]) -> list[list[Fix]]:
    """What can be done in one pass each. Near duplicates are only known when all rows that they are looked for in were read."""
    groups: list[list[Fix]] = []
    for fix in fixes:
        if fix == "DropNearDuplicates" or (fix in STEPS and not groups):
            groups.append([fix])
        elif fix in STEPS:
            groups[-1].append(fix)
    return groups


class Passes:
    """Runs fixes over all files; what one pass wrote the next one reads."""

    def __init__(
        self, files: Sequence[DataFile], form: DataFormat | None, consumed: Callable[[int], None] | None
    ) -> None:
        self.form = form
        self.steps: dict[Fix, Step] = {}
        self._files, self._consumed = files, consumed

    def run(self, fixes: Sequence[Fix], copies: Sequence[Copy], target: Path) -> None:
        """Read each copy's `path`, write into `target`, and set the copy to what was written."""
        target.mkdir(parents=True, exist_ok=True)
        made: dict[Fix, Step] = {}
        if "DropNearDuplicates" in fixes:
            made["DropNearDuplicates"] = near = DropNearDuplicates()
            for copy in copies:
                for batch in self._batches(copy, None):
                    near.look(self._files[copy.index].part, batch)
            near.settle()
        for copy in copies:
            with Writer(target / self._name(copy)) as writer:
                before = {fix: step.touched for fix, step in made.items()}
                for batch in self._batches(copy, writer):
                    for fix in fixes:
                        step = made.get(fix) or made.setdefault(fix, STEPS[fix](self._known_form()))
                        batch = step(self._files[copy.index].part, batch)
                    for row in batch:
                        writer.write(row.line, row.value)
                writer.keep()
            copy.touched.update({fix: step.touched - before.get(fix, 0) for fix, step in made.items()})
            copy.path, copy.fixed_digest, copy.kept = writer.path, writer.digest, writer.rows
            copy.unusable, copy.first_unusable = writer.unusable, writer.first_unusable
        self.steps |= made
        self._consumed = None  # the originals are read once

    def _known_form(self) -> DataFormat:
        assert self.form is not None, "rows, so that their format is known"
        return self.form

    def _batches(self, copy: Copy, writer: Writer | None) -> Iterator[list[Row]]:
        batch: list[Row] = []
        try:
            for raw in read_rows(copy.path, self._consumed):
                copy.rows += copy.path == copy.original and writer is not None
                try:
                    value = formats.value_of(raw)
                    self.form = self.form or formats.detect(value)
                    batch.append(Row(raw.line, value, formats.read(value, self.form)))
                except InvalidRow as error:
                    if writer is not None:
                        writer.leave_out(raw.line, error.code, str(error))
                if len(batch) == BATCH_ROWS:
                    yield batch
                    batch = []
        except Unreadable as error:
            raise error.refusal(copy.name) from error
        if batch:
            yield batch

    def _name(self, copy: Copy) -> str:
        return f"{self._files[copy.index].part}-{copy.index:03d}-{stem(copy.original)}.fixed.jsonl"


_ENDINGS = frozenset(f".{part}" for suffix in SUFFIXES for part in suffix.split(".") if part)


def stem(path: Path) -> str:
    """A data file's name without what says how it is written: train of train.jsonl.gz."""
    while path.suffix.lower() in _ENDINGS and path.stem:
        path = path.with_suffix("")
    return path.name
