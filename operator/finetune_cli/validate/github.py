"""Annotations of GitHub Actions: lines on standard output that it shows beside the changed lines of a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune_api.checks import Severity

from finetune_cli.text import advised, visible
from finetune_cli.validate.checked import Checked, Problem

LEVELS: dict[Severity, str] = {"Error": "error", "Warning": "warning", "Info": "notice"}


def lines(checked: Iterable[Checked]) -> Iterator[str]:
    """One line for each place, the worst first: GitHub shows ten of a kind in a step."""
    for one in checked:
        for problem in one.problems:
            for place in problem.places:
                at = [f"file={_property(place.file)}", *([f"line={place.line}"] if place.line else [])]
                title = f"title={_property(problem.code)}"
                yield f"::{LEVELS[problem.severity]} {','.join([*at, title])}::{_data(sentence(problem, place.text))}"
        for note in one.notes:
            yield f"::notice file={_property(one.file)},title=NotChecked::{_data(note)}"


def sentence(problem: Problem, here: str | None) -> str:
    """What is wrong just here, if that is known, else with all; and what to do."""
    text = visible(here) if here and problem.severity == "Error" else problem.message
    return advised(text, problem.remedy)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
