"""`ftj plan`: where its facts come from, what it shows, and what it exits with. The arithmetic has tests of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.data import DataSpec
from finetune_api.planner.gpus import GPUS
from finetune_cli import survey
from finetune_cli.errors import CliError
from finetune_cli.plan import Guesses, PlanOptions, plan, prices_of
from finetune_cli.plan.facts import guessed
from finetune_cli.reach import Reach
from hypothesis import given
from hypothesis import strategies as st

from .conftest import JOB as MANIFEST
from .conftest import Ended, Surveyor

JOB = MANIFEST + "  compute: {gpusPerNode: 1, gpuType: h100}\n"
CONFIG = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
SMALL = {"modelType": "llama", "hiddenSize": 64, "layers": 2, "heads": 4, "kvHeads": 4, "headDim": 16, "intermediateSize": 128, "vocabSize": 500, "parameters": 150_000}  # fmt: skip
DATA = {"rows": 800, "validationRows": 100, "testRows": 100, "tokens": 80_000, "longest": 300}
WHOLE = {"facts": {"model": SMALL, "data": DATA}, "decided": {"training": {"globalBatchSize": 24}}, "plan": {"steps": 77, "tokens": 123_456, "epochs": 2.31}}  # fmt: skip

Told = Callable[..., tuple[int, str]]


@pytest.fixture
def told(here: Path, ended: Ended) -> Told:
    """told(job, output=, claims=, rows=, ...): exit code and standard output, in a folder with claims and a config.json."""
    model = here / "claims" / "models" / "base"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(CONFIG))

    def call(job: str = JOB, output: str = "json", claims: bool = False, config: bool = False, **options: Any) -> tuple[int, str]:  # fmt: skip
        Path("job.yaml").write_text(job)
        guesses = Guesses(
            Path("claims/models/base/config.json") if config else None,
            options.pop("rows", None),
            options.pop("tokens_per_row", None),
        )
        reach = Reach(Path("claims") if claims else None)
        return ended(lambda: plan("job.yaml", PlanOptions(reach, guesses, **options), output))

    return call


def facts_of(answer: tuple[int, str]) -> Any:
    return json.loads(answer[1])["facts"]


def test_what_could_be_read_is_what_training_will_do(told: Told, surveyor: Surveyor) -> None:
    surveyor.answers(WHOLE)
    code, text = told(claims=True)
    body = json.loads(text)
    assert code == 0
    assert (body["plan"]["steps"], body["plan"]["tokens"]) == (77, 123_456)
    assert body["effective"]["training"]["globalBatchSize"] == 24
    assert (body["facts"]["model"]["hiddenSize"], body["notes"]) == (64, [])
    assert surveyor.asked[0]["spec"]["model"]["uri"] == "pvc://models/base"


def test_where_only_the_model_can_be_read_rows_are_guessed(told: Told, surveyor: Surveyor) -> None:
    surveyor.answers({"model": WHOLE["facts"]["model"], "task": "causal-lm"})
    facts = facts_of(told(claims=True, rows=1000, tokens_per_row=50))
    assert (facts["model"]["hiddenSize"], facts["data"]["rows"]) == (64, 800)
    (asked,) = surveyor.asked
    assert asked["rows"] is False


def test_where_only_the_data_can_be_read_tokens_are_guessed(told: Told, surveyor: Surveyor) -> None:
    files = [{"name": "a", "part": "train", "bytes": 400_000, "rows": 1000}]
    surveyor.answers({"report": {"rows": 1000, "validRows": 990, "files": files}})
    answer = told(claims=True, config=True)
    facts = facts_of(answer)
    assert (facts["model"]["hiddenSize"], facts["data"]["rows"], facts["data"]["lengths"][0]) == (4096, 792, [100, 791])
    assert json.loads(answer[1])["notes"] == ["without the model's tokenizer, 100 tokens a row are assumed"]
    files += [{"name": "b", "part": "validation", "bytes": 9_000_000, "rows": 5000}]
    surveyor.answers({"report": {"rows": 6000, "validRows": 6000, "files": files}})
    job = JOB.replace("  workspace:", "    validation: [{uri: pvc://datasets/bot.jsonl}]\n  workspace:")
    data = facts_of(told(job, claims=True, config=True))["data"]
    assert (data["rows"], data["validationRows"], data["testRows"], data["lengths"][0]) == (900, 5000, 100, [100, 899])


def test_without_the_data_extra_a_model_on_disk_is_enough(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MODULES", ("no_such_module",))
    facts = facts_of(told(claims=True, rows=100))
    assert (facts["model"]["hiddenSize"], facts["data"]["rows"]) == (4096, 80)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "the model cannot be seen from here: spec.model is on claim models: give --claims DIR, a folder with one folder for each claim, or name a config.json of its kind with --model-config"),
        ({"config": True}, "the data cannot be seen from here: spec.data.train[0] is on claim datasets: give --claims DIR, a folder with one folder for each claim, or guess with --rows and --tokens-per-row"),
        ({"config": True, "rows": 9, "gpu_type": "h1000"}, "--gpu-type: 'h1000' is not known; did you mean h100? ftj plan --list-gpus"),
        ({"config": True, "rows": 9, "compare": "gpu", "prices": {"x": 1.0}}, "--prices: 'x' is no gpu: there are "),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(told: Told, surveyor: Surveyor, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CliError) as caught:
        told(**options)
    assert caught.value.lines[0].startswith(sentence)


@pytest.mark.parametrize(
    "answer",
    [
        {"problem": {"code": "NotFound", "message": "spec.data.train[0].uri: it is not there", "remedy": "x"}},
        {"report": {"refused": "spec.data.train[0].uri: it is not there", "refusedRemedy": "x"}},
    ],
)
def test_data_that_a_job_would_fail_on_has_no_plan(told: Told, surveyor: Surveyor, answer: Any) -> None:
    surveyor.answers(answer)
    with pytest.raises(CliError, match=r"spec.data.train\[0\].uri: it is not there; x"):
        told(claims=True)


@pytest.mark.parametrize("config", ["{}", "[]", "no JSON", '{"model_type": "llama"}'])
def test_a_config_that_is_none(told: Told, config: str) -> None:
    Path("claims/models/base/config.json").write_text(config)
    with pytest.raises(CliError, match=r"config.json: not a model's config.json: "):
        told(config=True, rows=10)


FULL = JOB.replace("lora", "full").replace("method", "training: {optimizer: adamw}\n  method")


@pytest.mark.parametrize(
    ("job", "options", "code", "problem"),
    [
        (JOB, {}, 0, None),
        (JOB, {"gpu_type": "a10"}, 0, None),
        (FULL.replace("h100", "t4"), {}, 3, r"The job does not fit: .* a GPU, of 14 GiB that can be used"),
        (JOB + "  budget: {maxGpuHours: 0.001}\n", {}, 3, r"spec.budget.maxGpuHours: the plan takes .* GPU hours, and 0.001 is the limit"),
        (JOB + "  budget: {maxCost: 1}\n", {}, 0, None),
        (JOB + "  budget: {maxCost: 1}\n", {"gpu_hour_price": 1000.0}, 3, r"spec.budget.maxCost: the plan costs .*, and 1.00 is the limit"),
        (JOB + "  budget: {maxCost: 1}\n", {"prices": {"h100": 1000.0}}, 3, r"spec.budget.maxCost"),
    ],
)  # fmt: skip
def test_exit_code_and_why(told: Told, job: str, options: Any, code: int, problem: str | None) -> None:
    got, text = told(job, config=True, rows=2000, tokens_per_row=300, **options)
    problems = json.loads(text)["problems"]
    assert got == code
    assert len(problems) == (code == 3)
    priced = "maxCost" not in job or options
    assert any("spec.budget.maxCost: the cost of" in note for note in json.loads(text)["notes"]) == (not priced)
    for form in ("text", "markdown") if problem else ():
        assert re.match(problem or "", problems[0])
        got, text = told(job, config=True, rows=2000, tokens_per_row=300, output=form, **options)
        assert got == 3
        assert problems[0].replace("spec.", "")[:20] in text


def test_the_text(told: Told) -> None:
    code, text = told(JOB + "  budget: {maxDuration: 99h}\n", "text", config=True, rows=2000, tokens_per_row=300)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    assert (code, lines[0]) == (0, "bot: lora on pvc://models/base, 1 pod with 1 GPU each")
    assert lines[-2:] == [
        "· the data was not read: 2,000 rows of 300 tokens are assumed",
        "It fits and is within spec.budget.",
    ]
    for start in ("Plan ", "Steps ", "Parameters ", "Host memory ", "Memory ", "Time ", "GPU hours ", " memory of a GPU", " weights ", " training.globalBatchSize "):  # fmt: skip
        assert any(line.startswith(start) for line in lines), start


def test_markdown_of_others_stays_text(told: Told) -> None:
    """Names of a manifest reach a pull request: no mark-up, no mention, no broken table."""
    job = JOB.replace("pvc://models/base", "pvc://models/a|b`<b>@team*")
    code, text = told(job, "markdown", config=True, rows=100)
    assert code == 0
    assert text.startswith("### Plan of bot: lora on pvc://models/a|b\\`\\<b\\>@\u200bteam\\*, 1 pod with 1 GPU each\n")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| part |  |" in rows
    assert text.count("<details>") == text.count("</details>") == 2


@pytest.mark.parametrize(
    ("by", "options", "names"),
    [
        ("gpu", {"prices": {"h100": 2.5, "t4": 0.3}}, ["h100", "t4"]),
        ("strategy", {}, ["ddp", "zero1", "zero2", "zero3", "fsdp2"]),
        ("method", {}, ["lora", "qlora", "dora", "prefix", "prompt", "full"]),
    ],
)
def test_side_by_side(told: Told, by: str, options: Any, names: list[str]) -> None:
    """The same rows in every form; a refused one says why."""
    whole = {"config": True, "rows": 2000, "compare": by, **options}
    job = JOB.replace("lora", "qlora").replace("gpusPerNode: 1", "gpusPerNode: 2")
    rows = json.loads(told(job, **whole)[1])["rows"]
    assert [row["name"] for row in rows] == names
    if by == "strategy":
        assert [row["name"] for row in rows if "cannot be sharded" in row.get("refused", "")] == ["zero3", "fsdp2"]
    if by == "gpu":
        assert [row["price"] for row in rows] == [2.5, 0.3]
    for form in ("text", "markdown"):
        code, text = told(job, form, **whole)
        assert code == 0
        found = re.findall(r"^\|? ?(\w[\w-]*) +\|? *(?:yes|no|refused|\?)", text, re.MULTILINE)
        assert found == names


def test_a_method_that_the_rest_of_the_job_rules_out_is_a_row(told: Told) -> None:
    job = JOB.replace("  data:\n", "  data:\n    packing: true\n")
    rows = json.loads(told(job, config=True, rows=100, compare="method")[1])["rows"]
    refused = {row["name"]: row["refused"] for row in rows if "refused" in row}
    assert refused.keys() == {"prefix", "prompt"}
    assert all("data.packing true cannot go together: virtual tokens" in why for why in refused.values())


@pytest.mark.parametrize(
    ("text", "prices"),
    [
        ("", {}),
        ("h100=2.5, l40s=.9", {"h100": 2.5, "l40s": 0.9}),
        ("h100", None),
        ("h100=x", None),
        ("h100=-3", None),
        ("h100=nan", None),
    ],
)
def test_prices(text: str, prices: dict[str, float] | None) -> None:
    if prices is None:
        with pytest.raises(CliError, match=r"--prices: .* is no price"):
            prices_of(text)
    else:
        assert prices_of(text) == prices


def test_every_gpu_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from finetune_cli.plan import list_gpus

    list_gpus("json")
    assert [gpu["gpuType"] for gpu in json.loads(capsys.readouterr().out)] == list(GPUS)
    list_gpus("text")
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in GPUS)


@given(
    rows=st.integers(1, 10**7),
    per_row=st.integers(1, 10**5),
    longest=st.none() | st.integers(8, 2**16),
    named=st.booleans(),
)
def test_guessed_facts_hold_together(rows: int, per_row: int, longest: int | None, named: bool) -> None:
    uri = [{"uri": "pvc://a/b"}]
    data = DataSpec.model_validate({"train": uri, **({"test": uri, "validation": uri} if named else {}), "maxLength": longest})  # fmt: skip
    facts = guessed(data, rows, per_row)
    assert sum(count for _, count in facts.lengths) == facts.rows
    assert facts.lengths == sorted(facts.lengths)
    assert facts.lengths[-1][0] == facts.longest
    assert longest is None or facts.longest <= longest
    assert facts.tokens == sum(length * count for length, count in facts.lengths)
    assert facts.rows == rows if named else facts.rows + facts.validation_rows + facts.test_rows in (rows, rows + 1)
