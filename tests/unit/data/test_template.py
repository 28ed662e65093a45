"""A chat template of the spec's own, and what a tokenizer is saved with."""

from __future__ import annotations

import pytest
from finetune_trainer.data.digests import template_digest
from finetune_trainer.data.tokenizer import load_tokenizer, settle, template_of
from finetune_trainer.errors import BadInput

from tests.unit.tiny_tokenizers import RECALLING

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
WRITING_AS_PROMPTED = RECALLING.replace(
    "{{ parts[-1]",
    "{% if loop.last and enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ parts[-1]",
)
ROWS = [
    {"messages": [{"role": "user", "content": f"fox {i}"}, {"role": "assistant", "content": "dog"}]} for i in range(10)
]


def test_it_takes_the_place_of_the_models_own(job):
    uri = job.write("rows.jsonl", ROWS)
    _, _, own = job.prepare(uri)
    _, _, given = job.prepare(uri, data={"template": TEMPLATE})
    tokenizer = load_tokenizer(job.model, template=TEMPLATE)
    text = tokenizer.decode(given.train.tokens(0))
    assert text.startswith("[user] fox")
    assert text.endswith("[assistant] dog<|im_end|>")
    assert given.manifest["digests"]["template"] == template_digest(template_of(tokenizer)) == template_digest(TEMPLATE)
    assert own.manifest["digests"]["template"] != given.manifest["digests"]["template"]
    assert not any("chat template" in note for note in given.manifest["notes"])


def test_reasoning_reaches_a_template_that_writes_it(job):
    template = TEMPLATE.replace("m['content']", "('<think>' + m.reasoning_content + '</think>' if m.reasoning_content else '') + m['content']")  # fmt: skip
    rows = [{"messages": [row["messages"][0], {**row["messages"][1], "reasoning": "brown?"}]} for row in ROWS]
    _, _, shards = job.prepare(job.write("rows.jsonl", rows), data={"template": template})
    trained = shards.train.tokens(0)[shards.train.mask(0)]
    assert load_tokenizer(job.model).decode(trained) == "<think>brown?</think>dog<|im_end|>"


def test_its_arguments_reach_every_prompt(job):
    uri = job.write("rows.jsonl", ROWS)
    tokenizer = load_tokenizer(job.model, template=RECALLING)
    thoughtless = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    for arguments, prompt in (({}, ""), ({"enable_thinking": True}, ""), ({"enable_thinking": False}, thoughtless)):
        _, _, shards = job.prepare(uri, data={"template": WRITING_AS_PROMPTED, "templateArguments": arguments})
        for split in (shards.train, shards.validation, shards.test):
            assert tokenizer.decode(split.tokens(0)[: split.prompt_length(0)]).endswith(prompt or "assistant\n")
        assert shards.manifest["digests"]["template"] == template_digest(WRITING_AS_PROMPTED, arguments)
        assert not shards.manifest["notes"][1:]
    assert len({template_digest(TEMPLATE, {"a": value}) for value in (1, 2, "1", True)}) == 4
    assert template_digest(TEMPLATE, {}) == template_digest(TEMPLATE)


def test_an_argument_of_no_use_is_noted(job):
    _, _, shards = job.prepare(job.write("rows.jsonl", ROWS), data={"templateArguments": {"enable_thinkng": False}})
    assert (
        "spec.data.templateArguments: the chat template has no variable enable_thinkng: check its spelling, or remove it."
        in shards.manifest["notes"]
    )
    rows = [{"text": f"hello {i}"} for i in range(10)]
    _, _, shards = job.prepare(
        job.write("plain.jsonl", rows), data={"templateArguments": {"a": 1}}, workspace={"uri": "pvc://scratch/b"}
    )
    assert any("spec.data.templateArguments is not used" in note for note in shards.manifest["notes"])


def test_it_is_saved_with_the_result(job, tmp_path):
    tokenizer = load_tokenizer(job.model, template=TEMPLATE)
    tokenizer.save_pretrained(tmp_path / "result")
    assert load_tokenizer(tmp_path / "result").chat_template == TEMPLATE


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ messages", "{% nothing %}", "{{ 'a' | unknown }}"])
def test_one_that_does_not_parse_is_refused_in_one_sentence(job, template):
    with pytest.raises(BadInput, match=r"^spec\.data\.template: is no Jinja template") as caught:
        job.prepare(job.write("rows.jsonl", ROWS), data={"template": template})
    assert "\n" not in str(caught.value)
    assert (caught.value.cause.code, caught.value.exit_code) == ("InvalidSpec", 3)


def test_one_that_cannot_render_the_rows_names_file_and_line(job):
    uri = job.write("rows.jsonl", ROWS)
    with pytest.raises(BadInput, match="cannot be rendered by the model's chat template: no chats today") as caught:
        job.prepare(uri, data={"template": "{{ raise_exception('no chats today') }}"})
    assert str(caught.value).startswith(f"{uri}:1: ")


def test_one_that_is_of_no_use_is_said(job):
    rows = [{"text": f"hello {i}"} for i in range(10)]
    _, _, shards = job.prepare(job.write("rows.jsonl", rows), data={"template": TEMPLATE})
    assert any("data.template is not used" in note for note in shards.manifest["notes"])


def test_the_plain_default_belongs_to_conversations_alone(job):
    (job.model / "chat_template.jinja").unlink()
    for task, kept in (("causal-lm", True), ("seq2seq-lm", False), ("sequence-classification", False)):
        tokenizer = load_tokenizer(job.model)
        settle(tokenizer, task, len(tokenizer))
        assert bool(tokenizer.chat_template) == kept
    tokenizer = load_tokenizer(job.model, template=TEMPLATE)
    settle(tokenizer, "sequence-classification", len(tokenizer))
    assert tokenizer.chat_template == TEMPLATE


def test_a_classifiers_tokenizer_names_its_pad_token(job, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(None)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    for task, pad in (("causal-lm", None), ("sequence-classification", "</s>")):
        loaded = load_tokenizer(tmp_path / "model")
        settle(loaded, task, len(loaded))
        assert loaded.pad_token == pad
