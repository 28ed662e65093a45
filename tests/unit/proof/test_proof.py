"""The proof holds for whatever the encoders give, for any template and any kind of vocabulary; and fails for each wrong mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from finetune_trainer.data import formats
from finetune_trainer.data.encode import Encoded, Encoder
from finetune_trainer.data.encode_classes import ClassEncoder
from finetune_trainer.data.encode_pairs import PairEncoder
from finetune_trainer.data.formats import Example
from finetune_trainer.errors import BadInput
from finetune_trainer.proof import Prover, Seen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit import tiny_tokenizers
from tests.unit.data.test_tools import FAMILIES, TOOLS, called, says, tool, user
from tests.unit.tiny_tokenizers import CHATML, CHATML_MARKED, TEMPLATES

TOKENIZERS = {name: tiny_tokenizers.make(template) for name, template in TEMPLATES.items()}
TOKENIZERS |= {f"llama {name}": tiny_tokenizers.make_llama(TEMPLATES[name]) for name in ("chatml", "llama2")}
BOTH_ENDS = tiny_tokenizers.make(None, adds_bos=True, adds_eos=True)
PLAIN = {"bytes": TOKENIZERS["chatml"], "both ends": BOTH_ENDS, "llama": TOKENIZERS["llama chatml"], "normalised": tiny_tokenizers.make_llama(normalised=True)}  # fmt: skip


def chat(*turns: str, system: str | None = None) -> Example:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(turns)
    ]
    return Example(messages=tuple(messages))


def prover(
    tokenizer, *, form="messages", loss_on="assistant", task="causal-lm", files=("pvc://d/train.jsonl",)
) -> Prover:
    return Prover(tokenizer, task=task, form=form, loss_on=loss_on, names=files)


def seen(example: Example, row: Encoded, line: int = 7, kept: Encoded | None = None) -> Seen:
    return Seen(example, row, kept or row, (0, line, 0, 0))


def encoded(tokenizer, example: Example, *, form="messages", loss_on="assistant") -> Encoded:
    [row] = Encoder(tokenizer, form, loss_on).encode([example])
    assert isinstance(row, Encoded), row
    return row


text = st.text(st.one_of(st.sampled_from("a hello\nx</s>[INST]<|im_end|>uséy世"), st.characters(codec="utf-8", exclude_characters="\0")), min_size=1).filter(str.strip)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(TOKENIZERS)),
    loss_on=st.sampled_from(["completion", "assistant", "all"]),
    turns=st.lists(text, min_size=1, max_size=4),
    answers=st.lists(text, min_size=4, max_size=4),
    system=st.none() | text,
)
@example(name="reasoning", loss_on="completion", turns=["0"], answers=["<0"], system=None)
def test_whatever_the_encoder_gives_for_conversations_is_proved(name, loss_on, turns, answers, system):
    """No false alarm, whatever people write: contents that look like the template, one another, or special tokens."""
    tokenizer = TOKENIZERS[name]
    said = chat(*(part for pair in zip(turns, answers, strict=False) for part in pair), system=system)
    [row] = Encoder(tokenizer, "messages", loss_on).encode([said])
    if isinstance(row, str):
        return
    subject = prover(tokenizer, loss_on=loss_on)
    subject.see([seen(said, row)])
    proof = subject.proof()
    assert proof.trained_tokens == row.mask[1:].sum()
    assert proof.trained_tokens + proof.masked_tokens == len(row.ids)
    [sample] = proof.samples
    assert [token.trained for token in sample.tokens] == [False, *row.mask[1:1024]]


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(PLAIN)),
    loss_on=st.sampled_from(["completion", "all"]),
    prompt=st.none() | text,
    completion=text,
)
@example(name="normalised", loss_on="completion", prompt="0", completion="ª")
@example(name="bytes", loss_on="completion", prompt="the qui", completion="ck")
def test_whatever_the_encoder_gives_for_texts_is_proved(name, loss_on, prompt, completion):
    """Also where a word begins in the prompt and ends in the completion, whose tokens are others than the prompt's alone."""
    tokenizer, said = PLAIN[name], Example(prompt=prompt, completion=completion)
    form = "text" if prompt is None else "prompt-completion"
    row = encoded(tokenizer, said, form=form, loss_on=loss_on)
    subject = prover(tokenizer, form=form, loss_on=loss_on)
    subject.see([seen(said, row)])
    assert subject.proof().rows == 1


def flipped(row: Encoded, where: slice | int, value: bool) -> Encoded:
    mask = row.mask.copy()
    mask[where] = value
    return replace(row, mask=mask)


TWO = chat("hello", "the fox", "over?", "lazy dog", system="quick")
ROW = encoded(TOKENIZERS["chatml"], TWO)
SYSTEM, FIRST, SECOND = (TOKENIZERS["chatml"].decode(ROW.ids).index(text) for text in ("quick", "hello", "over?"))


def token_at(character: int) -> int:
    """The token of ROW at a character of its text."""
    lengths = np.cumsum([len(TOKENIZERS["chatml"].decode([token])) for token in ROW.ids])
    return int(np.searchsorted(lengths, character, "right"))


