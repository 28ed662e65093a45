"""Cross-entropy of an output head without its logits: from hidden states at the trained positions straight to loss and gradients.

The rows are taken in large chunks. Of each chunk the logits live only until the gradients are known, which is in the
forward already: what waits for the backward is as large as the hidden states and, where the head is trained, as its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch.autograd.function import once_differentiable

from finetune_trainer.tasks.base import IGNORED

LOGITS_IN_A_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Elements of the largest logits that exist at once, by device type: what the cache holds on a CPU, thick products on a GPU."""


@dataclass(frozen=True, slots=True)
class After:
    """What a model does to the product of its head: logits = cap * tanh(scale * z / cap), or scale * z without a cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            z = z * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def backward_(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """From the gradient at the logits to that at the product, in place."""
        if self.cap is not None:
            grad.mul_(1 - (logits / self.cap).square())
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


def fused_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    after: After,
    label_smoothing: float = 0.0,
    chunk_elements: int | None = None,
) -> torch.Tensor:
    """Sum of the cross-entropies in nats, a float32 scalar.

    hidden [k, width], weight [vocabulary, width], bias [vocabulary] or None, labels [k] with IGNORED where nothing counts.
    The softmax is in float32; the products are in autocast's type where autocast is on, else in the hidden states' own.
    """
    size = chunk_elements or LOGITS_IN_A_CHUNK.get(hidden.device.type, LOGITS_IN_A_CHUNK["cuda"])
    rows = max(1, size // weight.shape[0])
    return _Fused.apply(hidden, weight, bias, labels, after, label_smoothing, rows, torch.is_grad_enabled())


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, after, smoothing, rows, training):  # type: ignore[no-untyped-def]
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        to_hidden, to_weight, to_bias = (training and needed for needed in ctx.needs_input_grad[:3])
        d_hidden = torch.empty_like(hidden) if to_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if to_bias else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
            for h, y, into in zip(
                hidden.to(dtype).split(rows),
                labels.split(rows),
                (d_hidden if to_hidden else hidden).split(rows),
                strict=True,
            ):
                logits = log_p = grad = None  # of the chunk before, which would stay beside this one's
                counts, target = (y != IGNORED)[:, None], y.clamp_min(0)[:, None]
                logits = after(F.linear(h, w, b))
                log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
                nll = log_p.gather(1, target).mul_(smoothing - 1)
                if smoothing:
                    nll -= smoothing * log_p.mean(dim=-1, keepdim=True)
                total += (nll * counts).sum()
                if not (to_hidden or to_weight or to_bias):
                    continue
                grad = log_p.exp_()
                grad.scatter_add_(1, target, torch.full_like(nll, smoothing - 1))
                if smoothing:
                    grad -= smoothing / weight.shape[0]
                grad = after.backward_(grad.mul_(counts), logits).to(dtype)
                if to_hidden:
                    torch.mm(grad, w, out=into) if into.dtype == dtype else into.copy_(grad @ w)
                if d_weight is not None:
                    d_weight.addmm_(grad.T, h) if dtype == torch.float32 else d_weight.add_(grad.T @ h)
                if d_bias is not None:
                    d_bias += grad.sum(dim=0, dtype=torch.float32)
        ctx.gradients = (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        gradients = [None if one is None else one.mul_(upstream) for one in ctx.gradients]
        ctx.gradients = None
        return (*gradients, None, None, None, None, None)
