"""Writes the sealed folder: rows in; shards, step plan, data report, list of bad rows and manifest out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.checks import CheckCode
from finetune_api.findings import DataReport, Finding, FixRecord
from finetune_api.planner.facts import PlanFacts
from finetune_api.status import DataStatus, PlanStatus

from finetune_trainer import fixes, sealed
from finetune_trainer.checks.masking import covered
from finetune_trainer.data.shards import FORMAT, KIND, SplitCounts
from finetune_trainer.errors import BadInput
from finetune_trainer.fixes.steps import rows_say
from finetune_trainer.prepare import record, refusals
from finetune_trainer.prepare.build import divide
from finetune_trainer.prepare.describe import describe
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.planned import planned
from finetune_trainer.prepare.read import READING_PERCENT, Reading

log = logging.getLogger("finetune.prepare")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the stage leaves and tells. `decided` is a part of a spec: absent fields that model and data decided."""

    data: DataStatus
    plan: PlanStatus
    facts: PlanFacts
    decided: dict[str, Any]

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Prepared:
        """Raises KeyError, ValueError for a manifest of another version."""
        return cls(
            DataStatus.model_validate(manifest["data"]),
            PlanStatus.model_validate(manifest["plan"]),
            PlanFacts.model_validate(manifest["facts"]),
            manifest["decided"],
        )


def write_shards(
    inputs: Inputs, report: Callable[[int, float], None], refused: Callable[[DataStatus], None]
) -> Prepared:
    """Raises BadInput when the rows are not what the spec allows. Every bad row is then in the run's invalid.jsonl, what was
    found in its data report, and `refused` is told the numbers."""
    layout = inputs.config.layout
    manifest: dict[str, Any] = {"kind": KIND, "format": FORMAT}
    with sealed.sealing(layout.prepared, manifest) as folder:
        with (folder / refusals.INVALID).open("w") as file:
            reading = Reading(inputs, file, report)
            findings: list[Finding] | None = None
            try:
                reading.read(folder)
                refusals.after_reading(reading)
                findings = _findings(reading)
                refusals.by_findings(findings)
                counts = _divided(reading, folder, report)
                refusals.after_dividing(reading, counts)
            except BadInput as error:
                file.flush()
                (folder / refusals.INVALID).replace(layout.root / refusals.INVALID)
                findings = [*_too_few(reading), *(_findings(reading) if findings is None else findings)]
                found = record.refused(_report(reading, findings), error.cause)
                record.write(layout.root, record.title_of(inputs.config), found)
                refused(record.of_refused(found))
                raise
        _tell(reading)
        plan = planned(reading, counts)
        manifest.update(describe(folder, reading, counts, findings, plan))
        found = _report(reading, findings).model_copy(update={"proof": reading.prover.proof(_hidden)})
        found.notes = manifest["notes"]
        record.write(folder, record.title_of(inputs.config), found, plan.status)
    (layout.root / refusals.INVALID).unlink(missing_ok=True)
    record.copy(layout.prepared, layout.root)
    return Prepared.of(manifest)


def _divided(reading: Reading, folder: Path, report: Callable[[int, float], None]) -> dict[str, SplitCounts]:
    rows = reading.reader.rows
    report(rows, READING_PERCENT + 2)
    labels = reading.made.labels if reading.made else None
    counts = divide(reading.parts, reading.inputs.config.spec.data, folder, reading.found, labels)
    reading.counts = counts
    report(rows, 98.0)
    return counts


def _findings(reading: Reading) -> list[Finding]:
    found, longest = reading.found, reading.inputs.longest_allowed()
    long = reading.examination.noted.counts.get("TooLong", 0)
    what = f"{found.dropped:,} of them are left out" if found.dropped else "they lose their end"
    if long:
        reading.examination.noted.remedies["TooLong"] = [_for_too_long(reading.inputs)]
    messages: dict[CheckCode, str] = {
        "TooLong": f"{rows_say(long, 'is', 'are')} longer than {longest:,} tokens, the longest has {found.longest_seen:,}; {what}, {found.lost_tokens:,} tokens in all"
    }
    return reading.examination.findings(messages)


def _for_too_long(inputs: Inputs) -> str:
    raised = inputs.context() != inputs.longest_allowed()
    remedy = "raise spec.data.maxLength" if raised else "split them, since the model can read no longer ones"
    return remedy if inputs.config.spec.data.overlong == "drop" else f"{remedy}, or set spec.data.overlong: drop"


def _too_few(reading: Reading) -> list[Finding]:
    """What only the divided rows tell, and what refuses them whenever it is found."""
    if not reading.counts:
        return []
    few = refusals.too_few(reading.inputs.config.spec.data, reading.counts["train"].rows, reading.invalid.count)
    return [few] if few else []


def _report(reading: Reading, findings: list[Finding]) -> DataReport:
    inputs = reading.inputs
    return reading.examination.report(
        findings,
        form=reading.reader.form,
        evidence=reading.reader.evidence,
        fixes=_completed(reading),
        fixed_files=inputs.mended.written if inputs.mended else (),
    )


def _completed(reading: Reading) -> list[FixRecord]:
    mended, found = reading.inputs.mended, reading.found
    if mended is None:
        return []
    return fixes.completed(
        mended.records,
        invalid=reading.invalid.count,
        truncated=found.truncated,
        lost_tokens=found.lost_tokens,
        rebalanced=found.rebalanced,
    )


def _hidden(text: str) -> list[tuple[int, int]]:
    """Spans of personal data and secrets."""
    return [(span.start, span.end) for span in covered(text)]


def _tell(reading: Reading) -> None:
    invalid = reading.invalid
    for name, line, reason in invalid.first:
        log.warning("%s:%d: %s", name, line, reason)
    if invalid.count > len(invalid.first):
        log.warning("... and %d more rows that cannot be used", invalid.count - len(invalid.first))
