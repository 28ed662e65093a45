"""SARIF 2.1.0 (https://docs.oasis-open.org/sarif/sarif/v2.1.0/): what code hosts show as alerts of a scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from finetune_api.checks import CHECKS, Severity

from finetune_cli.validate.checked import MORE_RULES, Checked, Place, Problem
from finetune_cli.validate.github import sentence

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS: dict[Severity, str] = {"Error": "error", "Warning": "warning", "Info": "note"}
Json = dict[str, Any]


def sarif(checked: Sequence[Checked]) -> Json:
    """One run with one result for each place that has a problem."""
    rules = _rules(problem for one in checked for problem in one.problems)
    index = {rule["id"]: position for position, rule in enumerate(rules)}
    driver = {"name": "ftj validate", "version": version("finetune-operator"), "rules": rules}
    results = [
        _result(problem, place, index[problem.code])
        for one in checked
        for problem in one.problems
        for place in problem.places
    ]
    notes = [{"level": "note", "message": {"text": f"{one.file}: {note}"}} for one in checked for note in one.notes]
    invocation = {"executionSuccessful": True, "toolExecutionNotifications": notes}
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rules(problems: Iterable[Problem]) -> list[Json]:
    """Every check, so that a host knows what was looked for; and codes of the trainer's that are no check."""
    known = {check.code: (check.severity, check.finds, check.remedy) for check in CHECKS.values()} | MORE_RULES
    for problem in problems:
        known.setdefault(problem.code, (problem.severity, problem.code, problem.remedy or "see the message"))
    return [
        {
            "id": code,
            "shortDescription": {"text": finds},
            "help": {"text": remedy},
            "defaultConfiguration": {"level": LEVELS[severity]},
        }
        for code, (severity, finds, remedy) in known.items()
    ]


def _result(problem: Problem, place: Place, index: int) -> Json:
    physical: Json = {"artifactLocation": _artifact(place.file)}
    if place.line:
        physical["region"] = {"startLine": place.line}
    return {
        "ruleId": problem.code,
        "ruleIndex": index,
        "level": LEVELS[problem.severity],
        "message": {"text": sentence(problem, place.text)},
        "locations": [{"physicalLocation": physical}],
    }


def _artifact(file: str) -> Json:
    """Below the folder in which ftj runs, which in CI is the repository, else absolute."""
    if "://" in file:
        return {"uri": quote(file, safe=":/@%")}
    path = Path(file)
    if path.is_absolute():
        return {"uri": path.as_uri()}
    return {"uri": quote(path.as_posix()), "uriBaseId": "%SRCROOT%"}
