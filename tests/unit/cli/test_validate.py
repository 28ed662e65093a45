"""`ftj validate`: what is looked at, in which words and forms it is told, and what it exits with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.checks import CHECKS
from finetune_cli import survey
from finetune_cli.errors import CliError
from finetune_cli.reach import Reach
from finetune_cli.validate import ValidateOptions, validate

from .conftest import JOB, Ended, Surveyor


def finding(code: str, *rows: int, refuses: bool = False, file: str = "pvc://datasets/bot.jsonl", **more: Any) -> Any:
    return {
        "code": code,
        "severity": CHECKS[code].severity,  # type: ignore[index]
        "count": len(rows) or 7,
        "message": f"{len(rows) or 7} of 100 rows: {CHECKS[code].finds}",  # type: ignore[index]
        "remedy": CHECKS[code].remedy,  # type: ignore[index]
        "refuses": refuses,
        "rows": [{"file": file, "line": line, "text": f"row {line}, 100%: \x1b[31m[bold]"} for line in rows],
        **more,
    }


def report(*findings: Any, **more: Any) -> Any:
    files = [{"name": "pvc://datasets/bot.jsonl", "part": "train", "bytes": 9, "rows": 100}]
    return {"report": {"rows": 100, "validRows": 97, "format": "messages", "files": files, "findings": list(findings), **more}}  # fmt: skip


Told = Callable[..., tuple[int, str]]


@pytest.fixture
def told(here: Path, ended: Ended) -> Told:
    """told(*files, output=, claims=, ...): exit code and standard output."""

    def call(*files: str, output: str = "text", claims: bool = False, **options: Any) -> tuple[int, str]:
        reach = Reach(Path("claims") if claims else None, options.pop("download", False))
        return ended(lambda: validate(files, ValidateOptions(reach, **options), output))

    return call


def write(**files: str) -> None:
    for name, text in files.items():
        Path(name.replace("_", ".")).write_text(text)


@pytest.mark.parametrize(
    ("change", "code", "lines"),
    [
        (("", ""), 0, []),
        (("lora}", "lorra}"), 3, ["✗ job.yaml:6  spec.method.type: 'lorra' is not one of 'lora', 'qlora', 'dora', 'prefix', 'prompt' or 'full'"]),
        (("lora}", "prefix}\n  training: {optimizer: muon}"), 3, ["✗ job.yaml:7  spec: training.optimizer muon and method.type lora or qlora or dora or prefix or prompt cannot go together"]),
        (("lora}", "lora}\n  compute: {nodes: 2, device: cpu}\n  training: {optimizer: adafactor}"), 0, []),
        (("lora}", "qlora}\n  compute: {offload: {parameters: cpu}, nodes: 2, device: cpu}"), 3, ["✗ job.yaml:6  spec: method.type qlora and compute.strategy zero3 or fsdp2 cannot go together"]),
        (("pvc://scratch", "file:///scratch"), 0, ["· job.yaml:9  spec.workspace.uri: file:///scratch works only with `ftj run --local`"]),
        ((JOB, "kind: FineTuneJob\n  x: {{ helm }}"), 3, ["✗ job.yaml:2  not YAML: mapping values are not allowed here"]),
        ((JOB, "kind: Deployment\nx: {{ helm }}"), 0, ["· holds no FineTuneJob"]),
    ],
)  # fmt: skip
def test_manifests(told: Told, change: tuple[str, str], code: int, lines: list[str]) -> None:
    """What the models refuse, and what only shows once absent fields are decided, each at its line."""
    assert change[0] in JOB
    write(job_yaml=JOB.replace(*change))
    got, text = told("job.yaml", data=False)
    assert got == code
    found = [line.strip() for line in text.splitlines() if re.match(r" +[✗!·]", line) and "--no-data" not in line]
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start)


WARNS = report(finding("Pii", 5))
REFUSED = report(
    finding("ExactDuplicates"), finding("InvalidJson", 3, 17, refuses=True), refused="bot.jsonl:3: is not JSON"
)


@pytest.mark.parametrize(
    ("answer", "strict", "code"),
    [
        (report(), True, 0),
        (report(finding("LanguageMix")), True, 0),
        (WARNS, False, 0),
        (WARNS, True, 3),
        (REFUSED, False, 3),
        (report(finding("InvalidJson", 3)), False, 0),
        (report(refused="spec.data: too few", refused_code="TooFewExamples"), False, 3),
        ({"problem": {"code": "NotFound", "message": "spec.data.train[0].uri: it does not exist"}}, False, 3),
        ({"problem": {"code": "MissingCredential", "message": "no token was given"}}, True, 0),
        ({"problem": {"code": "SourceUnreachable", "message": "the store does not answer"}}, True, 0),
    ],
)
def test_exit_code(told: Told, surveyor: Surveyor, answer: Any, strict: bool, code: int) -> None:
    """3 where a job would not start; with --strict where anybody is warned too."""
    surveyor.answers(answer)
    write(job_yaml=JOB)
    assert told("job.yaml", claims=True, strict=strict)[0] == code


def test_the_text(told: Told, surveyor: Surveyor) -> None:
    """The worst first, the first rows as paths that can be opened, the remedy; nothing that a terminal would obey."""
    surveyor.answers(report(finding("LanguageMix"), WARNS["report"]["findings"][0], finding("InvalidJson", *range(3, 9), refuses=True), evidence='by "messages"', seconds=0.25, refused="bot.jsonl:3: is not JSON, and 5 more"))  # fmt: skip
    write(job_yaml=JOB)
    assert told("job.yaml", claims=True) == (
        3,
        """\
