"""NEFTune's noise: as large as it should be, only in training, never on padding, the same after a resume."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from finetune_trainer.errors import BadInput
from finetune_trainer.tasks.base import Batch
from finetune_trainer.train.neftune import Neftune, row_lengths
from torch import nn

WIDTH, HIDDEN, ALPHA = 9, 64, 5.0


class Model(nn.Module):
    """Nothing but its embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, HIDDEN)
        nn.init.zeros_(self.embed.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed(input_ids)


def batch(**inputs: torch.Tensor) -> Batch:
    return Batch({"input_ids": torch.ones(2, WIDTH, dtype=torch.long), **inputs}, torch.zeros(0))


def noise(step: int, lengths: list[int], *, rank: int = 0, seed: int = 0, training: bool = True) -> torch.Tensor:
    model = Model().train(training)
    neftune = Neftune(model, alpha=ALPHA, seed=seed, rank=rank, device=torch.device("cpu"))
    one = batch()
    neftune.begin(step)
    neftune.prepare(one, lengths)
    return model(one.inputs["input_ids"]).detach()


def test_noise_is_uniform_and_scaled_by_each_row_s_own_length() -> None:
    rows = torch.stack([noise(step, [WIDTH, 4]) for step in range(100)])
    for row, length in ((0, WIDTH), (1, 4)):
        limit = ALPHA / (length * HIDDEN) ** 0.5
        drawn = rows[:, row, :length]
        assert drawn.abs().max() <= limit
        assert drawn.abs().max() > 0.99 * limit
        assert drawn.std() == pytest.approx(limit / 3**0.5, rel=0.02)
        assert drawn.mean().abs() < 0.02 * limit
    assert rows[:, 1, 4:].count_nonzero() == 0, "padding gets none"


def test_noise_depends_on_seed_step_and_rank_alone() -> None:
    assert torch.equal(noise(3, [WIDTH, 4]), noise(3, [WIDTH, 4]))
    same = noise(3, [WIDTH, 4])
    for other in (noise(4, [WIDTH, 4]), noise(3, [WIDTH, 4], rank=1), noise(3, [WIDTH, 4], seed=1)):
        assert not torch.equal(same, other)


def test_there_is_none_when_the_model_is_measured() -> None:
    assert noise(0, [WIDTH, 4], training=False).count_nonzero() == 0


def test_only_the_batch_s_own_ids_get_noise() -> None:
    """A decoder's input, or the text that virtual tokens begin with, goes through the same embeddings."""
    model = Model().train()
    neftune = Neftune(model, alpha=ALPHA, seed=0, rank=0, device=torch.device("cpu"))
    assert model(torch.ones(2, WIDTH, dtype=torch.long)).count_nonzero() == 0
    one = batch()
    neftune.begin(0)
    neftune.prepare(one, [WIDTH, WIDTH])
    assert model(torch.ones(2, WIDTH, dtype=torch.long)).count_nonzero() == 0
    assert model(one.inputs["input_ids"].view(-1, WIDTH)).count_nonzero() > 0


def test_a_model_that_it_cannot_reach_is_refused() -> None:
    """Or else a job would be trained without what it asks for."""

    class Copies(Model):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.embed(input_ids.clone())

    for model in (Model(), Copies()):
        neftune = Neftune(model.train(), alpha=ALPHA, seed=0, rank=0, device=torch.device("cpu"))
        one = batch()
        neftune.begin(0)
        neftune.prepare(one, [WIDTH, WIDTH])
        model(one.inputs["input_ids"])
        if isinstance(model, Copies):
            with pytest.raises(BadInput, match="neftuneAlpha: Copies does not look up its input"):
                neftune.check()
        else:
            neftune.check()


def test_lengths_of_padded_masked_and_packed_rows() -> None:
    assert row_lengths(batch(), [9, 2]).tolist() == [[9] * 9, [2, 2] + [0] * 7]
    mask = torch.tensor([[1] * 5 + [0] * 4, [0] * 6 + [1] * 3])
    assert row_lengths(batch(attention_mask=mask), [0, 0]).tolist() == [[5] * 5 + [0] * 4, [0] * 6 + [3] * 3]
    ids = torch.ones(1, 9, dtype=torch.long)
    positions = torch.tensor([[0, 1, 2, 3, 0, 0, 1, 0, 1]])
    packed = Batch({"input_ids": ids, "position_ids": positions}, torch.zeros(0))
    assert row_lengths(packed, [4, 1, 2, 2]).tolist() == [[4] * 4 + [1] + [2] * 4]


@pytest.mark.parametrize("method", ["full", "lora", "prompt", "prefix"])
@pytest.mark.parametrize("family", ["Llama", "GPT2", "OPT", "Bert", "T5", "Bart"])
def test_noise_reaches_the_input_of_every_family(family: str, method: str) -> None:
    model, task = tiny(family)
    if method != "full":
        model = peft.get_peft_model(model, adapter(method, task))
    neftune = Neftune(model.train(), alpha=ALPHA, seed=0, rank=0, device=torch.device("cpu"))
    one = Batch({"input_ids": torch.ones(2, WIDTH, dtype=torch.long)}, torch.zeros(0))
    more = {"decoder_input_ids": torch.ones(2, WIDTH, dtype=torch.long)} if task == "SEQ_2_SEQ_LM" else {}
    neftune.begin(0)
    neftune.prepare(one, [WIDTH, WIDTH])
    model(**one.inputs, attention_mask=torch.ones(2, WIDTH, dtype=torch.long), **more)
    neftune.check()


def tiny(family: str) -> tuple[nn.Module, str]:
    small = {"vocab_size": 30, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "pad_token_id": 0}
    pair = {"vocab_size": 30, "d_model": 16, "decoder_start_token_id": 0, "pad_token_id": 0}
    bart = {
        f"{half}_{name}": size
        for half in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    }
    made = {
        "Llama": ("LlamaForCausalLM", small | {"intermediate_size": 16}, "CAUSAL_LM"),
        "GPT2": ("GPT2LMHeadModel", {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2}, "CAUSAL_LM"),
        "OPT": ("OPTForCausalLM", small | {"ffn_dim": 16, "word_embed_proj_dim": 16}, "CAUSAL_LM"),
        "Bert": ("BertForSequenceClassification", small | {"intermediate_size": 16}, "SEQ_CLS"),
        "T5": ("T5ForConditionalGeneration", pair | {"d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}, "SEQ_2_SEQ_LM"),
        "Bart": ("BartForConditionalGeneration", pair | bart, "SEQ_2_SEQ_LM"),
    }  # fmt: skip
    architecture, sizes, task = made[family]
    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    return kind(kind.config_class(**sizes)), task


def adapter(method: str, task: str) -> peft.PeftConfig:
    if method == "lora":
        return peft.LoraConfig(task_type=task, target_modules="all-linear", r=2)
    kind = peft.PromptTuningConfig if method == "prompt" else peft.PrefixTuningConfig
    return kind(task_type=task, num_virtual_tokens=2)
