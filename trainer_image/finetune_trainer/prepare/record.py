"""Leaves the data report in the run's folder: as JSON for programs, as a page for people. There too when the data is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_api.contract import DATA_PAGE, DATA_REPORT, Cause, RunConfig
from finetune_api.findings import DataReport, Finding
from finetune_api.status import DataStatus, FindingStatus, PlanStatus

from finetune_trainer import sealed
from finetune_trainer.publish import data_page


def write(folder: Path, title: str, report: DataReport, plan: PlanStatus | None = None) -> None:
    """Each file whole or not at all."""
    sealed.write_text(folder / DATA_REPORT, report.model_dump_json(by_alias=True, exclude_none=True))
    sealed.write_text(folder / DATA_PAGE, data_page.page(title, report, plan))


def copy(source: Path, folder: Path) -> None:
    """Where the run's folder is looked at first."""
    for name in (DATA_REPORT, DATA_PAGE):
        sealed.write_text(folder / name, (source / name).read_text(encoding="utf-8"))


def title_of(config: RunConfig) -> str:
    return f"{config.job.namespace}/{config.job.name}"


def refused(report: DataReport, cause: Cause) -> DataReport:
    return report.model_copy(
        update={"refused": cause.message, "refused_code": cause.code, "refused_remedy": cause.remedy}
    )


def status(findings: Sequence[Finding]) -> list[FindingStatus] | None:
    """The findings as status.data shows them."""
    found = [
        FindingStatus(code=finding.code, severity=finding.severity, count=finding.count, where=finding.where)
        for finding in findings
    ]
    return found or None


def of_refused(report: DataReport) -> DataStatus:
    """What status.data says of data that is refused."""
    return DataStatus(
        format=report.format,
        rows=report.rows,
        invalid_rows=report.rows - report.valid_rows,
        findings=status(report.findings),
    )
