"""Rows, checked by the trainer's own code where they can be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import SurveyAnswer, SurveyRequest
from finetune_api.data import DataSpec, SplitSpec
from finetune_api.location import Location
from pydantic import ValidationError
from rich.console import Console

from finetune_cli import survey
from finetune_cli.errors import CliError
from finetune_cli.manifest import Manifest, line_of
from finetune_cli.reach import data_of, model_of, shown_path
from finetune_cli.text import advised, visible
from finetune_cli.validate.checked import MORE_RULES, Checked, Place, Problem, of_report

if TYPE_CHECKING:
    from finetune_cli.validate.command import ValidateOptions

SETTINGS = ("MissingCredential", "HubUnreachable", "SourceUnreachable", "Unknown")
"""Problems that are not about the data: it was not read."""


def of_job(found: Checked, job: Manifest, options: ValidateOptions, unable: str | None, console: Console) -> None:
    """The data that a job names. Without its model the rows are checked, but not counted in tokens."""
    spec = job.job.spec
    unable = unable or options.reach.hindrance(data_of(spec))
    if unable is not None:
        found.notes.append(f"data not checked: {unable}")
        return
    found.claims_root = options.reach.claims_root
    data = _with_fixes(spec.data, options)
    if not (hindrance := options.reach.hindrance(model_of(spec))):
        request = _request(options, spec=spec.model_copy(update={"data": data}))
    else:
        found.notes.append(f"rows not counted in tokens: {hindrance}")
        request = _request(options, data=data)
    line = Place(job.source, line_of(job.nodes, ("spec", "data", "train")))
    _ask(found, request, line, found.file, console)


def of_files(found: Checked, options: ValidateOptions, unable: str | None, console: Console) -> None:
    """One file, or one folder, that no job names."""
    if unable is not None:
        found.notes.append(f"data not checked: {unable}")
        return
    try:
        location = Location(uri=f"file://{Path(found.file).absolute()}")
    except ValidationError as error:
        message = f"{visible(found.file)}: a file with such a name cannot be read: {error.errors()[0]['msg']}"
        found.problems.append(Problem("InvalidData", "Error", message, Place(found.file), "rename it", refuses=True))
        return
    whole = SplitSpec(train=1, validation=0, test=0)
    data = _with_fixes(DataSpec(train=[location], split=whole, format=options.format), options)
    _ask(found, _request(options, data=data), Place(found.file), found.file, console)
    known = {f"spec.data.train[0].uri: {location.uri}": found.file, location.uri: found.file}
    for index, problem in enumerate(found.problems):  # no job names it: what was given is how it is called
        for name, here in known.items():
            problem = replace(problem, message=problem.message.replace(name, here))
        found.problems[index] = problem


def files_of(found: Checked) -> list[str]:
    """The data files that were read, as paths of this machine."""
    return [shown_path(file.name, found.claims_root) for file in found.report.files] if found.report else []


def same_file(file: str, others: Iterable[str]) -> bool:
    return any(Path(other).exists() and Path(file).samefile(other) for other in others)


def _with_fixes(data: DataSpec, options: ValidateOptions) -> DataSpec:
    return data.model_copy(update={"fixes": list(options.fixes)}) if options.fixes else data


def _request(options: ValidateOptions, **what: Any) -> SurveyRequest:
    return survey.request(options.reach, write_fixed=bool(options.fixes), **what)


def _ask(found: Checked, request: SurveyRequest, where: Place, what: str, console: Console) -> None:
    with survey.bar(console, what) as seen:
        try:
            answer = survey.survey(request, seen)
        except CliError as error:  # the other files are still checked
            severity, _, remedy = MORE_RULES["LookFailed"]
            found.problems.append(Problem("LookFailed", severity, error.lines[-1], where, remedy, refuses=True))
            return
    _take(found, answer, where)


def _take(found: Checked, answer: SurveyAnswer, where: Place) -> None:
    found.report = answer.report
    if answer.report is not None:
        found.problems += of_report(answer.report, where, found.claims_root)
        found.notes += answer.report.notes
    if (problem := answer.problem) is None:
        return
    if problem.code in SETTINGS:
        found.notes.append(advised(problem.message, problem.remedy))
    elif answer.report is None or answer.report.refused != problem.message:
        found.problems.append(Problem(problem.code, "Error", problem.message, where, problem.remedy, refuses=True))
