"""What was found, in one shape for manifests and data, from which text, JSON, SARIF and annotations are made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from finetune_api.checks import CHECKS, SEVERITIES, Fix, Severity
from finetune_api.findings import DataReport, Finding

from finetune_cli.manifest import Complaint
from finetune_cli.reach import shown_path

MORE_RULES: dict[str, tuple[Severity, str, str]] = {
    "InvalidManifest": ("Error", "a field that the API server would refuse", "correct the field"),
    "InvalidData": ("Error", "data that a job could not use", "see the message"),
    "LookFailed": ("Error", "data that could not be read", "give it more memory, or report a bug with the file"),
    "LocalLocation": ("Info", "a file:// location, which only local runs can read", "write pvc://CLAIM/PATH"),
}
"""Codes in addition to those of finetune_api.checks: severity, what it finds, what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """`line` None: the file as a whole. `text`: what is wrong just there."""

    file: str
    line: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that somebody should know. `refuses`: a job with it would not start. `count`: of rows, of which `rows` are the first."""

    code: str
    severity: Severity
    message: str
    where: Place
    remedy: str | None = None
    count: int | None = None
    fraction: float | None = None
    refuses: bool = False
    fix: Fix | None = None
    rows: tuple[Place, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        """The rows, or where the whole is named."""
        return self.rows or (self.where,)

    def wire(self) -> dict[str, Any]:
        places = [
            {name: value for name in ("file", "line", "text") if (value := getattr(place, name)) is not None}
            for place in self.places
        ]
        known = {name: value for name in _WIRED if (value := getattr(self, name)) is not None}
        return known | {"places": places}


_WIRED = ("code", "severity", "message", "remedy", "count", "fraction", "refuses", "fix")


@dataclass
class Checked:
    """One FILE, or one job of a FILE with several. `notes` list what was not checked, and why."""

    file: str
    job: str | None = None
    problems: list[Problem] = field(default_factory=list)
    report: DataReport | None = None
    notes: list[str] = field(default_factory=list)
    claims_root: str | None = None

    def sort(self) -> None:
        """The worst first."""
        self.problems.sort(key=lambda problem: (not problem.refuses, SEVERITIES.index(problem.severity)))

    def passes(self, *, strict: bool) -> bool:
        """Whether a job would start. `strict`: and whether nobody is warned."""
        return not any(problem.refuses or (strict and problem.severity != "Info") for problem in self.problems)

    def wire(self) -> dict[str, Any]:
        return {
            "file": self.file,
            **({"job": self.job} if self.job else {}),
            "passes": self.passes(strict=False),
            "problems": [problem.wire() for problem in self.problems],
            "notes": self.notes,
            **({"report": self.report.wire()} if self.report else {}),
        }


def of_complaint(complaint: Complaint) -> Problem:
    place = Place(complaint.source, complaint.line)
    return Problem("InvalidManifest", "Error", complaint.message, place, refuses=True)


def of_report(report: DataReport, where: Place, claims_root: str | None) -> list[Problem]:
    """Findings of data. `where` stands for findings that have no row, and for a refusal that no finding explains."""
    problems = [_of_finding(finding, report, where, claims_root) for finding in report.findings]
    if not report.refused or any(problem.refuses for problem in problems):
        return problems
    errors = [problem for problem in problems if problem.severity == "Error"]
    if not any(f":{row.line}: " in report.refused for problem in errors for row in problem.rows if row.line):
        code, sentence = report.refused_code or "InvalidData", spoken_here(report.refused, report)
        return [*problems, Problem(code, "Error", sentence, where, report.refused_remedy, refuses=True)]
    return [replace(problem, refuses=problem in errors) for problem in problems]  # too many rows that cannot be used


def spoken_here(text: str, report: DataReport) -> str:
    """A sentence with the files of this machine as paths; locations that a cluster has too stay as they are."""
    for file in report.files:
        if file.name.startswith("file://"):
            text = text.replace(file.name, shown_path(file.name, None))
    return text


def _of_finding(finding: Finding, report: DataReport, where: Place, claims_root: str | None) -> Problem:
    rows = tuple(
        Place(shown_path(row.file, claims_root), row.line, row.text and spoken_here(row.text, report))
        for row in finding.rows
    )
    return Problem(
        finding.code,
        finding.severity,
        spoken_here(finding.message, report),
        where,
        finding.remedy,
        finding.count,
        finding.fraction,
        finding.refuses,
        CHECKS[finding.code].fix,
        rows,
    )
