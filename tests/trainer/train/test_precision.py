"""Adapters in fp32 under autocast."""

from __future__ import annotations

from typing import Any

import torch
from finetune_trainer.train.engines.precision import computes_in_bf16
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from tests.trainer.engine_models import VOCABULARY, model_of


def model(method: str) -> nn.Module:
    made = model_of("causal-lm", method)
    draw = torch.Generator().manual_seed(3)
    for name, parameter in made.named_parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
        elif "lora_B" in name:
            nn.init.normal_(parameter, generator=draw)
    return made.eval()


def step(one: Any) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and bytes kept for the backward."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(1, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = one(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, sum(kept.values())


def test_inputs_of_adapters_are_not_copied_and_nothing_else_changes() -> None:
    usual, ours = model("lora"), model("lora")
    forward: Any = usual.forward

    def mixed(**given: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(**given)

    usual.forward = mixed  # type: ignore[method-assign]
    computes_in_bf16(ours, torch.device("cpu"))
    (loss, gradients, kept), (our_loss, our_gradients, we_keep) = step(usual), step(ours)
    assert our_loss == loss
    assert our_gradients.keys() == gradients.keys()
    assert all(torch.equal(our_gradients[name], gradient) for name, gradient in gradients.items())
    assert we_keep < 0.93 * kept


def test_magnitudes_are_still_computed_in_fp32() -> None:
    dora = model("dora")
    computes_in_bf16(dora, torch.device("cpu"))
    assert all(getattr(module, "cast_input_dtype_enabled", True) for module in dora.modules())
