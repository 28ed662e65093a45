"""The data report: what prepare found, as one page. It is there as soon as the data was read, also when it was refused."""

from __future__ import annotations

from collections import Counter

from finetune_api.findings import DataReport
from finetune_api.status import PlanStatus

from finetune_trainer.publish import pages


def page(title: str, report: DataReport, plan: PlanStatus | None) -> str:
    """One HTML file that needs nothing else."""
    headline, detail, tone = _verdict(report)
    return pages.page(
        "data-report.html",
        report.proof,
        title=title,
        headline=headline,
        detail=detail,
        tone=tone,
        findings=report,
        plan=plan,
    )


def _verdict(report: DataReport) -> tuple[str, str, str]:
    """Headline, detail and tone (a class of the stylesheet)."""
    if report.refused is not None:
        remedy = report.refused_remedy
        return "The data cannot be used", report.refused + (f". To do: {remedy}" if remedy else ""), "worse"
    counts = Counter(finding.severity for finding in report.findings)
    left_out = report.rows - report.valid_rows
    used = (
        f"{report.valid_rows:,} of {report.rows:,} rows can be used"
        if left_out
        else f"All {report.rows:,} rows can be used"
    )
    if counts["Warning"] or counts["Error"]:
        number = counts["Warning"] + counts["Error"]
        return (
            f"The data can be used, with {number} finding{'s' * (number > 1)} to check",
            f"{used}. Read the findings below before you pay for GPUs.",
            "unknown",
        )
    return "The data is good", f"{used}, and no check found anything that needs attention.", "better"
