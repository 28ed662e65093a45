"""Rows for encoder-decoder models: source and target, each with its end token, each cut for itself."""

from __future__ import annotations

import json

import pytest
from finetune_trainer.data.encode_pairs import PairEncoder
from finetune_trainer.data.formats import Example
from finetune_trainer.errors import BadInput

ALL_TRAIN = {"split": {"train": 1.0, "validation": 0.0, "test": 0.0}}
PAIRS = [{"prompt": f"the fox {number}", "completion": "lazy dog"} for number in range(10)]


@pytest.fixture
def t5_job(job):
    """The job's model is a T5: its positions have no end, whatever its config says of lengths."""
    config = {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True,
        "vocab_size": 400, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "n_positions": 16,
        "decoder_start_token_id": 2, "pad_token_id": 2, "eos_token_id": 1,
    }  # fmt: skip
    (job.model / "config.json").write_text(json.dumps(config))
    return job


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("form", ["prompt-completion", "instruction"])
def test_source_and_target_end_once_and_the_target_is_learnt(make_tokenizer, adds_bos, adds_eos, form):
    tokenizer = make_tokenizer(None, adds_bos=adds_bos, adds_eos=adds_eos)
    example = Example(prompt="hello</s>", completion="the fox")
    if form == "instruction":
        turns = ({"role": "user", "content": "hello</s>"}, {"role": "assistant", "content": "the fox"})
        example = Example(messages=turns)
    [row] = PairEncoder(tokenizer).encode([example])
    begin = "<s>" if adds_bos else ""
    assert tokenizer.decode(row.ids[: row.prompt_length]) == f"{begin}hello</s>"
    assert tokenizer.decode(row.ids[row.prompt_length :]) == f"{begin}the fox</s>"
    assert row.mask.tolist() == [i >= row.prompt_length for i in range(len(row.ids))]
    assert row.special_text, "the source holds an end token"
    assert PairEncoder(tokenizer).stop_ids() == [tokenizer.eos_token_id]


def test_each_half_is_cut_for_itself(make_tokenizer):
    tokenizer = make_tokenizer(None)
    encoder = PairEncoder(tokenizer)
    long, short = "fox " * 30, "dog"
    for prompt, completion in ((long, short), (short, long), (long, long)):
        example = Example(prompt=prompt, completion=completion)
        [row] = encoder.encode([example])
        assert encoder.length(row) > 8
        cut = encoder.shortened(example, row, 8)
        source, target = cut.ids[: cut.prompt_length], cut.ids[cut.prompt_length :]
        assert encoder.length(cut) == 8
        assert cut.mask.sum() == len(target)
        assert source[-1] == tokenizer.eos_token_id, "an encoder always sees where its source ends"
        ends = target[-1] == tokenizer.eos_token_id
        assert ends == (completion == short), "a target that was cut must not teach to stop there"
        if prompt == short:
            assert source.tolist() == row.ids[: row.prompt_length].tolist()


def test_a_translator_marks_source_and_target_each_in_its_own_way(make_tokenizer):
    from tokenizers import processors

    tokenizer = make_tokenizer(None)

    def marked(name):
        mark = tokenizer.convert_tokens_to_ids(name)
        return processors.TemplateProcessing(single=f"{name} $A </s>", special_tokens=[(name, mark), ("</s>", 1)])

    backend = tokenizer.backend_tokenizer
    backend.post_processor = marked("<|im_start|>")
    tokenizer._switch_to_target_mode = lambda: setattr(backend, "post_processor", marked("<|im_end|>"))
    tokenizer._switch_to_input_mode = lambda: setattr(backend, "post_processor", marked("<|im_start|>"))
    for _ in range(2):
        [row] = PairEncoder(tokenizer).encode([Example(prompt="hello", completion="world")])
        assert tokenizer.decode(row.ids) == "<|im_start|>hello</s><|im_end|>world</s>"


def test_pairs_are_prepared_for_the_model(t5_job):
    uri = t5_job.write("rows.jsonl", [*PAIRS, {"prompt": "fox " * 90, "completion": "dog " * 60}])
    data, _, shards = t5_job.prepare(uri, data={"maxLength": 40, **ALL_TRAIN})
    assert (shards.task, data.format, data.truncated_rows) == ("seq2seq-lm", "prompt-completion", 1)
    lengths, prompts = shards.train.lengths(), [shards.train.prompt_length(row) for row in range(shards.train.rows)]
    assert max(prompts) == 40
    assert max(lengths - prompts) == 40
    assert data.trained_tokens == int(sum(lengths - prompts)), "the whole target is learnt"
    assert any("has a source or a target longer than 40 tokens" in note for note in shards.manifest["notes"])
    whole, _, _ = t5_job.prepare(uri, data=ALL_TRAIN)
    assert whole.truncated_rows == 0, "n_positions bounds nothing"


@pytest.mark.parametrize(
    ("row", "groups", "words"),
    [
        ({"text": "a"}, {}, "an encoder-decoder model learns pairs of input and output"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {},
            "an encoder-decoder model learns pairs",
        ),
        (PAIRS[0], {"data": {"lossOn": "all"}}, "the decoder is trained on outputs alone"),
        (PAIRS[0], {"data": {"packing": True}}, "only causal language models take packed rows"),
    ],
)
def test_what_an_encoder_decoder_cannot_learn_is_refused(t5_job, row, groups, words):
    with pytest.raises(BadInput, match=words) as caught:
        t5_job.prepare(t5_job.write("rows.jsonl", [row]), **groups)
    assert caught.value.cause.code == "InvalidSpec"
    assert "model.task is not set: for this model and data it is seq2seq-lm" in caught.value.cause.remedy


def test_a_row_of_which_an_encoder_reads_a_part_is_refused(t5_job):
    row = {"instruction": "hello", "output": "world"}
    for more in ({"system": "fox"}, {"history": [["a", "b"]]}, {"tools": [{"name": "f"}]}):
        uri = t5_job.write("rows.jsonl", [row, {**row, **more}])
        with pytest.raises(BadInput, match=r"rows\.jsonl:2: has a system prompt, a history or tools, and an encoder"):
            t5_job.prepare(uri)