job.yaml  100 rows, messages (by "messages"); 0.2 s
  ✗ InvalidJson  6 of 100 rows: a line is not JSON, or not an object with fields
      claims/datasets/bot.jsonl:3  row 3, 100%: �[31m[bold]
      claims/datasets/bot.jsonl:4  row 4, 100%: �[31m[bold]
      claims/datasets/bot.jsonl:5  row 5, 100%: �[31m[bold]
      and 3 more
    → write one JSON object a line, or --fix DropInvalid
  ! Pii  1 of 100 rows: addresses, phone, card or identity numbers
      claims/datasets/bot.jsonl:5  row 5, 100%: �[31m[bold]
    → redact them, or --fix RedactPii
  · LanguageMix  7 of 100 rows: rows in another language than most
    → check that they belong here
  ✗ bot.jsonl:3: is not JSON, and 5 more
  · rows not counted in tokens: spec.model is on claim models, but there is no folder claims/models

Refused: 1 error, 1 warning, 1 note.
""",
    )


def test_too_many_rows_that_cannot_be_used_are_told_once(told: Told, surveyor: Surveyor) -> None:
    """Their findings are what refuses the data; the sentence follows, with this machine's files as paths."""
    name = Path("a.jsonl").absolute().as_uri()
    files = [{"name": name, "part": "train", "bytes": 9, "rows": 100}]
    invalid = finding("InvalidJson", 3, file=name)
    same = finding("ExactDuplicates", 5, file=name)
    same["rows"][0]["text"] = f"is the same as {name}:1"
    surveyor.answers(report(invalid, same, files=files, refused=f"{name}:3: is not JSON", refused_remedy="mend it"))
    write(a_jsonl="{}")
    code, text = told("a.jsonl")
    assert code == 3
    assert "a.jsonl:5  is the same as a.jsonl:1\n" in text
    assert text.endswith("  ✗ a.jsonl:3: is not JSON\n    → mend it\n\nRefused: 1 error, 1 warning.\n")
    assert told("a.jsonl", output="github")[1].count("::error ") == 1


def test_what_is_asked(told: Told, surveyor: Surveyor) -> None:
    """The spec where the model can be seen too, else its data alone; each bare file for itself; fixes beside the originals."""
    surveyor.answers(report())
    write(job_yaml=JOB, a_jsonl="{}", b_jsonl="{}")
    told("job.yaml", claims=True)
    Path("claims/models").mkdir()
    told("job.yaml", "claims/datasets/bot.jsonl", "?.jsonl", claims=True, fixes=("RedactPii",), format="text")
    alone, whole, first, second = surveyor.asked
    assert "spec" not in alone
    assert alone["data"]["train"] == [{"uri": "pvc://datasets/bot.jsonl"}]
    assert alone["claimsRoot"] == str(Path("claims").absolute())
    assert whole["spec"]["data"]["fixes"] == ["RedactPii"]
    assert whole["writeFixed"]
    assert [one["data"]["train"] for one in (first, second)] == [[{"uri": f"file://{Path(name).absolute()}"}] for name in ("a.jsonl", "b.jsonl")]  # fmt: skip
    assert first["data"]["format"] == "text"


@pytest.mark.parametrize(
    ("uri", "claims", "note"),
    [
        ("pvc://datasets/a", False, "data not checked: spec.data.train[0] is on claim datasets: give --claims DIR"),
        ("pvc://other/a", True, "data not checked: spec.data.train[0] is on claim other, but there is no folder claims/other"),
        ("s3://bucket/a", True, "data not checked: spec.data.train[0] is s3://bucket/a: give --download"),
    ],
)  # fmt: skip
def test_what_cannot_be_reached_is_said(told: Told, surveyor: Surveyor, uri: str, claims: bool, note: str) -> None:
    write(job_yaml=JOB.replace("pvc://datasets/bot.jsonl", uri))
    code, text = told("job.yaml", claims=claims)
    assert (code, surveyor.asked) == (0, [])
    assert note in text
    assert text.endswith("1 file passed; not everything was checked.\n")


def test_without_the_data_extra_the_schema_is_checked(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MODULES", ("json", "no_such_module"))
    write(job_yaml=JOB)
    code, text = told("job.yaml", claims=True)
    assert code == 0
    note = "data not checked: this Python has no no_such_module: pip install 'finetune-operator[cli,data]'"
    assert note in text
    with pytest.raises(CliError, match="--fix and --proof read the data, but this Python has no no_such_module"):
        told("job.yaml", proof=True)


def test_a_look_that_dies_is_one_sentence(told: Told, surveyor: Surveyor) -> None:
    """And the other files are told all the same."""
    surveyor.crashes()
    write(a_jsonl="{}", job_yaml=JOB)
    code, text = told("a.jsonl", "job.yaml")
    assert code == 3
    assert "✗ a.jsonl  reading the data ended with exit code 1 and gave no result: MemoryError: �[31mno room\n" in text
    assert text.startswith("job.yaml\n")


@pytest.mark.parametrize("word", ["no.yaml", "*.yaml", "job.toml"])
def test_words_that_name_nothing(told: Told, word: str) -> None:
    write(job_toml="")
    with pytest.raises(CliError, match=r"there is no such file|no file has such a name|neither a manifest"):
        told(word)


def test_json(told: Told, surveyor: Surveyor) -> None:
    surveyor.answers(REFUSED)
    write(jobs_yaml=f"{JOB}---\n{JOB.replace('bot}', 'Bat}')}---\n{JOB.replace('name: bot', 'name: bat')}")
    code, text = told("jobs.yaml", output="json", claims=True)
    body = json.loads(text)
    assert (code, body["passes"]) == (3, False)
    assert [(one.get("job"), one["passes"], [problem["code"] for problem in one["problems"]]) for one in body["files"]] == [
        (None, False, ["InvalidManifest"]),
        ("bot", False, ["InvalidJson", "ExactDuplicates"]),
        ("bat", False, ["InvalidJson", "ExactDuplicates"]),
    ]  # fmt: skip
    assert body["files"][1]["problems"][0]["places"][1]["line"] == 17
    assert body["files"][1]["report"]["refused"] == "bot.jsonl:3: is not JSON"


def test_annotations_of_github(told: Told, surveyor: Surveyor) -> None:
    """Every line is a command to GitHub, so nothing of the data may end one or begin another."""
    odd = finding("InvalidJson", 3, refuses=True) | {"message": "1\n::error::no"}
    odd["rows"][0]["text"] = "first\n::warning::second"
    surveyor.answers(report(odd, finding("Secrets", 4)))
    write(job_yaml=JOB.replace("lora}", "lora, loraa: 1}"))
    write(data_jsonl="{}")
    code, text = told("job.yaml", "data.jsonl", output="github")
    assert code == 3
    assert text.splitlines() == [
        "::error file=job.yaml,line=6,title=InvalidManifest::spec.method.loraa: unknown field; did you mean lora?",
        "::error file=pvc%3A//datasets/bot.jsonl,line=3,title=InvalidJson::first⏎::warning::second; write one JSON object a line",
        "::warning file=pvc%3A//datasets/bot.jsonl,line=4,title=Secrets::1 of 100 rows: keys, tokens and passwords; revoke them, and redact them",
    ]


def test_sarif(told: Told, surveyor: Surveyor) -> None:
    """What the schema of SARIF 2.1.0 requires, and what GitHub needs to show a result at its line."""
    surveyor.answers(REFUSED)
    write(job_yaml=JOB)
    code, text = told("job.yaml", output="sarif", claims=True)
    body = json.loads(text)
    assert (code, body["version"]) == (3, "2.1.0")
    (run,) = body["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert run["tool"]["driver"]["name"]
    assert {rule["id"] for rule in rules} >= set(CHECKS)
    assert all(rule["shortDescription"]["text"] and rule["help"]["text"] for rule in rules)
    assert [invocation["executionSuccessful"] for invocation in run["invocations"]] == [True]
    found = []
    for result in run["results"]:
        assert result["message"]["text"]
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert place["artifactLocation"]["uriBaseId"] == "%SRCROOT%"
        found.append((result["ruleId"], result["level"], place["artifactLocation"]["uri"], place.get("region")))
    assert found == [
        ("InvalidJson", "error", "claims/datasets/bot.jsonl", {"startLine": 3}),
        ("InvalidJson", "error", "claims/datasets/bot.jsonl", {"startLine": 17}),
        ("ExactDuplicates", "warning", "job.yaml", {"startLine": 8}),
    ]


TOKENS = [
    {"id": 1, "text": "<|user|>", "trained": False, "template": True},
    {"id": 2, "text": "Say", "trained": False},
    {"id": 3, "text": " hi\n", "trained": False},
    {"id": 4, "text": "<|bot|>", "trained": False, "template": True},
    {"id": 5, "text": "hi", "trained": True},
    {"id": 6, "text": "<|end|>", "trained": True, "template": True},
]
PROOF = {
    "rows": 100, "trainedTokens": 200, "maskedTokens": 400, "templateTokens": 300, "endOfTurn": "<|end|>",
    "samples": [{"file": "pvc://datasets/bot.jsonl", "line": 4, "length": 9, "tokens": TOKENS}],
}  # fmt: skip


def test_the_proof_survives_plain_text(told: Told, surveyor: Surveyor) -> None:
    surveyor.answers(report(proof=PROOF))
    write(job_yaml=JOB)
    _, text = told("job.yaml", claims=True, proof=True)
    assert text.splitlines()[-8:-1] == [
        "  Proof over 100 rows: 200 tokens trained, 400 masked; the chat template adds 300; <|end|> ends each answer and is trained.",
        "  claims/datasets/bot.jsonl:4  9 tokens, 2 trained of those shown",
        "    template │<|user|>│",
        "    masked   │Say│ hi⏎│",
        "    template │<|bot|>│",
        "    trained  │hi│<|end|>│",
        "    ... 3 tokens more",
    ]
    assert "Proof" not in told("job.yaml", claims=True)[1]


def test_what_was_mended(told: Told, surveyor: Surveyor) -> None:
    fixed = {"original": "a", "originalDigest": "sha256:1", "fixed": str(Path("a.fixed.jsonl").absolute()), "fixedDigest": "sha256:2"}  # fmt: skip
    surveyor.answers(report(fixes=[{"fix": "DropInvalid", "rows": 3, "detail": "3 rows dropped"}], fixed_files=[fixed]))
    write(a_jsonl="{}")
    code, text = told("a.jsonl", fixes=("DropInvalid",))
    assert code == 0
    assert "  ✓ DropInvalid: 3 rows dropped\n  ✓ written: a.fixed.jsonl (sha256:2)\n" in text


def test_other_yaml_of_a_repository_is_passed_over(told: Told) -> None:
    """pre-commit hands over whatever was changed."""
    write(job_yaml=JOB, chart_yaml="a: {{ helm }}")
    write(template_yaml="{{- if .Values.job }}\nkind: FineTuneJob\n{{- end }}")
    code, text = told("template.yaml")
    assert (code, "a Helm template is no manifest yet" in text) == (0, True)
    Path("latin.yaml").write_bytes(b"a: \xe9")
    assert told("chart.yaml", "latin.yaml", "job.yaml", data=False) == (
        0,
        "job.yaml\n  · data not checked: left out by --no-data\n1 file passed; not everything was checked.\n",
    )


def test_a_manifest_that_cannot_be_read_does_not_hide_the_others(told: Told) -> None:
    write(job_yaml=JOB.replace("lora}", "lorra}"), list_yaml="apiVersion: v1\nkind: List\nitems:\n# FineTuneJob")
    Path("bad.yaml").write_bytes(b"kind: FineTuneJob # \xe9")
    Path("deep.yaml").write_text("kind: FineTuneJob\na: " + "[" * 1000)
    code, text = told("bad.yaml", "deep.yaml", "list.yaml", "job.yaml", data=False)
    assert code == 3
    assert "✗ bad.yaml  not a text file in UTF-8\n" in text
    assert "✗ deep.yaml  nested too deeply to be read\n" in text
    assert "✗ job.yaml:6  spec.method.type: 'lorra' is not one of" in text


def test_another_refusal_beside_rows_that_are_allowed_is_told(told: Told, surveyor: Surveyor) -> None:
    surveyor.answers(
        report(finding("InvalidJson", 6), refused="minExamples asks for 10", refused_code="TooFewExamples")
    )
    write(job_yaml=JOB)
    problems = json.loads(told("job.yaml", claims=True, output="json")[1])["files"][0]["problems"]
    assert [(one["code"], one["refuses"]) for one in problems] == [("TooFewExamples", True), ("InvalidJson", False)]


@pytest.mark.parametrize("name", ["a\nb.jsonl", "/".join(["d" * 100] * 6) + "/a.jsonl"])
def test_a_file_with_a_name_that_no_location_can_have(told: Told, surveyor: Surveyor, name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("{}")
    code, text = told(name)
    assert (code, "with such a name cannot be read" in text) == (3, True)
