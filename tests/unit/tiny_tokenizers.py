"""Tiny tokenizers (bytes and a few merges) with templates of several families, made in memory."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Marks the answers without their end token, as some published templates do."""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Writes the last answer otherwise than earlier ones, as reasoning models' templates do."""
SHOUTING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'] | upper }}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' if not loop.last else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Rewrites earlier answers, so that they cannot be found again, and begins the last turn otherwise than a prompt for it."""
REASONING = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
"""Prompts for a thought that the conversations do not have."""
assert "<think>" in REASONING
ENDLESS = (
    "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
"""Ends no turn with a token at all."""
ALWAYS_PROMPTING = CHATML.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
"""Writes a generation prompt behind every conversation, asked for or not, as Llama 3's first template did."""
CUTTING = REASONING.replace(
    "m['content']", "(m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'])"
)
"""Writes of each answer only what is behind its thought, as DeepSeek-R1's template does."""
RECALLING = (
    "{% for m in messages %}{% set parts = m.content.split('</think>') if m.role == 'assistant' else [m.content] %}"
    "{% set thought = m.reasoning_content or (parts[0].split('<think>')[-1].strip() if parts | length > 1 else '') %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if thought and loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ parts[-1].lstrip() + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""Writes the thought of the last answer, wherever the row has it, and drops those of earlier ones, as Qwen3's template does."""
CUTTING_ALONE = CUTTING.replace("<think>\n' }}{% endif %}", "' }}{% endif %}")
"""The same, and leaves the beginning of a thought to the model, as that template did at first."""
DROPPING_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
TEMPLATES = {
    "chatml": CHATML,
    "marked": CHATML_MARKED,
    "llama2": LLAMA2,
    "thinking": THINKING,
    "endless": ENDLESS,
    "none": None,
    "shouting": SHOUTING,
    "reasoning": REASONING,
    "always prompting": ALWAYS_PROMPTING,
    "cutting": CUTTING,
    "cutting answers alone": CUTTING_ALONE,
    "recalling": RECALLING,
    "dropping system": DROPPING_SYSTEM,
}


def make(
    template: str | None = CHATML, *, adds_bos: bool = False, adds_eos: bool = False, pad: str | None = "<pad>"
) -> Any:
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        ["hello hello world, the quick brown fox jumps over the lazy dog"] * 3,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if adds_bos or adds_eos:
        raw.post_processor = processors.TemplateProcessing(
            single=("<s> " if adds_bos else "") + "$A" + (" </s>" if adds_eos else ""),
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    ender = "</s>" if template in (LLAMA2, ENDLESS, None) else "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token=ender,
        pad_token=pad or ender,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    tokenizer.finetune_template_is_default = template is None
    return tokenizer


def make_llama(template: str | None = CHATML, *, normalised: bool = False, fallback: bool = True) -> Any:
    """SentencePiece's way as Llama 2 and Mistral have it: spaces as a sign, one more before each piece of text, unknown
    characters as bytes (without `fallback` as <unk>, as T5 has it). `normalised`: text is also put into Unicode's compatible
    form, so that it changes its length."""
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(byte_fallback=fallback, unk_token="<unk>"))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    raw.normalizer = normalizers.Sequence([normalizers.NFKC()] * normalised + steps)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    raw.train_from_iterator(
        ["hello hello world, the quick brown fox jumps over the lazy dog"] * 3,
        trainers.BpeTrainer(
            vocab_size=380,
            special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)] * fallback,
            show_progress=False,
        ),
    )
    state = json.loads(raw.to_str())  # bytes are ordinary tokens
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    ender = "</s>" if template in (LLAMA2, ENDLESS, None) else "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<s>",
        eos_token=ender,
        unk_token="<unk>",
        pad_token=ender,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    tokenizer.finetune_template_is_default = template is None
    return tokenizer
