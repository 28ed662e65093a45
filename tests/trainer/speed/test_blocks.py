"""Checkpointing keeps less and gives the same; compiled blocks take rows of any length without compiling again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetune_trainer.errors import BadInput
from finetune_trainer.model.checkpointing import checkpoint_activations
from finetune_trainer.model.compile import blocks_of, compile_blocks
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from .conftest import VOCABULARY, gradients, same_gradients

CPU = torch.device("cpu")
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


class Calls(TorchDispatchMode):
    """Counts calls of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        self.of[name] = self.of.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def step(model: nn.Module, ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], int, dict[str, int]]:
    """Gradients, bytes that the forward kept for the backward, and calls of operators in both."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with Calls() as calls:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        grads = gradients(model, loss)
    return grads, sum(kept.values()), calls.of


def test_checkpointing(make_model: Callable[..., nn.Module]) -> None:
    ids = torch.randint(2, VOCABULARY, (2, 24))
    results = {}
    for kind in ("none", "selective", "full"):
        model = make_model("llama").train()
        checkpoint_activations(model, kind)  # type: ignore[arg-type]
        results[kind] = step(model, ids)
    plain, size, calls = results["none"]
    layers = 2
    assert calls[ATTENTION] == layers
    for kind, attentions in (("selective", layers), ("full", 2 * layers)):
        grads, smaller, again = results[kind]
        same_gradients(grads, plain)
        assert smaller < 0.8 * size
        assert again[ATTENTION] == attentions


def test_checkpointing_reaches_into_an_adapter(make_model: Callable[..., nn.Module]) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).train()
    ids = torch.randint(2, VOCABULARY, (2, 9))
    plain, _, _ = step(model, ids)
    checkpoint_activations(model, "full")
    grads, _, calls = step(model, ids)
    assert grads
    same_gradients(grads, plain)
    assert calls[ATTENTION] == 4


def test_a_model_that_cannot_is_refused() -> None:
    with pytest.raises(BadInput, match=r"training\.activationCheckpointing: Linear cannot"):
        checkpoint_activations(nn.Linear(2, 2), "full")


def test_compiled_blocks_take_any_length(make_model: Callable[..., nn.Module]) -> None:
    from torch._dynamo.utils import counters

    plain, model = make_model("llama"), make_model("llama")
    torch._dynamo.reset()
    assert compile_blocks(model, CPU, backend="eager") == 2
    graphs = []
    for rows, width in ((2, 5), (3, 9), (1, 17), (4, 30), (2, 64)):
        ids = torch.randint(2, VOCABULARY, (rows, width))
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[2]
    assert 0 < graphs[-1] <= 4
    torch._dynamo.reset()


@pytest.mark.parametrize(("device", "language"), [("cpu", "C++"), ("cuda", "C")])
def test_no_compiler_is_one_sentence(
    make_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, device: str, language: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BadInput) as raised:
        compile_blocks(make_model("llama"), torch.device(device))
    assert f"training.compile: this image has no {language} compiler" in str(raised.value)


def test_no_blocks_is_one_sentence() -> None:
    assert blocks_of(nn.Linear(2, 2)) == []
    with pytest.raises(BadInput, match="no repeated layers were found in Linear"):
        compile_blocks(nn.Linear(2, 2), CPU)
