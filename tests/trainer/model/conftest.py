"""Tiny models of many families, made from their configuration classes, and what a test does with one: train, save, load plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.model import quantized
from finetune_trainer.model.adapt import adapt
from finetune_trainer.model.load import auto_class, load
from finetune_trainer.model.purpose import Purpose
from finetune_trainer.model.save import save
from torch import nn

VOCABULARY = 97
CAUSAL = Purpose("causal-lm")
PAIRS = Purpose("seq2seq-lm")
CLASSES = Purpose("sequence-classification", labels=("bad", "fair", "good"), pad=0)

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # large, so that a frozen head can say much
}
_IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 4}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _COMMON),
    "tied-llama": ("LlamaForCausalLM", {**_COMMON, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {**_COMMON, "head_dim": 4}),
    "mistral": ("MistralForCausalLM", _COMMON),
    "gemma2": ("Gemma2ForCausalLM", {**_COMMON, "head_dim": 4, "sliding_window": 8}),
    "gemma3": ("Gemma3ForCausalLM", {**_COMMON, "head_dim": 4, "sliding_window": 8}),
    "phi": ("PhiForCausalLM", _COMMON),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("OPTForCausalLM", {**_COMMON, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    "mixtral": ("MixtralForCausalLM", {**_COMMON, **_EXPERTS, "num_local_experts": 4}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {**_COMMON, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 8}),
    "t5": ("T5ForConditionalGeneration", {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}),
    "bert": ("BertForMaskedLM", {**_COMMON, "type_vocab_size": 2}),
}  # fmt: skip
"""Name -> the class that the files are written by, and its configuration's values."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "wide-llama": ("LlamaForCausalLM", {**_COMMON, "hidden_size": 64, "intermediate_size": 80}),
    "shared-experts": ("Qwen2MoeForCausalLM", {**_COMMON, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}),
    "glm-moe": ("Glm4MoeForCausalLM", {**_COMMON, **_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}),
    "deepseek": ("DeepseekV3ForCausalLM", {**_COMMON, **_EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}),
    "granite-moe": ("GraniteMoeForCausalLM", {**_COMMON, **_EXPERTS, "num_local_experts": 4}),
    "mamba": ("MambaForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    "falcon": ("FalconForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": True}),
    "bart": ("BartForConditionalGeneration", {"vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "init_std": 0.2}),
    "gemma3-images": ("Gemma3ForConditionalGeneration", {"text_config": {**_COMMON, "head_dim": 4, "sliding_window": 8}, "vision_config": {**_IMAGES, "vision_use_head": True}, "initializer_range": 0.2}),
    "wide-t5": ("T5ForConditionalGeneration", {**FAMILIES["t5"][1], "d_model": 64, "d_kv": 16, "d_ff": 64, "num_decoder_layers": 2}),
    "wide-bert": ("BertForMaskedLM", {**FAMILIES["bert"][1], "hidden_size": 64, "intermediate_size": 64}),
}  # fmt: skip
"""Mixtures of other makes, a recurrent model, keys and values of other shapes; and models wide enough to be quantised in whole blocks (but for one layer)."""


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """One thread, and no words of the libraries: the models are far too small for either."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """folder_of(family, dtype) -> its model's folder, written once."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def make(family: str, dtype: torch.dtype = torch.float32) -> Path:
        if (family, dtype) not in made:
            name, values = (FAMILIES | OTHERS)[family]
            model = getattr(transformers, name)
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(family) / "base"
            model(model.config_class(**values)).to(dtype).save_pretrained(folder)
            made[family, dtype] = folder
        return made[family, dtype]

    return make


def spec_of(method: dict[str, Any], **groups: Any) -> FineTuneJobSpec:
    """Resolved, as a stage gets it."""
    return resolve(
        FineTuneJobSpec.model_validate(
            {
                "model": {"uri": "pvc://models/base"},
                "method": method,
                "data": {"train": [{"uri": "pvc://datasets/rows.jsonl"}]},
                "compute": {"device": "cpu"},
                "workspace": {"uri": "pvc://scratch"},
                "output": {"uri": "pvc://out/result"},
                **groups,
            }
        ),
        decided={},
    )


def made(folder: Path, spec: FineTuneJobSpec, purpose: Purpose = CAUSAL, **how: Any) -> Any:
    """Loaded and adapted."""
    return adapt(load(folder, spec, purpose, adapter=how.get("adapter")), spec, **how)


def batch_of(purpose: Purpose) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=draw)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if purpose.classifies:
        return batch | {"labels": torch.tensor([0, 1, 2])}
    return batch | {"labels": ids if purpose.task == "causal-lm" else ids[:, :5].contiguous()}


def train(net: nn.Module, batch: dict[str, torch.Tensor], *, steps: int = 10, rate: float = 0.03) -> list[float]:
    """Losses, the last one after the last step."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=rate)
    net.train()
    losses = []
    for _ in range(steps):
        loss = net(**batch).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    with torch.no_grad():
        return [*losses, float(net(**batch).loss)]


def trained(net: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint would hold."""
    return {name: p.detach().float().clone() for name, p in net.named_parameters() if p.requires_grad}


def logits(net: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    net.eval()
    with torch.no_grad():
        return net(**batch).logits.float()


def plain(base: Path, result: Path, purpose: Purpose, **how: Any) -> Any:
    """What somebody else gets from the result, with peft and transformers alone; on any CPU, see quantized.keep_as_stored."""
    from peft import PeftModel

    auto = auto_class(purpose.task)
    labels = {"num_labels": len(purpose.labels)} if purpose.labels else {}
    if (result / "adapter_config.json").is_file():
        net = PeftModel.from_pretrained(auto.from_pretrained(base, **labels, **how), result)
    else:
        net = auto.from_pretrained(result, **how)
    quantized.keep_as_stored(net)
    return net


def saved(net: nn.Module, spec: FineTuneJobSpec, folder: Path) -> Path:
    """As `result` saves it: from a checkpoint's tensors, whatever the module itself holds by then."""
    tensors = trained(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.data = torch.empty(0)
    save(net, tensors, spec, folder)
    return folder
