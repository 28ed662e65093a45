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
        return PrefixTuningConfig(**common, **_cache_shape(model, spec))
    # In an encoder-decoder model the encoder alone gets them, as in the paper.
    return PromptTuningConfig(
        **common,
        num_transformer_submodules=1,
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        token_dim=model.get_input_embeddings().weight.shape[1],  # some configurations have other words for it
        num_layers=model.config.get_text_config().num_hidden_layers,
        num_attention_heads=getattr(model.config.get_text_config(), "num_attention_heads", 1),
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


def _cache_shape(model: PreTrainedModel, spec: FineTuneJobSpec) -> dict[str, int]:
    """Of the keys and values that a prefix stands for, as the model itself makes them of one token. No weights are needed for that.

    Raises BadInput (InvalidSpec) for a model with layers that have none, or whose keys and values differ in width.
    """
    empty: Any = load.skeleton(model.config, load.auto_class(load.of(model).purpose.task), spec)
    ids = torch.zeros((1, 1), dtype=torch.long, device="meta")
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    try:
        cache = empty(**given, use_cache=True).get("past_key_values")
    except RuntimeError:  # its code looks at values, which are not there
        return _usual_shape(model.config)
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    keys = [getattr(layer, "keys", None) for layer in layers]
    if not keys or any(each is None for each in keys):
        raise BadInput(
            f"spec.method.type: prefix tuning hands keys and values to every layer, and a {model.config.model_type} model has layers without any",
            code="InvalidSpec",
            remedy="take method.type prompt or lora",
        )
    if any(each.keys.shape != each.values.shape for each in layers):
        raise BadInput(
            f"spec.method.type: prefix tuning needs keys and values of one width, and those of a {model.config.model_type} model have two",
            code="InvalidSpec",
            remedy="take method.type prompt or lora",
        )
    _, heads, _, width = max((each.shape for each in keys), key=lambda shape: shape[1] * shape[3])
    return {"num_attention_heads": heads, "token_dim": width * heads, "num_layers": len(keys)}


def _usual_shape(config: Any) -> dict[str, int]:
    """The same by the commonest names of a configuration's fields."""
    heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    width = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = getattr(config, "decoder_layers", None) or config.num_hidden_layers
    return {"num_attention_heads": heads, "token_dim": width * heads, "num_layers": layers}
