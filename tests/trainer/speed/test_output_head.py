"""Working the head at trained positions only changes neither the loss nor any gradient, whatever the head is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.tasks import output_head, probes
from finetune_trainer.tasks.causal import padded, targets_of
from finetune_trainer.tasks.fused_loss import After
from torch import nn

from .conftest import gradients, same_gradients

HEADS = {
    "llama": After(),
    "qwen3": After(),
    "gemma2": After(cap=3.0),
    "cohere": After(0.25),
    "granite": After(1 / 8),
    "phi": After(),
}


def transformers_own(model: nn.Module, rows: list[np.ndarray], trained: list[np.ndarray]) -> torch.Tensor:
    """Sum over the trained tokens."""
    batch = padded(rows, trained, pad=0)
    labels = torch.full_like(batch.inputs["input_ids"], -100)
    mask = torch.zeros_like(labels)
    for i, (row, at) in enumerate(zip(rows, trained, strict=True)):
        labels[i, at] = torch.from_numpy(row[at]).long()
        mask[i, : len(row)] = 1
    return model(input_ids=batch.inputs["input_ids"], attention_mask=mask, labels=labels).loss * len(batch.labels)


@pytest.mark.parametrize("family", HEADS)
def test_loss_and_gradients_are_transformers_own(
    make_model: Callable[..., nn.Module], rows: Any, trained: Any, family: str
) -> None:
    model = make_model(family)
    batch = padded(rows, trained, pad=0)
    expected = transformers_own(model, rows, trained)
    grads = gradients(model, expected)
    way, after = probes._way(model, rows, "fp32")
    assert (way, after) == ("fused", HEADS[family])
    for way in ("fused", "picked", "full"):
        loss = output_head.loss_of(model, batch.inputs, targets_of(batch), way, after=after)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        same_gradients(gradients(model, loss), grads)


@pytest.mark.parametrize(
    ("adapter", "way"),
    [
        ({"target_modules": ["q_proj"]}, "fused"),
        ({"target_modules": ["q_proj", "lm_head"]}, "picked"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "fused"),
    ],
    ids=["beside", "on the head", "head trained whole"],
)
def test_adapters(make_model: Callable[..., nn.Module], rows: Any, trained: Any, adapter: Any, way: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **adapter))
    batch = padded(rows, trained, pad=0)
    expected = transformers_own(model, rows, trained)
    grads = gradients(model, expected)
    found, after = probes._way(model, rows, "fp32")
    assert found == way
    loss = output_head.loss_of(model, batch.inputs, targets_of(batch), found, after=after)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    same_gradients(gradients(model, loss), grads)
    with model.disable_adapter(), torch.no_grad():
        loss = output_head.loss_of(model, batch.inputs, targets_of(batch), found, after=after)
        torch.testing.assert_close(loss, transformers_own(model, rows, trained), rtol=1e-5, atol=0)


def test_an_unknown_deed_after_the_head_means_logits(make_model: Callable[..., nn.Module], rows: Any) -> None:
    """A config that tells nothing of what the model does to its logits, as a new architecture's would."""
    model = make_model("granite")
    forward = type(model).forward

    class Bent(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = forward(self, *args, **kwargs)
            out.logits = out.logits - 0.1 * out.logits**2
            return out

    model.__class__ = Bent
    assert probes._way(model, rows, "fp32") == ("picked", After())


def test_virtual_tokens_before_the_rows_move_nothing(
    make_model: Callable[..., nn.Module], rows: Any, trained: Any
) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    batch = padded(rows, trained, pad=0)
    expected = transformers_own(model, rows, trained)
    loss = output_head.loss_of(model, batch.inputs, targets_of(batch), "fused", after=After())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_the_head_is_itself_again(make_model: Callable[..., nn.Module], rows: Any, trained: Any) -> None:
    model = make_model("llama")
    batch = padded(rows, trained, pad=0)
    ids = batch.inputs["input_ids"]
    before = model(input_ids=ids).logits
    broken = dict(batch.inputs) | {"position_ids": "no tensor"}
    with pytest.raises(Exception, match=r".+"):
        output_head.loss_of(model, broken, targets_of(batch), "fused", after=After())
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(model(input_ids=ids).logits, before)
