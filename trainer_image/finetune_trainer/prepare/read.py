"""One pass over all rows: each is read, checked, encoded and written unsplit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from finetune_api.method import Task

from finetune_trainer.data.encode import RowEncoder, default_loss_on
from finetune_trainer.data.labels import LabelSet
from finetune_trainer.data.shards import SplitCounts
from finetune_trainer.prepare.build import BATCH_ROWS, Found, Part
from finetune_trainer.prepare.examine import Examination
from finetune_trainer.prepare.files import DataFile
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.rows import Invalid, RowReader
from finetune_trainer.prepare.task import decide, encoder_for
from finetune_trainer.proof import Prover

READING_PERCENT = 90.0


@dataclass(frozen=True, slots=True)
class Made:
    """What the format and the task decided: how rows are encoded, and their labels (None but for classification)."""

    task: Task
    encoder: RowEncoder
    labels: LabelSet | None


class Reading:
    """What was read, and what was made of it. `made` is None while no row could be used."""

    def __init__(self, inputs: Inputs, listing: TextIO, report: Callable[[int, float], None]) -> None:
        """`listing` takes every row that cannot be used; `report` is told rows and percent now and then."""
        data = inputs.config.spec.data
        self.inputs = inputs
        self.examination = Examination(data, inputs.files)
        self.invalid = Invalid(listing, inputs.files, self.examination)
        self.reader = RowReader(data.format, self.invalid, self._advance)
        self.found = Found()
        self.parts: dict[str, Part] = {}
        self.made: Made | None = None
        self.prover: Prover
        self.counts: dict[str, SplitCounts] = {}
        """Of the splits, once the rows are divided."""
        self._report = report
        self._bytes = inputs.bytes or 1
        self._done = 0

    def read(self, folder: Path) -> None:
        """All files; rows go to folders below `folder`. Raises BadInput for a file that cannot be read at all."""
        for index, file in enumerate(self.inputs.files):
            for batch in self.reader.batches(index, file, BATCH_ROWS):
                if batch:
                    self._part(folder, file).add(batch, self.invalid)

    def _part(self, folder: Path, file: DataFile) -> Part:
        data = self.inputs.config.spec.data
        if self.made is None:
            assert self.reader.form
            task = decide(self.inputs, self.reader.form)
            encoder = encoder_for(self.inputs, task, self.reader.form)
            self.made = Made(task, encoder, LabelSet() if task == "sequence-classification" else None)
            self.prover = Prover(
                self.inputs.tokenizer,
                task=task,
                form=self.reader.form,
                loss_on=data.loss_on or default_loss_on(self.reader.form),
                names=[file.name for file in self.inputs.files],
            )
        if file.part not in self.parts:
            self.parts[file.part] = Part(
                folder / f"rows-{file.part}",
                file.part,
                seed=data.split.seed,
                tokenizer=self.inputs.tokenizer,
                encoder=self.made.encoder,
                labels=self.made.labels,
                max_length=self.inputs.longest_allowed(),
                drop=data.overlong == "drop",
                found=self.found,
                prover=self.prover,
            )
        return self.parts[file.part]

    def _advance(self, rows: int, count: int) -> None:
        self._done += count
        self._report(self.reader.rows, 1 + (READING_PERCENT - 1) * min(self._done / self._bytes, 1))
