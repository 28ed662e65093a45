"""Virtual tokens: before each row (prompt), or as keys and values in every layer (prefix)."""

from __future__ import annotations

from typing import Any

import torch
from finetune_api.method import PromptTuningSpec
from finetune_api.spec import FineTuneJobSpec
from transformers import PreTrainedModel

from finetune_trainer.errors import BadInput
from finetune_trainer.model import architecture, load
from finetune_trainer.model.methods.kinds import ADAPTER, task_type
from finetune_trainer.model.purpose import Purpose


def settings(model: PreTrainedModel, spec: FineTuneJobSpec, purpose: Purpose) -> Any:
    """peft's PrefixTuningConfig or PromptTuningConfig for `spec.method.promptTuning`. Raises BadInput (InvalidSpec)."""
    from peft import PrefixTuningConfig, PromptTuningConfig, PromptTuningInit

    architecture.check_virtual_tokens(spec.method.type, purpose.task, model.config)
    asked = spec.method.prompt_tuning or PromptTuningSpec()
    common = {
        "task_type": task_type(purpose),
        "num_virtual_tokens": asked.virtual_tokens,
        "modules_to_save": list(load.of(model).head) or None,
    }
    if spec.method.type == "prefix":
        return PrefixTuningConfig(**common, **_cache_shape(model))
    # In an encoder-decoder model the encoder alone gets them, as in the paper.
    return PromptTuningConfig(
        **common,
        num_transformer_submodules=1,
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        token_dim=model.get_input_embeddings().weight.shape[1],  # some configurations have other words for it
        num_layers=model.config.get_text_config().num_hidden_layers,
        num_attention_heads=model.config.get_text_config().num_attention_heads,
    )


@torch.no_grad()
def begin_with(net: Any, text: str, tokenizer: Any) -> None:
    """Let the virtual tokens begin as the embeddings of `text`, repeated or cut to their number. Raises BadInput (InvalidSpec) for a text without tokens."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise BadInput("spec.method.promptTuning.initText: the text has no token", code="InvalidSpec")
    weight = net.prompt_encoder[ADAPTER].embedding.weight
    repeated = [ids[i % len(ids)] for i in range(len(weight))]
    weight.copy_(net.word_embeddings(torch.tensor(repeated, device=net.word_embeddings.weight.device)))


def _cache_shape(model: PreTrainedModel) -> dict[str, int]:
    """Of the keys and values that a prefix stands for; peft's own guess knows only the commonest names."""
    config = model.config.get_text_config()
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None)
    heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    width = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    shape = {"num_attention_heads": heads}
    if layers is not None:
        shape["num_layers"] = layers
    if width is not None:
        shape["token_dim"] = width * heads
    return shape
