"""Packed rows give what they give alone: the same loss, the same gradients; and a model of which that is not true is found out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.errors import BadInput
from finetune_trainer.model import attention
from finetune_trainer.model.checkpointing import checkpoint_activations
from finetune_trainer.tasks import probes
from finetune_trainer.tasks.causal import CausalTask, packed, padded
from finetune_trainer.tasks.seq2seq import Seq2SeqTask
from finetune_trainer.train.engines.precision import computes_in_bf16
from finetune_trainer.train.micro_batches import pack
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .conftest import gradients, same_gradients

PACKABLE = ("llama", "qwen3", "mistral", "gemma", "cohere", "granite", "phi", "gpt2", "opt", "mixtral")


def settled(
    model: nn.Module, packing: bool | None, *, precision: str | None = None, longest: int = 100
) -> tuple[CausalTask, list[str]]:
    task = CausalTask(pad=0)
    gang: Any = SimpleNamespace(device=torch.device("cpu"), gather=lambda value: [value])
    return task, probes.settle(task, model, spec(packing, precision), gang, longest=longest)


def spec(packing: bool | None = None, precision: str | None = None, **method: Any) -> FineTuneJobSpec:
    place = {"uri": "pvc://claim/x"}
    data = {"train": [place]} | ({} if packing is None else {"packing": packing})
    return resolve(
        FineTuneJobSpec.model_validate(
            {
                "model": place,
                "method": {"type": "full", **method},
                "data": data,
                "compute": {"device": "cpu"},
                "training": {"precision": precision},
                "workspace": place,
                "output": place,
            }
        ),
        decided={},
    )


@pytest.mark.parametrize("family", PACKABLE)
def test_loss_and_gradients(make_model: Callable[..., nn.Module], rows: Any, trained: Any, family: str) -> None:
    model = make_model(family)
    task, said = settled(model, True)
    assert task.packs, said
    apart = gradients(model, task.loss(model, padded(rows, trained, pad=0)))
    together = gradients(model, task.loss(model, packed(rows, trained, pad=0)))
    same_gradients(together, apart)
    with torch.no_grad():
        losses = [task.loss(model, lay(rows, trained, pad=0)) for lay in (padded, packed)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_segments_are_there_when_a_layer_is_computed_again(
    make_model: Callable[..., nn.Module], rows: Any, trained: Any, kind: Any
) -> None:
    model = make_model("llama")
    task, _ = settled(model, True)
    model.train()
    kept = gradients(model, task.loss(model, packed(rows, trained, pad=0)))
    checkpoint_activations(model, kind)
    same_gradients(gradients(model, task.loss(model, packed(rows, trained, pad=0))), kept)


def test_recurrent_state_would_mix_rows(make_model: Callable[..., nn.Module]) -> None:
    model = make_model("mamba")
    task, said = settled(model, None)
    assert not task.packs
    assert said[0].startswith("rows are padded, since ")
    with pytest.raises(BadInput, match=r"data\.packing: rows of this model cannot be packed: "):
        settled(model, True)


def test_an_attention_that_sees_everything_is_found_out(
    make_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(_: Any, query: Any, key: Any, value: Any, **__: Any) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)

    monkeypatch.setattr(attention, "packed_attention", careless)
    task, said = settled(make_model("llama"), None)
    assert not task.packs
    assert "see the rows before it" in said[0]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_rounding_of_other_kernels_is_no_reason_against_packing(
    make_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """As measured on a pretrained model in bf16: single logits differ by a fifth of the spread, their root mean square by a twentieth."""
    exact = attention.packed_attention

    def rounded(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = exact(*args, **kwargs)
        noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
        return (out * (1 + 0.06 * noise)).to(out.dtype)

    monkeypatch.setattr(attention, "packed_attention", rounded)
    model = make_model(family)
    computes_in_bf16(model, torch.device("cpu"))
    task, said = settled(model, True, precision="bf16")
    assert task.packs, said


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_rows_that_see_each_other_are_found_out_in_bf16(
    make_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    def careless(_: Any, query: Any, key: Any, value: Any, **__: Any) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)

    monkeypatch.setattr(attention, "packed_attention", careless)
    model = make_model(family)
    computes_in_bf16(model, torch.device("cpu"))
    task, said = settled(model, None, precision="bf16")
    assert not task.packs
    assert "see the rows before it" in said[0]


@pytest.mark.parametrize(
    ("apart", "moved", "mixture", "fine"),
    [
        (0.03, 0.0, False, True),
        (0.07, 0.0, False, True),
        (0.50, 0.0, False, False),
        (0.07, 0.07, False, False),  # kernels of one shape round alike
        (0.07, 0.07, True, True),  # but a mixture's experts get other numbers of tokens
        (0.50, 0.50, True, False),
        (float("nan"), 0.0, False, False),
    ],
)
def test_what_counts_as_rounding_in_bf16(apart: float, moved: float, mixture: bool, fine: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    alone, one, other = (torch.randn(17, 500, generator=draw) for _ in range(3))
    found = probes._differs(alone, alone + apart * one, alone + apart * one + moved * other, 6, "bf16", mixture)
    assert (found is None) == fine


@pytest.mark.parametrize(
    ("family", "changes", "packs"),
    [
        ("llama4", {"attention_chunk_size": 64}, False),
        ("qwen2-moe", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, False),
        ("mistral", {"sliding_window": 64}, True),
        ("gemma3", {"sliding_window": 64}, True),
    ],
)
def test_rows_longer_than_the_attention_window(
    make_model: Callable[..., nn.Module], family: str, changes: dict[str, Any], packs: bool
) -> None:
    """Windows far longer than the probe's rows; some models have theirs in the mask alone, which packed rows do without."""
    model = make_model(family, **changes)
    assert settled(model, None, longest=64)[0].packs
    task, said = settled(model, None, longest=65)
    assert task.packs == packs
    assert packs or said[0].endswith(
        "packed rows do not keep its attention window of 64 tokens, and rows have up to 65"
    )
    inner = {vars(each).get(name) for each in (model.config, *model.modules()) for name in changes}
    assert inner <= {None, *changes.values()}


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_windows_hold_in_long_packed_rows(make_model: Callable[..., nn.Module], family: str) -> None:
    model = make_model(family, sliding_window=64)
    task, _ = settled(model, None)
    draw = np.random.default_rng(2)
    rows = [draw.integers(2, 97, size=100), draw.integers(2, 97, size=90)]
    trained = [np.arange(1, len(row)) for row in rows]
    with torch.no_grad():
        losses = [task.loss(model, lay(rows, trained, pad=0)) for lay in (padded, packed)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


def test_positions_that_run_on_are_found_out(
    make_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def running_on(*args: Any, **kwargs: Any) -> Any:
        batch = packed(*args, **kwargs)
        batch.inputs["position_ids"] = torch.arange(batch.inputs["input_ids"].shape[1])[None]
        return batch

    monkeypatch.setattr(probes, "packed", running_on)
    task, _ = settled(make_model("gpt2"), None)
    assert not task.packs


def test_packing_is_left_out_where_it_was_not_wanted_or_cannot_be(make_model: Callable[..., nn.Module]) -> None:
    model = make_model("llama")
    assert not settled(model, False)[0].packs
    gang: Any = SimpleNamespace(device=torch.device("cpu"), gather=lambda value: [value, "another rank's model mixes"])
    task = CausalTask(pad=0)
    said = probes.settle(task, model, spec(None), gang, longest=100)
    assert not task.packs
    assert "another rank's model mixes" in said[0]
    assert probes.settle(Seq2SeqTask(pad=0), model, spec(None), gang, longest=100) == []


def test_probing_leaves_no_trace(make_model: Callable[..., nn.Module]) -> None:
    model = make_model("llama").train()
    before = torch.random.get_rng_state()
    settled(model, None)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_rows_that_are_not_packed_go_to_transformers_own_attention(make_model: Callable[..., nn.Module]) -> None:
    model = make_model("llama")
    ids = torch.randint(2, 90, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    attention.install()
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_the_variable_length_kernel_gets_one_dtype_under_autocast(
    make_model: Callable[..., nn.Module], rows: Any, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake GPU: with fp32 weights, rotary embeddings leave queries and keys in fp32 where values are in bf16."""
    taken: list[tuple[torch.dtype, ...]] = []

    def kernel(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> torch.Tensor:
        taken.append((q.dtype, k.dtype, v.dtype))
        return torch.empty_like(q)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    attention.install()
    with FakeTensorMode(), torch.device("cuda"):
        model = make_model("llama")
        inputs = packed(rows, trained, pad=0).inputs
        on_gpu = {name: each.to("cuda") if isinstance(each, torch.Tensor) else each for name, each in inputs.items()}
        with torch.autocast("cuda", torch.bfloat16):
            model(**on_gpu, use_cache=False)
    assert taken == [(torch.bfloat16,) * 3] * 2


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60).map(lambda values: np.array(values)),
    budget=st.integers(1, 2000),
)
def test_packs_keep_the_budget_and_all_rows(lengths: np.ndarray, budget: int) -> None:
    rows = np.argsort(-lengths, kind="stable")
    packs = pack(rows, lengths, budget)
    assert sorted(np.concatenate(packs).tolist()) == sorted(rows.tolist())
    for part in packs:
        assert len(part) == 1 or int(lengths[part].sum()) <= budget
        assert lengths[part].tolist() == sorted(lengths[part].tolist(), reverse=True)
