"""Attention over packed rows: several segments end to end in one row of the batch, none of which sees another.

Segments reach the attention as keyword arguments of the model's forward, which transformers hands down to every layer:
they pass through any wrapper, and a layer that is computed again gets them again. They have transformers' own names,
`cu_seq_lens_q` (int32 [segments + 1], where each begins and the last ends) and `max_length_q` (int).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

_FLASH_TYPES = (torch.bfloat16, torch.float16)
_LARGEST_FLASH_HEAD = 256


class NotPackable(ValueError):
    """A layer asks for something that packed attention does not do."""


def install() -> None:
    """Let transformers' `sdpa` do packed rows too, in this process. What is not packed goes to its own function, unchanged."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        if kwargs.get("cu_seq_lens_q") is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return packed_attention(module, query, key, value, **kwargs), None

    AttentionInterface.register("sdpa", attention)


def no_mask() -> torch.Tensor:
    """A mask of one element, that forbids: transformers hands a mask of four dimensions on as it is instead of making one, and packed attention needs none.

    A layer that took it for a mask would see nothing, which the probe at start notices.
    """
    return torch.zeros((1, 1, 1, 1), dtype=torch.bool)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Causal attention inside each segment: query [1, heads, tokens, d], key and value [1, key heads, tokens, d] -> [1, tokens, heads, d].

    Raises NotPackable for logit caps, attention sinks, position biases and caches.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias", "cache") if kwargs.get(name) is not None]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if unknown or not causal or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise NotPackable(f"{type(module).__name__} needs {', '.join(unknown) or 'attention that is not causal'}")
    # Rotary embeddings leave queries and keys in fp32 where autocast makes values bf16; the kernel takes one dtype.
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    flash = (
        query.is_cuda
        and query.dtype in _FLASH_TYPES
        and dropout == 0
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= _LARGEST_FLASH_HEAD
    )
    if flash:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        # One tensor for both: only then may cuDNN's kernel be taken, the fastest for causal attention.
        return varlen_attn(
            q,
            k,
            v,
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )[None]
    return _by_segment(query, key, value, cu_seq_lens_q, dropout, scaling, sliding_window)


@torch.compiler.disable
def _by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    lengths = bounds.diff().tolist()
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    out = []
    for q, k, v in parts:
        length = q.shape[2]
        band = None
        if window is not None and length > window:
            band = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - window)
        part = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=band,
            dropout_p=dropout,
            scale=scaling,
            is_causal=band is None,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out.append(part.transpose(1, 2))
    return torch.cat(out, dim=1)
