"""The loss without logits is the loss with them, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from finetune_trainer.tasks.base import IGNORED
from finetune_trainer.tasks.fused_loss import After, fused_cross_entropy


def _inputs(bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (23,))
    labels[[3, 11]] = IGNORED
    return hidden, weight, torch.randn(50, requires_grad=True) if bias else None, labels


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("after", [After(), After(0.25), After(cap=2.0), After(0.5, 5.0)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_loss_and_gradients(rows: int, smoothing: float, after: After, bias: bool) -> None:
    hidden, weight, b, labels = _inputs(bias)
    logits = after(F.linear(hidden, weight, b))
    plain = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
    wanted = [one for one in (hidden, weight, b) if one is not None]
    expected = torch.autograd.grad(plain * 0.37, wanted)
    fused = fused_cross_entropy(
        hidden, weight, b, labels, after=after, label_smoothing=smoothing, chunk_elements=50 * rows
    )
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(fused * 0.37, wanted), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_it() -> None:
    hidden, weight, _, labels = _inputs(False)
    weight.requires_grad_(False)
    loss = fused_cross_entropy(hidden, weight, None, labels, after=After())
    kept = [one for one in loss.grad_fn.gradients if one is not None]
    assert [one.shape for one in kept] == [hidden.shape]
    loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, _, labels = _inputs(False)
    with torch.no_grad():
        loss = fused_cross_entropy(hidden, weight, None, labels, after=After())
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, labels, reduction="sum").detach())


def test_large_logits_stay_finite() -> None:
    hidden, weight, _, labels = _inputs(False)
    loss = fused_cross_entropy(hidden * 200, weight, None, labels, after=After())
    torch.testing.assert_close(loss, F.cross_entropy(200 * hidden @ weight.T, labels, reduction="sum"))


def test_under_autocast_products_are_bf16_and_sums_float32() -> None:
    hidden, weight, _, labels = _inputs(False)
    plain = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused_cross_entropy(hidden, weight, None, labels, after=After())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=2e-2, atol=0)
    loss.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
