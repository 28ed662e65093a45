"""Greedy answers: what a batch writes is what each row alone would get from plain forwards."""

from __future__ import annotations

import pytest
import torch
from finetune_trainer.errors import Stopped
from finetune_trainer.evaluate.generate import Greedy, answers
from finetune_trainer.evaluate.untouched import untouched

STOP = 1
PROMPTS = [[5, 9, 13, 17], [6], [20, 21, 22, 23, 24, 25, 26], [30, 31], [7, 7, 7]]
HOW = Greedy(max_new_tokens=9, pad=0, stop=(STOP,))


def ignore(*_) -> None:
    """No one is told."""


def shards_of(make_shards, task):
    prompts = [[*prompt, STOP] for prompt in PROMPTS] if task == "seq2seq-lm" else PROMPTS
    return make_shards(task=task, test=[(prompt, [9, STOP]) for prompt in prompts])


def by_hand(model, prompt: list[int], task: str) -> list[int]:
    """The likeliest token again and again, without a cache and without other rows."""
    out: list[int] = []
    with torch.no_grad():
        while len(out) < HOW.max_new_tokens and out[-1:] != [STOP]:
            if task == "seq2seq-lm":
                start = model.config.decoder_start_token_id
                given = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *out]])}
            else:
                given = {"input_ids": torch.tensor([prompt + out])}
            out.append(int(model(**given, use_cache=False).logits[0, -1].argmax()))
    return out[:-1] if out[-1:] == [STOP] else out


CASES = [
    *[(name, method, "causal-lm") for name in ("llama", "gpt2") for method in (None, "lora", "prompt", "prefix")],
    *[("t5", method, "seq2seq-lm") for method in (None, "lora", "prompt", "prefix")],
    ("bart", None, "seq2seq-lm"),
]


@pytest.mark.parametrize(("name", "method", "task"), CASES)
def test_a_batch_writes_what_each_row_would(make_shards, make_model, with_adapter, make_rank, name, method, task):
    shards = shards_of(make_shards, task)
    model = make_model(name, task)
    if method:
        model = with_adapter(model, method, task)
    rows = range(len(PROMPTS))
    told = []
    got = answers(make_rank(), model, shards.test, rows, HOW, on_token=ignore, on_batch=told.append)
    assert told == [5], "in one batch"
    prompts = [shards.test.tokens(row)[: shards.test.prompt_length(row)].tolist() for row in rows]
    wanted = {row: by_hand(model, prompt, task) for row, prompt in zip(rows, prompts, strict=True)}
    assert got == wanted
    assert len({tuple(answer) for answer in wanted.values()}) > 1, "rows differ"


@pytest.mark.parametrize(
    ("name", "method", "task"),
    [
        (name, method, task)
        for name, task in (("llama", "causal-lm"), ("t5", "seq2seq-lm"))
        for method in ("lora", "prompt", "prefix")
    ],
)
def test_the_base_under_an_adapter_answers_as_if_there_were_none(
    make_shards, make_model, with_adapter, make_rank, name, method, task
):
    shards, rows = shards_of(make_shards, task), range(len(PROMPTS))

    def write(model):
        return answers(make_rank(), model, shards.test, rows, HOW, on_token=ignore, on_batch=ignore)

    base = write(make_model(name, task))
    tuned = with_adapter(make_model(name, task), method, task)
    before = write(tuned)
    with untouched(tuned):
        assert write(tuned) == base
    assert write(tuned) == before != base


def test_answers_stay_within_the_models_context(make_shards, make_model, with_adapter, make_rank):
    """A GPT-2 has no position beyond its context, and virtual tokens take some of it."""
    shards = make_shards(test=[([5] * 50, [9, STOP]), ([6] * 3, [9, STOP])])
    model = with_adapter(make_model("gpt2", "causal-lm"), "prompt", "causal-lm")
    how = Greedy(max_new_tokens=40, pad=0, stop=(60,))
    got = answers(make_rank(), model, shards.test, [0, 1], how, on_token=ignore, on_batch=ignore)
    assert len(got[0]) == 64 - 5 - 50
    assert len(got[1]) <= 40


def test_the_models_own_generation_settings_change_nothing_and_stay(make_shards, make_model, make_rank):
    shards = shards_of(make_shards, "causal-lm")
    model = make_model("llama", "causal-lm")
    plain = answers(make_rank(), model, shards.test, [0, 1], HOW, on_token=ignore, on_batch=ignore)
    model.generation_config.update(do_sample=True, repetition_penalty=9.0, min_new_tokens=8, temperature=3.0)
    own = model.generation_config
    assert answers(make_rank(), model, shards.test, [0, 1], HOW, on_token=ignore, on_batch=ignore) == plain
    assert model.generation_config is own


def test_ranks_share_the_rows_and_a_stop_ends_them(make_shards, make_model, make_rank, monkeypatch):
    monkeypatch.setattr("finetune_trainer.evaluate.generate._BATCH_ROWS", 2)
    shards, model, rows = shards_of(make_shards, "causal-lm"), make_model("llama", "causal-lm"), range(5)
    told = []
    parts = [
        answers(make_rank(rank, 2), model, shards.test, rows, HOW, on_token=ignore, on_batch=told.append)
        for rank in range(2)
    ]
    assert told == [4, 5] * 2
    assert not parts[0].keys() & parts[1].keys()
    assert parts[0] | parts[1] == answers(make_rank(), model, shards.test, rows, HOW, on_token=ignore, on_batch=ignore)
    rank = make_rank()
    tokens = []

    def stop_soon():
        tokens.append(1)
        rank.asked_to_stop = len(tokens) >= 3

    with pytest.raises(Stopped, match="generating answers"):
        answers(rank, model, shards.test, rows, HOW, on_token=stop_soon, on_batch=ignore)
    assert len(tokens) == 3, "the batch is cut short"


def test_a_head_that_was_trained_in_fp32_meets_a_base_in_bf16(make_shards, make_model, make_rank):
    import peft

    shards = shards_of(make_shards, "causal-lm")
    base = make_model("llama", "causal-lm").bfloat16()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    prompt = PROMPTS[2]
    got = answers(make_rank(), model, shards.test, [2], HOW, on_token=ignore, on_batch=ignore)
    with torch.autocast("cpu", torch.bfloat16):
        assert got[2] == by_hand(model, prompt, "causal-lm")
