"""Everything that is watched while rows are read: what cannot be used, what the checks see, and what is said of it all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

from finetune_api.checks import CheckCode
from finetune_api.data import DataFormat, DataSpec
from finetune_api.findings import DataReport, Finding, FixedFile, FixRecord, SourceFile

from finetune_trainer.checks.suite import Suite
from finetune_trainer.data.formats import Example, InvalidRow
from finetune_trainer.prepare.files import DataFile, notes_of
from finetune_trainer.prepare.noted import Noted, ordered


class Examination:
    """Sees every row of every file once. `noted` takes what reading and encoding find in single rows."""

    def __init__(self, data: DataSpec, files: Sequence[DataFile]) -> None:
        self._data = data
        self._files = files
        self._suite: Suite | None = None
        self._rows = [0] * len(files)
        self._invalid = [0] * len(files)
        self._began = time.monotonic()
        self.noted = Noted()

    def row(self, file: int, line: int, example: Example, form: DataFormat) -> None:
        """A row that can be used, in the order of the files."""
        if self._suite is None:
            self._suite = Suite(self._data.checks, form=form)
        self._rows[file] += 1
        self._suite.see(self._files[file].part, file, line, example)
        roles = [message["role"] for message in example.messages or ()]
        if ("assistant", "assistant") in pairwise(roles):
            self.note("ConsecutiveAnswers", file, line)

    def invalid(self, file: int, line: int, error: InvalidRow, *, was_read: bool = False) -> None:
        """`was_read`: `row` has seen it."""
        self._rows[file] += not was_read
        self._invalid[file] += 1
        self.noted.add(error.code, self._files[file].name, line, str(error), error.remedy)

    def valid(self, part: str) -> int:
        """Rows of a part's files that can be used."""
        counted = zip(self._files, self._rows, self._invalid, strict=True)
        return sum(rows - invalid for file, rows, invalid in counted if file.part == part)

    def note(self, code: CheckCode, file: int, line: int, text: str | None = None) -> None:
        """Something about a row that can be used."""
        self.noted.add(code, self._files[file].name, line, text)

    def findings(self, messages: dict[CheckCode, str]) -> list[Finding]:
        """Of all checks, what matters most first. `messages`: of what encoding noted."""
        rows = sum(self._rows)
        found = self.noted.findings(self._data.checks, rows, messages=messages)
        if self._suite is not None:
            found += self._suite.findings([file.name for file in self._files])
        return ordered(found)

    def report(
        self,
        findings: Sequence[Finding],
        *,
        form: DataFormat | None,
        evidence: str | None,
        fixes: Sequence[FixRecord] = (),
        fixed_files: Sequence[FixedFile] = (),
    ) -> DataReport:
        return DataReport(
            files=[
                SourceFile(name=file.name, part=file.part, bytes=file.path.stat().st_size, rows=rows, kind=file.kind)
                for file, rows in zip(self._files, self._rows, strict=True)
            ],
            format=form,
            evidence=evidence,
            rows=sum(self._rows),
            valid_rows=sum(self._rows) - sum(self._invalid),
            findings=list(findings),
            fixes=list(fixes),
            fixed_files=list(fixed_files),
            notes=notes_of(self._files),
            seconds=round(time.monotonic() - self._began, 3),
        )
