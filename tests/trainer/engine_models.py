"""Tiny models of each task and method, always the same: 2 layers of 16."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import nn

VOCABULARY = 97


def model_of(task: str, method: str) -> nn.Module:
    """With what `method` trains requiring gradients."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    if task == "seq2seq-lm":
        model: Any = T5ForConditionalGeneration(
            T5Config(
                vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
                decoder_start_token_id=0,
            )
        )  # fmt: skip
    else:
        kind = LlamaForCausalLM if task == "causal-lm" else LlamaForSequenceClassification
        model = kind(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, num_labels=3,
                tie_word_embeddings=task == "causal-lm",
            )
        )  # fmt: skip
    if method == "full":
        return model
    if method == "qlora":
        model = _quantised(model)
    if method == "frozen":
        model.requires_grad_(False)
        model.model.layers[-1].requires_grad_(True)
        return model
    return _adapted(model, task, method)


def _quantised(model: Any) -> Any:
    """In 4 bits, all but the head."""
    from safetensors.torch import save_model
    from transformers import BitsAndBytesConfig

    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_model(
            model, f"{folder}/model.safetensors", metadata={"format": "pt"}
        )  # transformers writes on rank 0 alone
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return type(model).from_pretrained(folder, quantization_config=how, device_map="cpu").requires_grad_(False)


def _adapted(model: Any, task: str, method: str) -> nn.Module:
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model

    kinds = {
        "causal-lm": TaskType.CAUSAL_LM,
        "seq2seq-lm": TaskType.SEQ_2_SEQ_LM,
        "sequence-classification": TaskType.SEQ_CLS,
    }
    kind = kinds[task]
    if method == "prompt":
        return get_peft_model(model, PromptTuningConfig(task_type=kind, num_virtual_tokens=3))
    if method == "prefix":
        return get_peft_model(model, PrefixTuningConfig(task_type=kind, num_virtual_tokens=3))
    return get_peft_model(
        model,
        LoraConfig(
            task_type=kind, r=3, lora_alpha=6, target_modules="all-linear", use_dora=method == "dora",
            exclude_modules=["lm_head"],
        ),
    )  # fmt: skip
