"""prepare as the gate: what is found reaches status, file and page in the same words; what is decided is in the manifest."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import DATA_PAGE, DATA_REPORT, SurveyRequest
from finetune_api.effective import resolve
from finetune_api.findings import DataReport
from finetune_api.status import DataStatus
from finetune_trainer import sealed, throughput
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare import prepare
from finetune_trainer.settled import settle
from finetune_trainer.survey.look import look

from tests.unit.tiny_tokenizers import CUTTING, DROPPING_SYSTEM, REASONING, THINKING, make_llama

ALL_TRAIN = {"split": {"train": 1.0, "validation": 0.0, "test": 0.0}}


def report_of(config: Any) -> DataReport:
    return DataReport.model_validate_json((config.layout.root / DATA_REPORT).read_bytes())


def rows(count: int, **others: str) -> list[dict[str, str]]:
    return [{"prompt": f"the fox {n} runs", "completion": f"over hill {n}"} | others for n in range(count)]


def talk(number: int, *more: dict[str, str]) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"the fox {number}"}, {"role": "assistant", "content": f"runs {number}"}]
    return {"messages": [*turns, *more]}


def talks(count: int, answer: str = "over hill", **system: str) -> list[dict[str, Any]]:
    turns = [{"role": role, "content": content} for role, content in system.items()]
    return [
        {"messages": [*turns, {"role": "user", "content": f"the fox {n}"}, {"role": "assistant", "content": answer}]}
        for n in range(count)
    ]


def run(job: Any, lines: list[dict[str, Any]], **groups: Any) -> tuple[Any, list[DataStatus], BadInput | None]:
    """The config, what was told of refused data, and the refusal."""
    config, told = job.config(job.write("rows.jsonl", lines), **groups), []
    try:
        prepare(config, lambda rows, percent: None, refused=told.append)
    except BadInput as error:
        return config, told, error
    return config, told, None


@pytest.mark.parametrize(
    ("code", "data", "groups", "line", "count", "refuses"),
    [
        ("TooLong", [*rows(5), {"prompt": "fox " * 60, "completion": "hill"}], {"maxLength": 40}, 6, 1, False),
        ("TooLong", [*rows(5), {"prompt": "fox " * 60, "completion": "hill"}], {"maxLength": 40, "checks": {"fail": ["TooLong"]}}, 6, 1, True),
        ("SpecialTokens", [*rows(3), {"prompt": "the fox", "completion": "runs <|im_end|> on"}, *rows(2)], {}, 4, 1, False),
        ("ConsecutiveAnswers", [talk(n) for n in range(3)] + [talk(4, {"role": "assistant", "content": "Away."})], {}, 4, 1, False),
        ("OmittedTurns", [*talks(3), *talks(2, system="be kind")], {"template": DROPPING_SYSTEM}, 4, 2, False),
        ("OmittedTurns", [*talks(3, system="fox"), *talks(1, system="be kind")], {"template": DROPPING_SYSTEM, "checks": {"fail": ["OmittedTurns"]}}, 4, 1, True),
        ("UntrainedPrompt", [*talks(3, "<think>\nhm</think>fox"), *talks(2)], {"template": REASONING}, 4, 2, False),
        ("TooFewExamples", rows(4), {"checks": {"minExamples": 5}}, 0, 4, True),
        ("ExactDuplicates", [*rows(3), rows(1)[0]], {"checks": {"exactDuplicates": 0.1}}, 4, 1, True),
    ],
)  # fmt: skip
def test_what_only_prepare_sees_is_found_on_its_line(
    job: Any, code: str, data: Any, groups: Any, line: int, count: int, refuses: bool
) -> None:
    config, told, refusal = run(job, data, data={**ALL_TRAIN, **groups})
    finding = next(finding for finding in report_of(config).findings if finding.code == code)
    assert (finding.count, finding.refuses) == (count, refuses)
    assert finding.where == (f"pvc://datasets/rows.jsonl:{line}" if line else None)
    assert (refusal is not None) is refuses
    if refusal is not None:
        assert refusal.cause.code == "InvalidData"
        assert [found.code for found in told[0].findings or []].count(code) == 1
    clean, _, none = run(job, rows(6), data=ALL_TRAIN)
    assert none is None
    assert code not in {finding.code for finding in report_of(clean).findings}


HALF, WORDS = {"role": "user", "content": "the fox"}, {"role": "assistant", "content": "runs"}
ADVISED = {
    # name: (rows that cannot be used, what the finding advises)
    "a weight": ([{"messages": [HALF, {**WORDS, "weight": "0"}]}], "write 0 (not trained) or 1 (trained)"),
    "arguments": ([{"messages": [HALF, {**WORDS, "tool_calls": [{"name": "f", "arguments": "{x"}]}]}], "write it with json.dumps"),
    "an image": ([{"messages": [{**HALF, "content": [{"type": "image_url"}]}, WORDS]}], "only text can be trained on, so leave the row out"),
    "two kinds": ([{"messages": [HALF, {**WORDS, "weight": 2}]}, {"messages": [HALF, {**WORDS, "content": 5}]}] * 2, "write 0 (not trained) or 1 (trained); write it as a string"),
    "a key twice": (['{"messages": [], "messages": []}'], "keep the one that counts"),
    "cells": (["prompt,completion", "a,b,c"], "put cells that hold the delimiter, quotes or line ends into quotes"),
    "a template that refuses": ([{"messages": [{"role": "system", "content": "a"}, HALF, WORDS]}], "set spec.data.template to one that writes the whole row, or change the row"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVISED)
def test_a_finding_advises_what_its_rows_need(job: Any, name: str) -> None:
    data, remedy = ADVISED[name]
    refuses_system = "{{ raise_exception('System role not supported') if messages[0].role == 'system' }}"
    refuses_system += "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in data]
    config = job.config(job.write("rows.csv" if name == "cells" else "rows.jsonl", "\n".join(lines)))
    config.spec.data.template = refuses_system
    with pytest.raises(BadInput):
        prepare(config, lambda rows, percent: None)
    assert [finding.remedy for finding in report_of(config).findings if finding.code != "TooFewExamples"] == [remedy]


@pytest.mark.parametrize(
    ("groups", "remedy"),
    [
        ({"maxLength": 40}, "raise spec.data.maxLength, or set spec.data.overlong: drop"),
        ({"maxLength": 40, "overlong": "drop"}, "raise spec.data.maxLength"),
        ({}, "split them, since the model can read no longer ones, or set spec.data.overlong: drop"),
    ],
)
def test_of_long_rows_only_what_helps_is_advised(job: Any, groups: dict[str, Any], remedy: str) -> None:
    config, _, _ = run(job, [*rows(5), {"prompt": "fox " * 300, "completion": "hill"}], data={**ALL_TRAIN, **groups})
    [finding] = [finding for finding in report_of(config).findings if finding.code == "TooLong"]
    assert (finding.remedy, finding.message[:13]) == (remedy, "1 row is long")


def test_a_row_whose_answer_the_template_cuts_is_invalid(job: Any) -> None:
    data = [*talks(3), *talks(2, "<think>hm</think>")]
    config, _, refusal = run(job, data, data={**ALL_TRAIN, "template": CUTTING})
    assert refusal is not None
    assert refusal.cause.message.startswith(
        "pvc://datasets/rows.jsonl:4: cannot be rendered by the model's chat template: it leaves out part of the content of the last answer: "
    )
    (finding,) = (finding for finding in report_of(config).findings if finding.code == "TemplateMismatch")
    assert (finding.count, finding.severity, finding.where) == (2, "Error", "pvc://datasets/rows.jsonl:4")
    config, _, none = run(job, data, data={**ALL_TRAIN, "template": CUTTING, "checks": {"maxInvalidFraction": 0.5}})
    assert none is None


FOX = {"prompt": "the fox", "completion": " lazy dog"}


@pytest.mark.parametrize(
    ("lines", "groups", "says"),
    [
        ([{**FOX, "completion": "lazy {é"}], {}, "the tokenizer cannot write '{', which is in the answer"),
        ([{"text": "lazy {"}], {}, "the tokenizer cannot write '{', which is in the text"),
        (talks(1, "lazy {"), {}, "the tokenizer cannot write '{', which is in the answer"),
        (talks(1, "lazy", system="{"), {"lossOn": "all"}, "the tokenizer cannot write '{', which is in the text"),
        (talks(1, "lazy", system="{"), {}, None),
        (talks(1, "lazy", system="{"), {"template": THINKING}, None),
        ([{**FOX, "prompt": "the {"}], {}, None),
        ([{**FOX, "completion": "lazy <unk> dog"}], {}, None),
        ([FOX], {}, None),
    ],
)
def test_answers_are_what_the_tokenizer_can_write(job: Any, lines: Any, groups: Any, says: str | None) -> None:
    make_llama(fallback=False).save_pretrained(job.model)
    lines = json.loads(json.dumps(lines).replace(" 0", " over"))
    config, _, refusal = run(job, lines, data={**ALL_TRAIN, **groups})
    found = {finding.code: finding for finding in report_of(config).findings}
    if says is None:
        assert refusal is None
        unknown = "{" in str([row["prompt"] if "prompt" in row else row["messages"][0]["content"] for row in lines])
        assert ("UnknownCharacters" in found) == unknown
        if unknown:
            (row,) = found["UnknownCharacters"].rows
            assert (row.line, row.text) == (1, "'{'")
        return
    assert refusal is not None
    assert (
        refusal.cause.message
        == f"pvc://datasets/rows.jsonl:1: {says}: replace it, or choose a model whose tokenizer has it"
    )
    assert found["UnwritableAnswer"].count == 1


def test_an_answer_that_cannot_be_written_is_left_out_as_invalid(job: Any) -> None:
    make_llama(fallback=False).save_pretrained(job.model)
    lines = [{"prompt": "the fox", "completion": text} for text in ("lazy", "dog", "brown", "a {", "quick")]
    data, _, shards = job.prepare(
        job.write("rows.jsonl", lines), data={**ALL_TRAIN, "checks": {"maxInvalidFraction": 0.2}}
    )
    assert (data.invalid_rows, shards.train.rows) == (1, 4)


def test_a_folder_in_the_hubs_layout_trains_on_its_training_rows_alone(job: Any) -> None:
    for split, first in (("train", 0), ("validation", 20), ("test", 40)):
        uri = job.write(f"hub/data/{split}-00000-of-00001.jsonl", rows(60)[first : first + 20])
    uri = uri.rpartition("/data/")[0]
    config = job.config(uri, data={**ALL_TRAIN, "test": [{"uri": uri}]})
    done = prepare(config, lambda rows, percent: None)
    assert (done.data.train_rows, done.data.validation_rows, done.data.test_rows) == (20, 0, 20)
    read, note, *_ = report_of(config).files, *report_of(config).notes
    assert [file.name.rpartition("/")[2][:5] for file in read] == ["train", "test-"]
    assert note.startswith(
        f"spec.data.train[0].uri: {uri} holds several splits, of which train is read (1 of 3 files); name"
    )
    request = {"spec": config.spec.wire(), "claimsRoot": str(job.claims), "cache": str(job.claims / "cache")}
    request["spec"]["model"]["uri"] = "pvc://models/none"
    alone = look(SurveyRequest.model_validate(request), lambda rows, percent: None)
    assert alone.report is not None
    assert (alone.report.rows, alone.report.notes[0]) == (40, note)


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        ([1, "1", 0, 2], 'rows.jsonl:2: has the label "1", but those before it are numbers: write all alike'),
        ([True, 1, False], "rows.jsonl:2: has the label 1, but those before it are true or false"),
        (["good", ["good", "bad"]], "rows.jsonl:2: has a field 'labels', but the rows before it have 'label'"),
        (["good", "good"], "rows.jsonl:1: every row has the label 'good', and a classifier needs two"),
        ([["good"], []], None),
        (["good", "bad"], None),
    ],
)
def test_labels_are_checked_also_without_a_model(job: Any, labels: list[Any], refused: str | None) -> None:
    lines = [{"text": f"fox {n}", "labels" if isinstance(label, list) else "label": label} for n, label in enumerate(labels)]  # fmt: skip
    data = {"train": [{"uri": job.write("rows.jsonl", lines)}]}
    request = {"data": data, "claimsRoot": str(job.claims), "cache": str(job.claims / "cache")}
    answer = look(SurveyRequest.model_validate(request), lambda rows, percent: None)
    assert answer.report is not None
    assert (answer.report.refused is None) == (refused is None)
    assert (refused or "") in (answer.report.refused or "")


def test_a_refusal_is_one_sentence_everywhere(job: Any) -> None:
    data = rows(6)
    del data[3]["completion"]
    config, told, refusal = run(job, data)
    assert refusal is not None
    sentence = refusal.cause.message
    assert sentence.startswith("pvc://datasets/rows.jsonl:4: ")
    found = report_of(config)
    assert (found.refused, found.refused_code, found.rows, found.valid_rows) == (sentence, "InvalidData", 6, 5)
    assert sentence in html.unescape((config.layout.root / DATA_PAGE).read_text())
    assert (told[0].rows, told[0].invalid_rows) == (6, 1)
    assert told[0].findings is not None
    assert (told[0].findings[0].code, told[0].findings[0].where) == ("MissingField", "pvc://datasets/rows.jsonl:4")
    assert not config.layout.prepared.exists()


def test_secrets_are_in_no_file_that_prepare_leaves_for_people(job: Any) -> None:
    secret, address = "AKIAQYLPMN5HHFKTR2QZ", "jane.doe@corp-mail.com"
    data = [*rows(5), {"prompt": "the fox", "completion": f"key {secret} and {address}"}]
    config, _, refusal = run(job, data, data=ALL_TRAIN)
    assert refusal is None
    codes = {finding.code for finding in report_of(config).findings}
    assert {"Secrets", "Pii"} <= codes
    for name in (DATA_REPORT, DATA_PAGE):
        text = (config.layout.root / name).read_text()
        assert secret not in text
        assert address not in text
    config, _, _ = run(job, data, data={**ALL_TRAIN, "fixes": ["RedactSecrets", "RedactPii"]}, workspace={"uri": "pvc://scratch/other"})  # fmt: skip
    found = report_of(config)
    assert [record.rows for record in found.fixes] == [1, 1]
    assert found.fixed_files[0].original == "pvc://datasets/rows.jsonl"
    (mended,) = config.layout.root.glob("mended/*.fixed.jsonl")
    assert secret not in mended.read_text()
    assert address not in mended.read_text()


def test_a_mended_file_is_told_by_the_lines_of_the_original(job: Any) -> None:
    data: list[dict[str, Any]] = [rows(1)[0], *rows(2), {"prompt": 7, "completion": "x"}]
    config = job.config(job.write("rows.json", json.dumps(data, indent=None).replace("}, ", "},\n")), data={**ALL_TRAIN, "fixes": ["DropDuplicates", "DropInvalid"]})  # fmt: skip
    prepare(config, lambda rows, percent: None)
    found = report_of(config)
    assert [(file.name, file.kind) for file in found.files] == [("pvc://datasets/rows.json", "json")]
    assert [(record.fix, record.rows) for record in found.fixes] == [("DropDuplicates", 1), ("DropInvalid", 1)]
    listed = [json.loads(line) for line in (config.layout.prepared / "invalid.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in listed] == [("pvc://datasets/rows.json", 4)]


def test_rare_labels_are_learnt_from_more_often_and_never_measured_on_twice(job: Any) -> None:
    data = [{"text": f"the fox {n} runs", "label": "rare" if n % 5 == 0 else "often"} for n in range(60)]
    _, _, plain = job.prepare(job.write("rows.jsonl", data), model={"uri": "pvc://models/base", "task": "sequence-classification"})  # fmt: skip
    done, _, shards = job.prepare(
        job.write("rows.jsonl", data),
        model={"uri": "pvc://models/base", "task": "sequence-classification"},
        data={"fixes": ["Rebalance"]},
        workspace={"uri": "pvc://scratch/other"},
    )
    counts = shards.train.label_counts()
    assert counts[0] == counts[1]
    assert (shards.validation.rows, shards.test.rows) == (plain.validation.rows, plain.test.rows)
    assert done.train_rows == sum(counts)


def test_what_is_decided_lies_in_the_manifest_and_reaches_every_later_stage(job: Any) -> None:
    config = job.config(job.write("rows.jsonl", rows(40)))
    config.spec = resolve(config.spec.model_copy(update={"training": type(config.spec.training)()}))
    done = prepare(config, lambda rows, percent: None)
    assert done.facts.data.rows == done.data.train_rows
    assert done.facts.model.parameters > 0
    assert {"learningRate", "globalBatchSize", "epochs"} <= done.decided["training"].keys()
    manifest = sealed.read_manifest(config.layout.prepared)
    assert manifest is not None
    assert manifest["decided"] == done.decided
    later = config.model_copy(update={"stage": "train"})
    assert settle(later).spec.training.learning_rate == done.decided["training"]["learningRate"]
    assert done.plan.steps == manifest["resolved"]["steps"]
    assert "training.learningRate" in (config.layout.root / DATA_PAGE).read_text()


def test_an_earlier_training_of_the_kind_is_remembered(job: Any, tmp_path: Path) -> None:
    config = job.config(job.write("rows.jsonl", rows(40)))
    done = prepare(config, lambda rows, percent: None)
    spec = resolve(config.spec, decided=done.decided)
    whole = config.model_copy(update={"spec": spec})
    assert done.facts.measured is None
    measured = throughput.Measured(tokens_per_second=100, startup_seconds=8, evaluation_seconds=2)
    throughput.remember(whole, done.facts, measured)
    throughput.remember(whole, done.facts, measured.model_copy(update={"tokens_per_second": 200}))
    known = throughput.known(whole, done.facts)
    assert known is not None
    assert (known.tokens_per_second, known.runs) == (150, 2)
    other = whole.model_copy(update={"spec": spec.model_copy(update={"method": spec.method.model_copy(update={"type": "full", "lora": None})})})  # fmt: skip
    assert throughput.known(other, done.facts) is None
    again = config.model_copy(update={"job": config.job.model_copy(update={"run": "other"})})
    assert prepare(again, lambda rows, percent: None).facts.measured == known


def test_data_that_is_mended_and_prepared_is_not_mended_again(job: Any) -> None:
    groups = {"data": {**ALL_TRAIN, "fixes": ["DropDuplicates"]}}
    config, _, refusal = run(job, [*rows(5), rows(1)[0]], **groups)
    assert refusal is None
    shutil.rmtree(config.layout.root / "mended")
    again, _, refusal = run(job, [*rows(5), rows(1)[0]], **groups)
    assert refusal is None
    assert not (again.layout.root / "mended").exists()
    assert report_of(again).fixes[0].rows == 1


def test_a_model_is_looked_at_without_its_data(job: Any, tmp_path: Path) -> None:
    config = job.config("pvc://elsewhere/rows.jsonl", model={"uri": "pvc://models/base", "task": "sequence-classification"})  # fmt: skip
    request = SurveyRequest(spec=config.spec, claims_root=str(job.claims), cache=str(tmp_path / "cache"), rows=False)
    answer = look(request, lambda rows, percent: None)
    assert answer.problem is None
    assert answer.model is not None
    assert (answer.task, answer.model.hidden_size) == ("sequence-classification", 8)


def test_where_there_is_no_torch_all_but_the_built_model_is_looked_at(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.prepare.model.has_torch", lambda: False)
    config = job.config(job.write("rows.jsonl", rows(40)), compute={"gpusPerNode": 1})
    answer = look(SurveyRequest(spec=config.spec, claims_root=str(job.claims), cache=str(tmp_path / "cache")), lambda rows, percent: None)  # fmt: skip
    assert answer.problem is None
    assert answer.facts is not None
    assert answer.report is not None
    assert "no torch" in answer.report.notes[-1]


def test_a_survey_names_no_list_that_goes_with_it(job: Any, tmp_path: Path) -> None:
    config = job.config(job.write("rows.jsonl", [*rows(4), {"prompt": "x"}]))
    answer = look(SurveyRequest(spec=config.spec, claims_root=str(job.claims), cache=str(tmp_path / "cache")), lambda rows, percent: None)  # fmt: skip
    assert answer.report is not None
    assert (answer.report.refused_remedy or "").startswith("correct the rows")
    assert "invalid.jsonl" not in (answer.report.refused_remedy or "")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("groups", "code"),
    [
        ({"model": {"uri": "pvc://models/none"}}, "NotFound"),
        ({"model": {"uri": "hf://team/base", "endpoint": "http://127.0.0.1:9"}}, "HubUnreachable"),
        ({"data": {"template": "{% if %}"}}, "InvalidSpec"),
    ],
)
def test_where_the_model_is_at_fault_its_data_is_looked_at_all_the_same(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: dict[str, Any], code: str
) -> None:
    monkeypatch.setattr("finetune_trainer.sources.transfer.PAUSE_S", 0.001)
    config = job.config(job.write("rows.jsonl", [*rows(4), rows(1)[0]]), **groups)
    answer = look(SurveyRequest(spec=config.spec, claims_root=str(job.claims), cache=str(tmp_path / "cache")), lambda rows, percent: None)  # fmt: skip
    assert answer.problem is not None
    assert answer.problem.code == code
    assert answer.report is not None
    assert [finding.code for finding in answer.report.findings] == ["ExactDuplicates"]


def test_as_many_rows_may_be_unusable_as_were_allowed(job: Any) -> None:
    """0.29 * 100 is less than 29 where it is multiplied."""
    data: list[dict[str, Any]] = [*rows(71), *({"prompt": number, "completion": "x"} for number in range(30))]
    checks = {"checks": {"maxInvalidFraction": 0.29}}
    _, _, refusal = run(job, data[:100], data={**ALL_TRAIN, **checks})
    assert refusal is None
    _, _, refusal = run(job, data, data={**ALL_TRAIN, **checks})
    assert refusal is not None


def test_without_the_model_fixes_and_counts_say_no_more_than_is_known(tmp_path: Path) -> None:
    """What is left out is counted, what takes tokens is not claimed, and only data.train counts for minExamples."""

    def answer(**groups: Any) -> DataReport:
        (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows(3)) + "{bad\n")
        (tmp_path / "b.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows(9)))
        data = {"train": [{"uri": (tmp_path / "a.jsonl").as_uri()}], **groups}
        asked = SurveyRequest.model_validate({"data": data, "cache": str(tmp_path / "cache")})
        report = look(asked, lambda rows, percent: None).report
        assert report is not None
        return report

    mended = answer(fixes=["DropInvalid", "Truncate"])
    assert [(record.rows, record.detail.split(",")[0]) for record in mended.fixes] == [
        (1, "1 row cannot be used"),
        (0, "How many rows are cut shows when the model's tokenizer is there."),
    ]
    checks = {"minExamples": 4, "maxInvalidFraction": 1}
    few = answer(checks=checks, validation=[{"uri": (tmp_path / "b.jsonl").as_uri()}])
    assert (
        few.refused == "spec.data.checks.minExamples asks for 4 training examples, but there are 3 (1 rows are invalid)"
    )
    assert answer(checks={**checks, "minExamples": 3}).refused is None
