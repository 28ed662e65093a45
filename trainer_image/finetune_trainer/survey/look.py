"""The look itself: with a model by way of prepare, without one by reading and checking alone; or at the model alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from finetune_api.contract import DATA_REPORT, Cause, JobRef, RunConfig, SurveyAnswer, SurveyRequest
from finetune_api.data import DataSpec
from finetune_api.effective import resolve
from finetune_api.findings import DataReport, Finding, FixRecord
from finetune_api.location import ClaimLocation, Location
from finetune_api.method import MethodSpec, ModelSpec
from finetune_api.spec import FineTuneJobSpec

from finetune_trainer import fixes, prepare
from finetune_trainer.data.formats import InvalidRow
from finetune_trainer.data.labels import LabelSet
from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.prepare import facts, model, record, refusals
from finetune_trainer.prepare.examine import Examination
from finetune_trainer.prepare.files import locate
from finetune_trainer.prepare.mend import imply, mend
from finetune_trainer.prepare.rows import Invalid, RowReader
from finetune_trainer.prepare.shards import write_shards

Report = Callable[[int, float], None]
_UNTRIED = "The model was not built with spec.method, as prepare builds it, since this Python has no torch."
_NOT_YET = {
    "Truncate": "How many rows are cut shows when the model's tokenizer is there.",
    "Rebalance": "How many rows are copied shows when the data is divided, which takes the model.",
}
_NOWHERE = "/nonexistent"
"""Where claims lie when there are none: every pvc:// location is then said to be missing."""


def look(request: SurveyRequest, report: Report) -> SurveyAnswer:
    """Never raises for what a user can get wrong: `problem` and `report.refused` say it."""
    spec = request.spec or _spec_of(request.data or DataSpec(train=[Location(uri="file:///dev/null")]))
    config = _config(spec, request)
    try:
        config.layout.root.mkdir(parents=True, exist_ok=True)
        if request.spec is None:
            return _data_alone(config, request, report)
        return _whole(config, request, report) if request.rows else _model_alone(config)
    except StageError as error:
        return SurveyAnswer(problem=error.cause)
    except OSError as error:
        return SurveyAnswer(
            problem=Cause(code="Unknown", message=f"{error.filename or request.cache}: {error.strerror}")
        )
    finally:
        shutil.rmtree(config.layout.root.parent, ignore_errors=True)


def _config(spec: FineTuneJobSpec, request: SurveyRequest) -> RunConfig:
    """A run of its own in the cache folder, where downloads stay and nothing else."""
    spec = resolve(spec.model_copy(update={"workspace": ClaimLocation(uri=Path(request.cache).absolute().as_uri())}))
    job = JobRef(name="survey", namespace="local", uid=f"survey-{os.getpid()}", run="look")
    return RunConfig(job=job, stage="prepare", attempt=1, spec=spec, claims_root=request.claims_root or _NOWHERE)


def _spec_of(data: DataSpec) -> FineTuneJobSpec:
    """A spec around data that has none."""
    nowhere = ClaimLocation(uri="file:///nonexistent")
    return FineTuneJobSpec(
        model=ModelSpec(uri=nowhere.uri), method=MethodSpec(type="lora"), data=data, workspace=nowhere, output=nowhere
    )


def _whole(config: RunConfig, request: SurveyRequest, report: Report) -> SurveyAnswer:
    """As prepare does it. Where the model is at fault or out of reach, the data is looked at alone, and why is said."""
    try:
        base = prepare.gather_base(config)
    except StageError as error:
        return _data_alone(config, request, report, problem=error.cause)
    inputs = replace(prepare.gather(config, base), stays=False)
    inputs = inputs.with_mended(mend(config, inputs.files, beside=request.write_fixed))
    found: DataReport | None = None
    try:
        done = write_shards(inputs, report, lambda _: None)
    except BadInput as error:
        path = config.layout.root / DATA_REPORT
        if path.is_file():
            found = DataReport.model_validate_json(path.read_bytes())
        return SurveyAnswer(report=found, problem=None if found else error.cause)
    found = DataReport.model_validate_json((config.layout.root / DATA_REPORT).read_bytes())
    if model.is_probed(inputs.model, config.spec, inputs.adapter) and not model.has_torch():
        found.notes.append(_UNTRIED)
    return SurveyAnswer(report=found, facts=done.facts, decided=done.decided, plan=done.plan)


def _model_alone(config: RunConfig) -> SurveyAnswer:
    spec = config.spec
    found = prepare.gather_base(config).model
    task = model.task_of(found, spec, spec.data.format)
    return SurveyAnswer(model=facts.of_model(found, spec.model.uri), task=task)


def _data_alone(
    config: RunConfig, request: SurveyRequest, report: Report, *, problem: Cause | None = None
) -> SurveyAnswer:
    """Every row is read and checked; nothing is tokenised, so that lengths and what is learnt stay unknown."""
    imply(config)
    originals = locate(config)
    mended = mend(config, originals, beside=request.write_fixed)
    data = config.spec.data
    files = mended.files if mended else originals
    examination = Examination(data, files)
    invalid = Invalid(None, files, examination)
    total = sum(file.path.stat().st_size for file in files) or 1
    done = 0

    def advance(_: int, count: int) -> None:
        nonlocal done
        done += count
        report(reader.rows, min(100.0, 100 * done / total))

    reader, labels = RowReader(data.format, invalid, advance), LabelSet()
    refused: Cause | None = None
    try:
        for index, file in enumerate(files):
            for batch in reader.batches(index, file, 512):
                for row in batch:
                    if row.example.label is None:
                        continue
                    try:
                        labels.add(row.example.label, learn=file.part == "train")
                    except InvalidRow as error:
                        invalid.add(index, row.source[1], error, was_read=True)
    except BadInput as error:
        refused = error.cause
    findings = examination.findings({})
    found = examination.report(
        findings,
        form=reader.form,
        evidence=reader.evidence,
        fixes=_recorded(mended.records, invalid) if mended else (),
        fixed_files=mended.written if mended else (),
    )
    alike = refusals.nothing_to_tell_apart(labels, files) if reader.form == "classification" else None
    refused = refused or _refusal(invalid, reader.rows, data, findings, examination.valid("train"), alike)
    if refused is not None:
        found = record.refused(found, refused)
    return SurveyAnswer(report=found, problem=problem)


def _recorded(records: Sequence[FixRecord], invalid: Invalid) -> list[FixRecord]:
    """Of fixes that need tokens or the split nobody can say yet what they do."""
    return [
        record.model_copy(update={"detail": _NOT_YET[record.fix]}) if record.fix in _NOT_YET else record
        for record in fixes.completed(records, invalid=invalid.count)
    ]


def _refusal(
    invalid: Invalid, rows: int, data: DataSpec, findings: list[Finding], train: int, alike: BadInput | None
) -> Cause | None:
    """`train`: usable rows in the files of data.train. The split can only leave fewer. `alike`: labels of one kind."""
    refusal = refusals.too_many_invalid(invalid, rows, data) or refusals.nothing_usable(invalid, rows) or alike
    if refusal is not None:
        return refusal.cause
    try:
        refusals.by_findings(findings)
    except BadInput as error:
        return error.cause
    few = refusals.too_few(data, train, invalid.count)
    return Cause(code="InvalidData", message=few.message, remedy=few.remedy) if few else None
