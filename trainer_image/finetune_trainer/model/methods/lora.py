"""Low-rank adapters beside a frozen model: lora, dora, and qlora, whose model is quantised."""

from __future__ import annotations

from typing import Any

import torch
from finetune_api.method import LoraSpec
from finetune_api.spec import FineTuneJobSpec
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.model import load, reached, sharded, targets, tied
from finetune_trainer.model.methods.kinds import task_type
from finetune_trainer.model.purpose import Purpose


def settings(model: PreTrainedModel, spec: FineTuneJobSpec, purpose: Purpose) -> Any:
    """peft's LoraConfig for `spec.method.lora`. Raises BadInput (InvalidSpec) for a name that the model does not have."""
    from peft import LoraConfig

    lora = spec.method.lora or LoraSpec()
    dora = spec.method.type == "dora"
    head = load.of(model).head
    unreached = reached.unreached(model, spec)
    whole, tie = tied.together(model, targets.saved(model, lora.modules_to_save or (), unreached=unreached))
    whole += [name for name in head if name not in whole]
    alpha = lora.alpha if lora.alpha is not None else 2 * lora.rank
    return LoraConfig(
        task_type=task_type(purpose),
        r=lora.rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # others read adapter_config.json as integers
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=dora,
        target_modules=targets.modules(model, lora, head=head, unreached=unreached),
        target_parameters=targets.parameters(model, lora, dora=dora, unreached=unreached),
        modules_to_save=whole or None,
        ensure_weight_tying=tie,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


@torch.no_grad()
def measure_magnitudes(net: nn.Module) -> None:
    """DoRA's first magnitudes, from weights in fp32: rounded ones would change the model before the first step."""
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.utils.integrations import dequantize_module_weight

    for module in net.modules():
        for layer in getattr(module, "lora_magnitude_vector", {}).values():
            if isinstance(layer, DoraLinearLayer):
                with sharded.gathered(module.get_base_layer()):
                    weight = dequantize_module_weight(module.get_base_layer()).float()
                rows = weight.T if layer.fan_in_fan_out else weight
                layer.weight = nn.Parameter(torch.linalg.norm(rows, dim=1))
