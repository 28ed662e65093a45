"""The base model: 0.4 million parameters, trained from nothing until it does its own tasks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from finetune_trainer.quickstart.text import FIELDS, Row, base_row

SPECIAL = ("<pad>", "<unk>", "<user>", "<assistant>", "<end>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<assistant>' }}{% generation %}{{ message['content'] + '<end>' }}{% endgeneration %}"
    "{% else %}{{ '<user>' + message['content'] + '<end>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
VOCABULARY = 800
"""More than the rows can fill: byte pairs run out before, so that every value becomes one token."""

BATCH, STEPS, PEAK_LR, WARMUP = 32, 3000, 2e-3, 0.05
GOOD_ENOUGH, GATE_ROWS, GATE_EVERY_STEPS, MOST_STEPS = 0.98, 300, 20, 1000
"""The gate usually opens after about 300 steps. It counts steps, not seconds, so that a seed gives one model."""


class NotLearnt(RuntimeError):
    """The base model did not reach GOOD_ENOUGH in time (MOST_STEPS)."""


def make_base(folder: Path, seed: int, say: Callable[[str], None]) -> None:
    """Write a model folder in Hugging Face layout. Raises NotLearnt."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # so small a model gains little from more, and loses much where other work runs
    rng = random.Random(seed)
    tokenizer = make_tokenizer(random.Random(seed + 1))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.08,  # 0.02 makes copying appear late and at random
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    _train(model, tokenizer, rng, say)
    disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    rows = [base_row(rng) for _ in range(4000)]
    lists = [" ".join(words) for words in FIELDS.values()] * 3
    tokenizer.train_from_iterator(
        [text for row in rows for text in row] + lists,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=128
    )
    fast.chat_template = TEMPLATE
    for words in FIELDS.values():
        for word in words:
            if len(fast.encode(f" {word}", add_special_tokens=False)) != 1:
                raise AssertionError(f"{word!r} is not one token")
    return fast


def _train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, say: Callable[[str], None]
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate)
    for step in range(1, MOST_STEPS + 1):
        ids, labels = _batch([base_row(rng) for _ in range(BATCH)], tokenizer)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % GATE_EVERY_STEPS == 0:
            share = exact(model, tokenizer, [base_row(rng) for _ in range(GATE_ROWS)])
            say(f"  step {step}: loss {loss.item():.3f}, {share:.0%} of its own tasks right")
            if share >= GOOD_ENOUGH:
                return
    raise NotLearnt(f"the base model did not learn its own tasks within {MOST_STEPS} steps")


def _learning_rate(step: int) -> float:
    warmup = STEPS * WARMUP
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))


@torch.no_grad()
def exact(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> float:
    """Share of rows whose every answer token is the most likely one: what greedy generation would write, in one forward."""
    model.eval()
    ids, labels = _batch(rows, tokenizer)
    guess = model(input_ids=ids).logits[:, :-1].argmax(-1)
    wanted = labels[:, 1:]
    model.train()
    return ((guess == wanted) | (wanted == -100)).all(dim=1).float().mean().item()


def _batch(rows: list[Row], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded at the end, and labels that are -100 outside of the answers. Both int64 of shape [rows, longest]."""
    prompts = tokenizer([f"<user>{row.prompt}<end><assistant>" for row in rows], add_special_tokens=False).input_ids
    answers = tokenizer([f"{row.answer}<end>" for row in rows], add_special_tokens=False).input_ids
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[number, :end] = torch.tensor(prompt + answer)
        labels[number, len(prompt) : end] = torch.tensor(answer)
    return ids, labels
