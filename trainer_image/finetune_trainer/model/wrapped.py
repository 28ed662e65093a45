"""The transformers model inside whatever wraps it: an engine, an adapter."""

from __future__ import annotations

from typing import Any

from torch import nn


def innermost(model: nn.Module) -> Any:
    """The transformers model itself, for what it knows; it is called through its wrappers all the same."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):  # peft
            inner = inner.get_base_model()
        elif not hasattr(inner, "config") and isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module  # DistributedDataParallel
        elif type(inner).__name__.endswith("Engine"):  # DeepSpeed's forwards attributes of its module
            inner = inner.module
        else:
            return inner


def virtual_tokens(model: nn.Module) -> int:
    """Positions that an adapter of virtual tokens puts before each row; 0 without one, or where it is disabled."""
    config = _virtual(model)
    return int(config.num_virtual_tokens) if config is not None else 0


def virtual_embeddings(model: nn.Module) -> bool:
    """Whether virtual tokens stand before each row as embeddings, not as keys and values of every layer."""
    config = _virtual(model)
    return config is not None and str(config.peft_type.value) != "PREFIX_TUNING"


def _virtual(model: nn.Module) -> Any:
    """Configuration of an adapter of virtual tokens that is in force, None without one."""
    inner: Any = model
    while not hasattr(inner, "active_peft_config") and isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    config = getattr(inner, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return None
    return config if inner.has_active_enabled_adapter else None
