"""What reading and encoding note of rows, check by check: how many, and the first ones with their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune_api.checks import CHECKS, SEVERITIES, CheckCode
from finetune_api.data import ChecksSpec
from finetune_api.findings import ROWS_SHOWN, Finding, RowRef

from finetune_trainer.checks.finding import finding
from finetune_trainer.checks.masking import excerpt


@dataclass(slots=True)
class Noted:
    """Counts by code, and the first rows of each."""

    counts: dict[CheckCode, int] = field(default_factory=dict)
    first: dict[CheckCode, list[RowRef]] = field(default_factory=dict)
    remedies: dict[CheckCode, list[str]] = field(default_factory=dict)
    """The different ones of the first rows."""

    def add(self, code: CheckCode, file: str, line: int, text: str | None = None, remedy: str | None = None) -> None:
        self.counts[code] = self.counts.get(code, 0) + 1
        rows = self.first.setdefault(code, [])
        if len(rows) < ROWS_SHOWN:
            rows.append(RowRef(file=file, line=line, text=text and excerpt(text)))
            if (remedy := remedy or CHECKS[code].remedy) not in (remedies := self.remedies.setdefault(code, [])):
                remedies.append(remedy)

    def findings(self, checks: ChecksSpec, rows: int, *, messages: dict[CheckCode, str] | None = None) -> list[Finding]:
        """`rows` were looked at. `messages`: sentences that know more than the count."""
        ignored = checks.ignore or ()
        return [
            finding(
                checks,
                code,
                (messages or {}).get(code) or _message(code, count, rows),
                self.first[code],
                count=count,
                of=rows,
                remedy="; ".join(self.remedies[code]),
            )
            for code, count in self.counts.items()
            if code not in ignored or CHECKS[code].of_rows  # a row that cannot be used is no matter of taste
        ]


def _message(code: CheckCode, count: int, rows: int) -> str:
    return f"{count:,} of {rows:,} rows: {CHECKS[code].finds}"


def sentence(finding: Finding) -> str:
    """As the end of a job says it: where first, then what."""
    where = f"{finding.where}: " if finding.where else ""
    return f"{where}{finding.message[:1].lower()}{finding.message[1:]}".rstrip(".")


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """What matters most comes first."""
    return sorted(
        findings, key=lambda finding: (not finding.refuses, SEVERITIES.index(finding.severity), -finding.count)
    )
