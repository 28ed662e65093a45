"""What was found, for people: a paragraph a file, the worst first, and one line that sums it up."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.checks import SEVERITIES, Severity
from finetune_api.findings import DataReport
from rich.console import Console
from rich.text import Text

from finetune_cli.reach import from_here
from finetune_cli.text import count, number, visible
from finetune_cli.validate.checked import Checked, Problem, spoken_here
from finetune_cli.validate.manifests import NO_JOB
from finetune_cli.validate.proof import show_proof

ROWS_TOLD = 3
MARKS: dict[Severity, tuple[str, str]] = {"Error": ("✗", "red"), "Warning": ("!", "yellow"), "Info": ("·", "dim")}
NOUNS: dict[Severity, str] = {"Error": "error", "Warning": "warning", "Info": "note"}


def tell(console: Console, checked: Sequence[Checked], *, proof: bool, strict: bool) -> None:
    """Everything about every file. A file in which nothing was found is one line."""
    checked = [one for one in checked if one.notes != [NO_JOB]] or checked  # a repository has much other YAML
    apart = any(one.problems for one in checked)
    for position, one in enumerate(checked):
        if apart and position:
            console.print()
        _file(console, one)
        if proof and one.report is not None and one.report.proof is not None:
            show_proof(console, one.report.proof, one.claims_root)
    if apart:
        console.print()
    _sum(console, checked, strict=strict)


def _hanging(console: Console, hang: int, *parts: str | tuple[str, str]) -> None:
    """One sentence. In a terminal it breaks between words, below its own beginning; a log keeps it on one line."""
    text = Text.assemble(*parts)
    if not console.is_terminal:
        console.print(text)
        return
    for position, line in enumerate(text.wrap(console, max(20, console.width - hang))):
        console.print(Text.assemble(" " * hang if position else "", line))


def _file(console: Console, one: Checked) -> None:
    title = one.file + (f" ({one.job})" if one.job else "")
    console.print(Text.assemble((title, "bold"), (_about(one), "dim")))
    for problem in one.problems:
        _problem(console, problem)
    if one.report is not None:
        _fixed(console, one.report)
        _refusal(console, one, one.report)
    for note in one.notes:
        _hanging(console, 4, (f"  · {note}", "dim"))


def _about(one: Checked) -> str:
    report = one.report
    if report is None or not report.rows:
        return ""
    parts = [f"  {count(report.rows, 'row')}"]
    if len(report.files) > 1:
        parts.append(count(len(report.files), "file"))
    if report.format:
        parts.append(report.format + (f" ({visible(report.evidence)})" if report.evidence else ""))
    return ", ".join(parts) + (f"; {report.seconds:.1f} s" if report.seconds >= 0.1 else "")


def _problem(console: Console, problem: Problem) -> None:
    mark, style = MARKS[problem.severity]
    if problem.count is None:  # of a file as a whole, or of one field
        message = (problem.message, style if problem.severity == "Info" else "")
        _hanging(console, 4, (f"  {mark} {problem.where}  ", style), message)
    else:
        _hanging(console, 4, (f"  {mark} {problem.code}  ", style), problem.message)
        for place in problem.rows[:ROWS_TOLD]:
            _hanging(console, 8, f"      {place}  ", (visible(place.text or ""), "dim"))
        told = min(ROWS_TOLD, len(problem.rows))
        if told and problem.count > told:
            console.print(Text(f"      and {number(problem.count - told)} more", style="dim"))
    if problem.remedy and (problem.count is not None or problem.severity != "Info"):
        mended = f", or --fix {problem.fix}" if problem.fix else ""
        _hanging(console, 6, (f"    → {problem.remedy}{mended}", "dim" if problem.severity == "Info" else ""))


def _refusal(console: Console, one: Checked, report: DataReport) -> None:
    """The sentence that a job would end with, unless it is shown already."""
    sentence = spoken_here(report.refused or "", report)
    if sentence and all(problem.message != sentence for problem in one.problems):
        _hanging(console, 4, (f"  ✗ {sentence}", "red"))
        if report.refused_remedy:
            _hanging(console, 6, f"    → {report.refused_remedy}")


def _fixed(console: Console, report: DataReport) -> None:
    for record in report.fixes:
        console.print(Text.assemble(("  ✓ ", "green"), f"{record.fix}: {record.detail}"))
    for file in report.fixed_files:
        console.print(Text.assemble(("  ✓ ", "green"), f"written: {from_here(file.fixed)} ({file.fixed_digest})"))


def _sum(console: Console, checked: Sequence[Checked], *, strict: bool) -> None:
    found = [problem.severity for one in checked for problem in one.problems]
    counts = ", ".join(count(found.count(kind), NOUNS[kind]) for kind in SEVERITIES if kind in found)
    wrong = sum(not one.passes(strict=strict) for one in checked)
    if wrong:
        which = "Refused" if len(checked) == 1 else f"{wrong} of {len(checked)} refused"
        strictly = " (--strict: warnings count)" if strict and all(one.passes(strict=False) for one in checked) else ""
        console.print(Text(f"{which}: {counts}{strictly}.", style="red"))
    else:
        unseen = any(one.report is None and one.notes for one in checked)
        what = count(len(checked), "file")
        console.print(
            Text(
                f"{what} passed{f': {counts}' if counts else ''}{'; not everything was checked' if unseen else ''}.",
                style="yellow" if unseen else "green",
            )
        )
