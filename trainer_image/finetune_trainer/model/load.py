"""The base model from its folder, and the adapter on it."""

from __future__ import annotations

from pathlib import Path

import torch
from finetune_api.method import LoraSpec
from finetune_api.spec import FineTuneJobSpec
from torch import nn

from finetune_trainer.errors import BadInput

_SHOWN = 12


def load(folder: Path, spec: FineTuneJobSpec) -> nn.Module:
    """The causal language model in `folder`, in evaluation mode, on the CPU, in the precision it is held in while training.

    `model.written_in` is the precision of its files. Raises BadInput (InvalidModel) when it cannot be read, or when its weights are not those that its config describes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        written_in = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=_held_in(spec), output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # safetensors, transformers and the file system raise many kinds
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise
        raise BadInput(
            f"spec.model: {spec.model.uri} cannot be loaded: {_first_line(error)}",
            code="InvalidModel",
            remedy="the folder must hold config.json and *.safetensors of a causal language model that transformers knows",
        ) from error
    wrong = sorted(str(name) for name in report["missing_keys"]) or sorted(
        str(key) for key in report["mismatched_keys"]
    )
    if wrong:
        raise BadInput(
            f"spec.model: the weights in {spec.model.uri} do not fit its config.json: {_some(wrong)} "
            + ("is missing" if len(wrong) == 1 else "are missing or of another shape"),
            code="InvalidModel",
            remedy="copy the whole model folder again",
        )
    model.written_in = written_in or torch.float32
    return model


def adapt(model: nn.Module, spec: FineTuneJobSpec) -> nn.Module:
    """Make trainable what `spec.method` says. The adapter's first weights depend on the seed alone.

    Raises BadInput (InvalidSpec) when a target module does not exist.
    """
    if spec.method.type == "full":
        return model.requires_grad_(True)
    from peft import LoraConfig, TaskType, get_peft_model

    lora = spec.method.lora or LoraSpec()
    if lora.target_modules is not None:
        _check_targets(model, lora.target_modules)
    alpha = lora.alpha if lora.alpha is not None else 2 * lora.rank
    torch.manual_seed(spec.training.seed)
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=lora.rank,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # others read adapter_config.json as integers
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules or "all-linear",
        ),
    )


def count(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and all."""
    numbers = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in numbers if trains), sum(n for n, _ in numbers)


def _held_in(spec: FineTuneJobSpec) -> torch.dtype:
    """Full fine-tuning keeps fp32 weights; a frozen base may lie in bf16."""
    return torch.bfloat16 if spec.training.precision == "bf16" and spec.method.type != "full" else torch.float32


def _check_targets(model: nn.Module, wanted: list[str]) -> None:
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    for index, target in enumerate(wanted):
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            there = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise BadInput(
                f"spec.method.lora.targetModules[{index}]: {target!r} is no linear layer of this model; it has {_some(there)}",
                code="InvalidSpec",
                remedy="name some of these, or leave targetModules out to adapt them all",
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:400]
