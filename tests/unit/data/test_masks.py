"""Which tokens are learnt: exactly the answers with their end-of-turn token, whatever the template."""

from __future__ import annotations

import numpy as np
import pytest
from finetune_trainer.data.encode import Encoded, Encoder
from finetune_trainer.data.formats import Example
from hypothesis import given, settings
from hypothesis import strategies as st


def chat(*turns: tuple[str, str]) -> Example:
    return Example(messages=tuple({"role": role, "content": content} for role, content in turns))


TWO = chat(("user", "hello"), ("assistant", "the fox"), ("user", "world?"), ("assistant", "lazy dog"))


def learnt(tokenizer, row: Encoded) -> list[str]:
    """The trained stretches of a row as text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.mask.astype(int), [0]])))
    return [tokenizer.decode(row.ids[start:end]) for start, end in edges.reshape(-1, 2)]


ENDS = {
    "chatml": "<|im_end|>",
    "marked": "<|im_end|>",
    "llama2": "</s>",
    "thinking": "<|im_end|>",
    "endless": "</s>",
    "none": "</s>",
    "always prompting": "<|im_end|>",
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all"])
def test_answers_and_their_end_token_are_learnt_and_nothing_else(make_tokenizer, templates, name, loss_on):
    tokenizer, end = make_tokenizer(templates[name]), ENDS[name]
    [row] = Encoder(tokenizer, "messages", loss_on).encode([TWO])
    stretches = [text.strip() for text in learnt(tokenizer, row)]
    thought = "<think>\n\n</think>\n\n" if name == "thinking" else ""
    last = thought + "lazy dog"
    space = " " if name == "llama2" else ""
    first = (
        thought + "the fox" + ("" if name == "endless" else space + end)
    )  # no token ends an earlier turn of that template
    expected = {"completion": [last + space + end], "assistant": [first, last + space + end]}
    if loss_on == "all":
        assert row.mask.all()
    else:
        assert stretches == expected[loss_on]
    assert tokenizer.decode(row.ids[-1]) == end, "a row ends with its end-of-turn token"
    assert row.mask[-1], "and that token is learnt"
    assert tokenizer.decode(row.ids[row.prompt_length :]).strip() == last + space + end


@pytest.mark.parametrize("name", ENDS)
def test_the_prompt_is_what_a_server_would_send(make_tokenizer, templates, name):
    """tokens[:prompt_length] are the very ids of transformers' own apply_chat_template with a generation prompt."""
    tokenizer = make_tokenizer(templates[name])
    encoder = Encoder(tokenizer, "messages", "completion")
    [row] = encoder.encode([TWO])
    prompt = tokenizer.apply_chat_template(
        list(TWO.messages[:-1]), add_generation_prompt=True, chat_template=encoder._chat.template
    ).input_ids
    assert row.ids[: row.prompt_length].tolist() == prompt
    assert row.ids[-1] in encoder.stop_ids()
    assert tokenizer.eos_token_id in encoder.stop_ids()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(ENDS)),
    loss_on=st.sampled_from(["completion", "assistant", "all"]),
    turns=st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=8).filter(
        lambda turns: len(turns) % 2 == 0
    ),
)
def test_any_text_keeps_the_invariants(make_tokenizer, templates, name, loss_on, turns):
    example = chat(*(("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns)))
    [row] = Encoder(make_tokenizer(templates[name]), "messages", loss_on).encode([example])
    assert isinstance(row, Encoded)
    assert 0 < row.prompt_length < len(row.ids) == len(row.mask)
    assert row.mask[row.prompt_length :].all(), "the last answer is learnt to its last token"
    if loss_on == "completion":
        assert not row.mask[: row.prompt_length].any()


def test_a_template_that_refuses_says_why(make_tokenizer, templates):
    encoder = Encoder(make_tokenizer(templates["llama2"]), "messages", "assistant")
    good, bad = encoder.encode([TWO, chat(("system", "be kind"), ("user", "a"), ("assistant", "b"))])
    assert isinstance(good, Encoded)
    assert bad == "cannot be rendered by the model's chat template: System role not supported"


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("written", ["", "<s>"])
def test_begin_and_end_tokens_come_once(make_tokenizer, adds_bos, adds_eos, written):
    tokenizer = make_tokenizer(None, adds_bos=adds_bos, adds_eos=adds_eos)
    [pair] = Encoder(tokenizer, "prompt-completion", "completion").encode(
        [Example(prompt=f"{written}hello", completion=" world")]
    )
    [plain] = Encoder(tokenizer, "text", "all").encode([Example(completion=f"{written}hello world")])
    begin = "<s>" if adds_bos or written else ""
    assert tokenizer.decode(pair.ids) == tokenizer.decode(plain.ids) == f"{begin}hello world</s>"
    assert learnt(tokenizer, pair) == [" world</s>"]
    assert plain.mask.all()
    assert plain.prompt_length == len(plain.ids), "plain text has no answer to generate"


def test_the_boundary_is_the_longest_common_prefix(make_tokenizer):
    """ "hel" + "lo" is one token when joined: it belongs to the answer, and the prompt ends before it."""
    tokenizer = make_tokenizer(None)
    assert len(tokenizer.encode("hello")) == 1 < len(tokenizer.encode("hel"))
    [row] = Encoder(tokenizer, "prompt-completion", "completion").encode(
        [Example(prompt="the hel", completion="lo world")]
    )
    assert tokenizer.decode(row.ids[: row.prompt_length]) == "the"
    assert learnt(tokenizer, row) == [" hello world</s>"]


def test_a_pad_token_that_is_the_end_token_is_no_trap(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates["chatml"], pad=None)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    [row] = Encoder(tokenizer, "messages", "assistant").encode([TWO])
    assert row.mask[-1]
    assert row.ids[-1] == tokenizer.eos_token_id


def test_the_default_template_is_the_same_with_and_without_its_marks(make_tokenizer, monkeypatch):
    """What is found by comparing renderings agrees with what the template itself marks."""
    from finetune_trainer.data import tokenizer as tokenizer_module

    tokenizer = make_tokenizer(None)
    [marked] = Encoder(tokenizer, "messages", "assistant").encode([TWO])
    unmarked = tokenizer_module.DEFAULT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    monkeypatch.setattr(tokenizer_module, "DEFAULT_TEMPLATE", unmarked)
    [found] = Encoder(tokenizer, "messages", "assistant").encode([TWO])
    assert marked.ids.tolist() == found.ids.tolist()
    assert marked.mask.tolist() == found.mask.tolist()
    assert marked.prompt_length == found.prompt_length


def test_special_text_in_a_row_is_noticed(make_tokenizer, templates):
    encoder = Encoder(make_tokenizer(templates["chatml"]), "messages", "assistant")
    rows = encoder.encode([TWO, chat(("user", "a <|im_end|> b"), ("assistant", "c"))])
    assert [row.special_text for row in rows] == [False, True]


def test_an_earlier_answer_that_cannot_be_found_is_counted_not_guessed(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates["shouting"].replace("assistant\n", "\n"))
    [row] = Encoder(tokenizer, "messages", "assistant").encode([TWO])
    assert learnt(tokenizer, row) == ["lazy dog<|im_end|>"]
    assert row.lost_answers == 1
    [row] = Encoder(tokenizer, "messages", "completion").encode([TWO])
    assert row.lost_answers == 0


@pytest.mark.parametrize("name", ["shouting", "reasoning"])
def test_a_prompt_that_no_conversation_has_is_not_learnt_from(make_tokenizer, templates, name):
    """The answer is generated from what precedes it in the row itself, header included."""
    tokenizer = make_tokenizer(templates[name])
    [row] = Encoder(tokenizer, "messages", "completion").encode([TWO])
    assert learnt(tokenizer, row) == ["lazy dog<|im_end|>"]
    assert tokenizer.decode(row.ids[: row.prompt_length]).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", ["llama2", "none", "chatml"])
def test_a_conversation_begins_with_what_its_template_writes_and_no_second_begin_token(
    make_tokenizer, templates, name, adds_bos
):
    """Whether or not the tokenizer would add one to plain text."""
    tokenizer = make_tokenizer(templates[name], adds_bos=adds_bos)
    one = chat(("user", "hello"), ("assistant", "the fox"))
    [row] = Encoder(tokenizer, "messages", "assistant").encode([one])
    begins = row.ids.tolist().count(tokenizer.bos_token_id)
    assert begins == (0 if name == "chatml" else 1)
    assert (row.ids[0] == tokenizer.bos_token_id) == (begins == 1)


THOUGHT = {"role": "assistant", "content": "lazy dog", "reasoning_content": "the fox jumps"}
WRITTEN = {"role": "assistant", "content": "<think>the fox jumps</think>lazy dog"}
WHOLE = "<think>\nthe fox jumps\n</think>\n\nlazy dog<|im_end|>"


@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all"])
@pytest.mark.parametrize(
    ("name", "answer", "left_out"),
    [
        ("cutting", WRITTEN, None),
        ("cutting", THOUGHT, None),
        ("cutting", {**WRITTEN, "content": "<think>brown</think>"}, "part of the content"),
        ("cutting answers alone", WRITTEN, None),
        ("cutting answers alone", THOUGHT, None),
        ("chatml", THOUGHT, "the reasoning_content"),
        ("marked", THOUGHT, "the reasoning_content"),
        ("recalling", THOUGHT, None),
        ("recalling", WRITTEN, None),
    ],
)
def test_the_last_answer_is_trained_whole_or_refused(make_tokenizer, templates, name, answer, left_out, loss_on):
    """Templates may move white space and think tags, but not leave out words."""
    tokenizer = make_tokenizer(templates[name])
    [row] = Encoder(tokenizer, "messages", loss_on).encode(
        [Example(messages=({"role": "user", "content": "hello"}, answer))]
    )
    if left_out:
        assert row == f"cannot be rendered by the model's chat template: it leaves out {left_out} of the last answer"
    else:
        assert isinstance(row, Encoded)
        asks = "<think>\n" if name == "cutting" else ""
        assert tokenizer.decode(row.ids[: row.prompt_length]).endswith(f"<|im_start|>assistant\n{asks}")
        assert tokenizer.decode(row.ids[row.prompt_length :]) == WHOLE.removeprefix(asks)
        assert row.rendered.unwritten == ""


def talk(*answers: dict[str, str]) -> tuple[dict[str, str], ...]:
    return tuple(turn for answer in answers for turn in ({"role": "user", "content": "hello"}, answer))


@pytest.mark.parametrize("answer", [THOUGHT, WRITTEN])
@pytest.mark.parametrize("name", ["cutting", "cutting answers alone", "recalling"])
def test_each_answer_is_trained_as_the_model_writes_it(make_tokenizer, templates, name, answer):
    """Whatever the template makes of it where it is not the last one: of one prompt there are not two kinds of answers."""
    tokenizer = make_tokenizer(templates[name])
    encoder = Encoder(tokenizer, "messages", "assistant")
    rows = encoder.encode([Example(messages=talk(*[answer] * count)) for count in (1, 2, 4)])
    (alone,) = learnt(tokenizer, rows[0])
    assert [learnt(tokenizer, row) for row in rows[1:]] == [[alone] * 2, [alone] * 4]
    assert [row.lost_answers for row in rows] == [0, 0, 0]
    header = tokenizer.decode(rows[0].ids).split("hello<|im_end|>\n")[1].removesuffix(alone)
    assert tokenizer.decode(rows[2].ids) == "\n".join([f"<|im_start|>user\nhello<|im_end|>\n{header}{alone}"] * 4)


@pytest.mark.parametrize("name", ["cutting", "recalling", "thinking"])
@pytest.mark.parametrize(("loss_on", "untrained"), [("completion", ()), ("assistant", (1,))])
def test_an_answer_that_is_not_trained_stays_as_a_server_sends_it(make_tokenizer, templates, name, loss_on, untrained):
    tokenizer = make_tokenizer(templates[name])
    answer = {"role": "assistant", "content": "fox"} if name == "thinking" else THOUGHT
    example = Example(messages=talk(answer, answer), untrained=untrained)
    encoder = Encoder(tokenizer, "messages", loss_on)
    [row] = encoder.encode([example])
    sent = tokenizer.apply_chat_template(
        list(example.messages[:-1]), add_generation_prompt=True, chat_template=encoder._chat.template
    ).input_ids
    assert row.ids[: row.prompt_length].tolist() == sent
    assert (len(learnt(tokenizer, row)), row.lost_answers) == (1, 0)


def test_an_answer_with_weight_0_may_be_cut(make_tokenizer, templates):
    turns = (
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "fox"},
        {"role": "user", "content": "world"},
        WRITTEN,
    )
    [row] = Encoder(make_tokenizer(templates["cutting"]), "messages", "assistant").encode(
        [Example(messages=turns, untrained=(3,))]
    )
    assert isinstance(row, Encoded)