WRONG = {
    # what is wrong with the mask, how the sentence goes on, code, lossOn
    "nothing is learnt": (flipped(ROW, slice(None), False), None, "NothingToTrain", "assistant"),
    "the first token alone": (flipped(flipped(ROW, slice(None), False), 0, True), None, "NothingToTrain", "assistant"),
    "no end of turn": (flipped(ROW, -1, False), "the end of its answer would not be trained on", "InvalidTemplate", "assistant"),
    "no end token": (replace(ROW, ids=ROW.ids[:-1], mask=ROW.mask[:-1]), "the end of its answer", "InvalidTemplate", "assistant"),
    "a system turn": (flipped(ROW, token_at(SYSTEM), True), "text of the system's turn (messages[0])", "InvalidTemplate", "assistant"),
    "a later user turn": (flipped(ROW, token_at(SECOND), True), "text of the user's turn (messages[3])", "InvalidTemplate", "assistant"),
    "a piece of template": (flipped(ROW, 1, True), "around the answers", "InvalidTemplate", "assistant"),
    "an earlier answer": (ROW, "text of the assistant's turn (messages[2])", "InvalidTemplate", "completion"),
    "half an answer": (flipped(ROW, -3, False), "part of the last answer would not be trained on", "InvalidTemplate", "assistant"),
    "a masked prompt": (ROW, "part of the row would not be trained on", "InvalidTemplate", "all"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_mask_is_refused_with_its_file_and_line(name):
    row, says, code, loss_on = WRONG[name]
    with pytest.raises(BadInput) as refused:
        prover(TOKENIZERS["chatml"], loss_on=loss_on).see(
            [seen(TWO, ROW, line=6)] * (row is not ROW) + [seen(TWO, row)]
        )
    assert refused.value.cause.code == code
    assert str(refused.value).startswith("pvc://d/train.jsonl:7: ")
    assert (says or "none of its") in str(refused.value)


PAIR = Example(prompt="zq hello world, ", completion="the lazy dog")


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("where", "value"), [(1, True), (-1, False), (-3, False)])
def test_a_wrong_mask_of_a_pair_is_refused(name, where, value):
    row = encoded(PLAIN[name], PAIR, form="prompt-completion", loss_on="completion")
    with pytest.raises(BadInput, match=r"would be trained on|would not be trained on"):
        prover(PLAIN[name], form="prompt-completion", loss_on="completion").see(
            [seen(PAIR, flipped(row, where, value))]
        )


@pytest.mark.parametrize("wrong", [None, "source", "target", "source end", "target end"])
def test_source_and_target_of_an_encoder_decoder_are_kept_apart(wrong):
    [row] = PairEncoder(BOTH_ENDS).encode([PAIR])
    row = {
        None: row,
        "source": flipped(row, 0, True),
        "target": flipped(row, -2, False),
        "source end": replace(row, ids=np.where(np.arange(len(row.ids)) == row.prompt_length - 1, 9, row.ids)),
        "target end": replace(row, ids=np.where(np.arange(len(row.ids)) == len(row.ids) - 1, 9, row.ids)),
    }[wrong]
    subject = prover(BOTH_ENDS, task="seq2seq-lm", form="prompt-completion", loss_on="completion")
    if wrong:
        with pytest.raises(BadInput, match=r"^pvc://d/train.jsonl:7: its source"):
            subject.see([seen(PAIR, row)])
    else:
        subject.see([seen(PAIR, row)])
        assert subject.proof().end_of_turn == BOTH_ENDS.eos_token


def test_a_classifier_learns_no_token():
    tokenizer, said = BOTH_ENDS, Example(text="hello", label="good")
    [row] = ClassEncoder(tokenizer).encode([said])
    subject = prover(tokenizer, task="sequence-classification", form="classification", loss_on=None)
    subject.see([seen(said, row)])
    proof = subject.proof()
    assert (proof.rows, proof.trained_tokens, proof.template_tokens, proof.end_of_turn) == (1, 0, 2, None)


BAD_TEMPLATES = {
    "marks the user's words": CHATML_MARKED.replace("m['role'] == 'assistant'", "m['role'] != 'system'"),
    "writes backwards": CHATML.replace("m in messages", "m in messages[::-1]"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["marks the user's words", "writes backwards"])
def test_a_template_that_does_not_keep_answers_apart_is_refused(name):
    tokenizer = tiny_tokenizers.make(BAD_TEMPLATES[name])
    with pytest.raises(
        BadInput, match=r"train.jsonl:7: text of the (user|system)'s turn \(messages\[[01]\]\) would be trained on"
    ) as refused:
        prover(tokenizer).see([seen(TWO, encoded(tokenizer, TWO))])
    assert refused.value.cause.code == "InvalidTemplate"
    assert "spec.data.template" in refused.value.cause.remedy


def test_what_the_template_adds_is_told_token_by_token():
    tokenizer = TOKENIZERS["chatml"]
    subject = prover(tokenizer)
    subject.see([seen(TWO, ROW)])
    proof = subject.proof()
    [sample] = proof.samples
    runs = {flag: "".join(token.text for token in sample.tokens if token.template is flag) for flag in (True, False)}
    assert runs[False] == "quickhellothe foxover?lazy dog"
    assert runs[True] == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>"
    )
    assert "".join(token.text for token in sample.tokens if token.trained) == "the fox<|im_end|>lazy dog<|im_end|>"
    assert proof.template_tokens == sum(token.template for token in sample.tokens)
    assert proof.end_of_turn == "<|im_end|>"
    assert (sample.file, sample.line, sample.length) == ("pvc://d/train.jsonl", 7, len(ROW.ids))


def test_rows_that_were_cut_are_proved_as_they_were_and_counted_as_they_are():
    tokenizer = TOKENIZERS["chatml"]
    cut = Encoder(tokenizer, "messages", "assistant").shortened(TWO, ROW, len(ROW.ids) - 2)
    subject = prover(tokenizer)
    subject.see([seen(TWO, ROW, kept=cut), seen(TWO, ROW, line=8)])
    proof = subject.proof()
    assert proof.trained_tokens == 2 * int(ROW.mask.sum()) - 2
    assert {sample.length for sample in proof.samples} == {len(ROW.ids), len(ROW.ids) - 2}
    nothing = replace(cut, ids=cut.ids[:5], mask=cut.mask[:5])
    with pytest.raises(BadInput, match="none of its 5 tokens"):
        subject.see([seen(TWO, ROW, kept=nothing)])


def test_the_samples_are_the_shortest_the_middle_the_longest_and_one_of_several_turns():
    tokenizer = TOKENIZERS["chatml"]
    rows = [chat("hello", "x" * length) for length in (40, 3, 30, 41, 42, 1500, 43)]
    rows.append(chat("hello", "y", "hello", "z" * 30))
    batch = Encoder(tokenizer, "messages", "assistant").encode(rows)
    subject = prover(tokenizer)
    for start in (0, 4):  # in two batches
        subject.see([seen(*pair, line=start + line + 1) for line, pair in enumerate(zip(rows[start:], batch[start : start + 4], strict=False))])  # fmt: skip
    proof = subject.proof()
    assert [sample.line for sample in proof.samples] == [2, 1, 6, 8]
    longest = proof.samples[2]
    assert len(longest.tokens) == 1024 < longest.length


def test_what_must_not_be_shown_is_not_in_the_samples_nor_in_their_numbers():
    tokenizer, said = TOKENIZERS["llama chatml"], chat("hello", "it is hunter2 é, hello")
    subject = prover(tokenizer)
    subject.see([seen(said, encoded(tokenizer, said))])
    proof = subject.proof(lambda text: [(text.index("hunter2"), text.index("hunter2") + 7)])
    shown = "".join(token.text for token in proof.samples[0].tokens)
    assert "it is ••••••• \\xc3\\xa9, hello" in shown
    hidden = [token for token in proof.samples[0].tokens if "•" in token.text]
    assert {token.id for token in hidden} == {-1}


TOOL_TOKENIZERS = {name: tiny_tokenizers.make(template) for name, (template, *_) in FAMILIES.items()}
for _name, (_, _end, *_) in FAMILIES.items():
    TOOL_TOKENIZERS[_name].eos_token = _end


def with_tools(question: str, found: str, answer: str, untrained: tuple[int, ...] = ()) -> Example:
    turns = [user(question), called(), tool(found), says(answer), user(question), says(answer)]
    for turn in untrained:
        turns[turn]["weight"] = 0
    return formats.read({"messages": turns, "tools": TOOLS}, "messages")


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(FAMILIES)),
    loss_on=st.sampled_from(["completion", "assistant", "all"]),
    words=st.tuples(text, text, text),
    untrained=st.sets(st.sampled_from([1, 3, 5]), max_size=2),
)
def test_conversations_with_tools_and_answers_that_are_not_learnt_are_proved(name, loss_on, words, untrained):
    tokenizer, said = TOOL_TOKENIZERS[name], with_tools(*words, tuple(untrained))
    [row] = Encoder(tokenizer, "messages", loss_on).encode([said])
    if not isinstance(row, str) and row.mask[1:].any():
        prover(tokenizer, loss_on=loss_on).see([seen(said, row)])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_tool_says_is_not_learnt_and_calls_are_the_rows_own(name):
    tokenizer, said = TOOL_TOKENIZERS[name], with_tools("hello world", "jumps over", "lazy dog")
    row = encoded(tokenizer, said)
    place = next(n for n in range(len(row.ids)) if "jumps" in tokenizer.decode(row.ids[: n + 1]))
    with pytest.raises(BadInput, match=r"text of the tool's turn \(messages\[2\]\) would be trained on"):
        prover(tokenizer).see([seen(said, flipped(row, slice(place - 1, place + 2), True))])
    subject = prover(tokenizer)
    subject.see([seen(said, row)])
    own = "".join(token.text for token in subject.proof().samples[0].tokens if not token.template)
    assert "the fox" in own
    assert "lazy dog" in own
