"""Every check: rows that fail it, with the line that is told, among rows that pass all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from finetune_api.checks import CHECKS, CheckCode
from finetune_api.findings import ROWS_SHOWN

from tests.unit.checks.conftest import Lines, pairs, prose, talks

BY_PREPARE = {
    "TooFewExamples",
    "TooLong",
    "SpecialTokens",
    "ConsecutiveAnswers",
    "TemplateMismatch",
    "OmittedTurns",
    "UntrainedPrompt",
    "UnwritableAnswer",
    "UnknownCharacters",
}
"""Told by prepare itself, which splits and encodes the rows: see tests/unit/data."""


@dataclass(frozen=True)
class Case:
    """`rows` fail the check, first at `line` of `file`, and only it and those in `too`."""

    rows: Lines
    line: int
    validation: Lines = ()
    file: str = "train.jsonl"
    too: tuple[CheckCode, ...] = ()
    says: str = ""
    """A part of the message."""
    spec: dict[str, Any] = field(default_factory=dict)


def at(line: int, row: Any, rows: Lines | None = None) -> list[Any]:
    """The rows with one more at this line."""
    rows = list(pairs(80) if rows is None else rows)
    return [*rows[: line - 1], row, *rows[line - 1 :]]


def answer(text: str) -> dict[str, Any]:
    return {"prompt": prose(12, text), "completion": text}


def edited(row: dict[str, Any]) -> dict[str, Any]:
    """One word changed."""
    return {**row, "completion": row["completion"].replace(" ", " indeed ", 1)}


def labelled(labels: list[str]) -> list[dict[str, Any]]:
    return [{"text": prose(15, number), "label": label} for number, label in enumerate(labels)]


def about(word: str, count: int, other: str = "") -> list[dict[str, Any]]:
    """Rows with a word, and rows with it and another."""
    return [
        {"prompt": f"{prose(8, (word, other, n))} {word} {other}", "completion": prose(18, (n, word, other))}
        for n in range(count)
    ]


SAME = pairs(3)
GERMAN = "Der alte Kapitän geht jeden Morgen langsam über die Brücke zum Markt und kauft dort frische Äpfel für seine Familie."
LOOP = "The captain opens the window and " + "then he looks at the sea again and " * 40
TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"

CASES: dict[CheckCode, Case] = {
    "InvalidJson": Case(at(7, b'{"prompt": "cut'), 7),
    "InvalidEncoding": Case(at(7, b'{"prompt": "\xff\xfe", "completion": "b"}'), 7),
    "UnknownFormat": Case(at(1, {"name": "fox", "colour": "red"}), 1),
    "MixedFormats": Case(at(7, talks(1)[0]), 7),
    "PreferencePairs": Case(at(1, {"prompt": "Who?", "chosen": "I", "rejected": "You"}), 1),
    "MissingField": Case(at(7, {"prompt": "Who?"}), 7),
    "EmptyField": Case(at(7, {"prompt": "Who?", "completion": "  "}), 7),
    "WrongType": Case(at(7, {"prompt": "Who?", "completion": 7}), 7),
    "InvalidRole": Case(at(7, {"messages": [{"role": "ghost", "content": "Boo"}]}, talks(80)), 7),
    "InvalidTurnOrder": Case(
        at(7, {"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]}, talks(80)), 7
    ),
    "NothingToTrain": Case(at(7, {"messages": [{"role": "user", "content": "Hi"}]}, talks(80)), 7),
    "RowTooLarge": Case(at(7, b'{"prompt": "' + b"a" * (64 << 20) + b'"}'), 7),
    "ExactDuplicates": Case(at(40, pairs(80)[4]), 40, says="1 of 81 rows (1.2%) repeats an earlier one"),
    "NearDuplicates": Case(at(40, edited(pairs(80)[4])), 40, too=("ConflictingAnswers",)),
    "ConflictingAnswers": Case(at(40, {**pairs(80)[4], "completion": prose(18, "other")}), 40),
    "Leakage": Case(pairs(80), 3, [*pairs(2, "held"), pairs(80)[9]], "validation.jsonl"),
    "NearLeakage": Case(pairs(80), 3, [*pairs(2, "held"), edited(pairs(80)[9])], "validation.jsonl"),
    "LowDiversity": Case(
        [{"prompt": f"{n} {prose(40, n % 4)}", "completion": prose(40, n % 4)} for n in range(200)],
        0,
        too=("NearDuplicates",),
    ),
    "DominantTemplate": Case([*pairs(20), *({**row, "prompt": f"Write a poem about {row['prompt']}"} for row in pairs(60, 1))], 21),
    "DominantLabel": Case(labelled(["no"] * 5 + ["yes"] * 75), 6),
    "LabelImbalance": Case(labelled(["a"] * 50 + ["b"] * 50 + ["c"]), 101, says="'c' (1)"),
    "LanguageMix": Case(at(40, answer(GERMAN), at(20, answer(GERMAN.replace("alte", "junge")))), 20, says="but also de"),
    "Boilerplate": Case([*pairs(50), *({**row, "completion": f"{row['completion']} Let me know if I can help!"} for row in pairs(30, 1))], 51),
    "Refusals": Case(at(40, answer("I'm sorry, but I can't help with that.")), 40),
    "Repetition": Case(at(40, answer(LOOP)), 40),
    "Pii": Case(at(40, answer("Write to jane.doe@acme-harbour.io before noon.")), 40, says="e-mail addresses 1"),
    "Secrets": Case(at(40, answer(f"Export it as {TOKEN} and go on.")), 40, says="GitHub tokens 1"),
    "ToxicTerms": Case(at(40, answer("“You are an ‘ASSHOLE’,” said the captain.")), 40),
    "DemographicImbalance": Case([*about("woman", 8), *about("man", 120)], 9, says="women in 8"),
    "StereotypeAssociation": Case(
        [*about("woman", 60), *about("man", 90), *about("woman", 40, "nurse"), *about("man", 4, "nurse")], 151, says="'nurse'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", CHECKS)
def test_a_check_names_the_line(code: CheckCode, examine) -> None:
    if code in BY_PREPARE:
        assert code not in CASES
        return
    case = CASES[code]
    found = {finding.code: finding for finding in examine(case.rows, case.validation, **case.spec)}
    assert found.keys() == {code, *case.too}
    finding = found[code]
    assert case.says in finding.message
    assert (finding.severity, finding.remedy) == (CHECKS[code].severity, CHECKS[code].remedy)
    assert len(finding.rows) <= ROWS_SHOWN
    assert finding.count >= len(finding.rows)
    if case.line:
        assert finding.where == f"{case.file}:{case.line}"


@pytest.mark.parametrize(
    ("rows", "validation"),
    [
        (pairs(300), pairs(30, "held")),
        (talks(300), ()),
        ([{"text": row["completion"]} for row in pairs(300)], ()),
        (labelled(["yes", "no", "perhaps"] * 100), labelled(["yes"] * 3 + ["no"] * 3)[:0]),
        ([*about("woman", 60, "nurse"), *about("man", 60, "nurse")], ()),
        (pairs(1), ()),
    ],
    ids=["pairs", "messages", "text", "classification", "balanced", "one row"],
)
def test_clean_rows_pass_all_checks(rows: Lines, validation: Lines, examine) -> None:
    assert examine(rows, validation) == []


def test_what_an_assistant_thinks_is_searched_too(examine) -> None:
    thought = {"role": "assistant", "content": "Yes.", "reasoning": "They wrote from jane.doe@acme-harbour.io."}
    rows = at(40, {"messages": [{"role": "user", "content": "Who?"}, thought]}, talks(80))
    assert [finding.where for finding in examine(rows) if finding.code == "Pii"] == ["train.jsonl:40"]


REFUSALS = {
    # name: (spec, whether exact duplicates of 1 in 81 rows refuse the data, and are told at all)
    "told": ({}, False, True),
    "fail": ({"fail": ["ExactDuplicates"]}, True, True),
    "ignored": ({"ignore": ["ExactDuplicates"]}, False, False),
    "more than allowed": ({"exactDuplicates": 0.01}, True, True),
    "as many as allowed": ({"exactDuplicates": 0.0124}, False, True),
    "others are asked for": ({"fail": ["Pii"], "nearDuplicates": 0}, False, True),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_refuses(name: str, examine) -> None:
    spec, refuses, told = REFUSALS[name]
    found = examine(CASES["ExactDuplicates"].rows, **spec)
    assert [(finding.refuses, finding.severity) for finding in found] == (
        [(refuses, "Error" if refuses else "Warning")] if told else []
    )


@pytest.mark.parametrize("code", ["Leakage", "NearLeakage"])
def test_leaks_are_measured_on_held_out_rows(code: CheckCode, examine) -> None:
    case = CASES[code]
    (finding,) = examine(case.rows, case.validation, leakage=0.3)
    assert (finding.count, finding.fraction, finding.refuses) == (1, 1 / 3, True)
    assert not any(finding.refuses for finding in examine(case.rows, case.validation, leakage=0.4))


def test_rows_are_counted_beyond_those_that_are_shown(examine) -> None:
    (finding,) = examine([*pairs(100), *pairs(100)])
    assert (finding.count, finding.fraction, len(finding.rows)) == (100, 0.5, ROWS_SHOWN)
    assert [(row.line, row.text) for row in finding.rows[:2]] == [
        (101, "is the same as train.jsonl:1"),
        (102, "is the same as train.jsonl:2"),
    ]
