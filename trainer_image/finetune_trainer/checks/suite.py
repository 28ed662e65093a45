"""All checks over all valid rows, in one pass and bounded memory.

Kept of each row are 25 bytes of keys, and 48 more for what is almost the same: 730 MB for ten million rows, and as much again
for a moment at the end, where one column after another is sorted. Everything else is counters of bounded size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune_api.checks import CHECKS, CheckCode
from finetune_api.data import ChecksSpec, DataFormat
from finetune_api.findings import Finding, RowRef

from finetune_trainer.checks.checker import Checker, Found, Seen
from finetune_trainer.checks.finding import finding
from finetune_trainer.checks.groups import Groups
from finetune_trainer.checks.kept import Kept
from finetune_trainer.checks.labels import Labels
from finetune_trainer.checks.language import LanguageMix
from finetune_trainer.checks.near import NearSame
from finetune_trainer.checks.personal import Pii, Secrets
from finetune_trainer.checks.refusals import Refusals
from finetune_trainer.checks.repetition import Repetition
from finetune_trainer.checks.row import PARTS, Batch, Row
from finetune_trainer.checks.same import ConflictingAnswers, ExactDuplicates, Leakage
from finetune_trainer.checks.sameness import Boilerplate, DominantTemplate, LowDiversity
from finetune_trainer.checks.toxic import ToxicTerms
from finetune_trainer.data.formats import Example

_BATCH_ROWS = 256
_BATCH_CHARACTERS = 1 << 21

OF_KEPT: tuple[type[ExactDuplicates] | type[ConflictingAnswers] | type[Leakage] | type[NearSame], ...] = (
    ExactDuplicates,
    ConflictingAnswers,
    Leakage,
    NearSame,
)
"""Checks that compare rows with others, by what is kept of each."""
OF_ROWS: tuple[type[Checker], ...] = (
    LowDiversity,
    DominantTemplate,
    Boilerplate,
    Repetition,
    Refusals,
    Labels,
    LanguageMix,
    Pii,
    Secrets,
    ToxicTerms,
    Groups,
)
"""Checks that look at each row, and count."""

_ALLOWED: dict[CheckCode, Callable[[ChecksSpec], float | None]] = {
    "ExactDuplicates": lambda spec: spec.exact_duplicates,
    "NearDuplicates": lambda spec: spec.near_duplicates,
    "Leakage": lambda spec: spec.leakage,
    "NearLeakage": lambda spec: spec.leakage,
}
"""Shares above which a finding refuses the data."""


class Suite:
    """`see` every valid row in order, then `findings`. `only`: make no other checks than these (for measurements)."""

    def __init__(
        self,
        spec: ChecksSpec,
        *,
        form: DataFormat,
        only: Sequence[CheckCode] | None = None,
    ) -> None:
        ignored = set(spec.ignore or ())
        wanted = set(CHECKS if only is None else only) - ignored
        self._spec, self._wanted = spec, wanted
        self._kept = Kept()
        self._checkers: list[Checker] = [
            *(kind(self._kept) for kind in OF_KEPT if wanted.intersection(kind.codes)),
            *(
                kind()
                for kind in OF_ROWS
                if wanted.intersection(kind.codes) and (kind is not Labels or form == "classification")
            ),
        ]
        self._waiting: list[Row] = []
        self._characters = 0
        self._rows = [0] * len(PARTS)

    def see(self, part: str, file: int, line: int, example: Example) -> None:
        """A valid row. `part`: train, validation or test; `file`: its number among the names that `findings` is given."""
        row = Row(sum(self._rows), part, file, line, example)
        self._rows[row.part] += 1
        self._waiting.append(row)
        self._characters += len(row.text)
        if len(self._waiting) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._look()

    def _look(self) -> None:
        if not self._waiting:
            return
        batch = Batch(self._waiting)
        self._kept.see(batch)
        for checker in self._checkers:
            checker.see(batch)
        self._waiting, self._characters = [], 0

    def findings(self, names: Sequence[str]) -> list[Finding]:
        """What was found, for people. `names`: of the files, as the user knows them."""
        self._look()
        train, validation, test = self._rows
        seen = Seen(names, (train, validation, test))
        return [
            self._finding(found, names)
            for checker in self._checkers
            for found in checker.found(seen)
            if found.code in self._wanted
        ]

    def _finding(self, found: Found, names: Sequence[str]) -> Finding:
        allowed = _ALLOWED.get(found.code, lambda spec: None)(self._spec)
        too_many = allowed is not None and found.of > 0 and found.count / found.of > allowed
        message = found.message + (f"; at most {allowed:.3g} of them may" if too_many else "")
        rows = [RowRef(file=names[file], line=line, text=text) for file, line, text in found.first]
        return finding(self._spec, found.code, message, rows, count=found.count, of=found.of, too_many=too_many)
