"""The base under an adapter, as it was before it was tuned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from finetune_trainer.model.wrapped import virtual_tokens


def has_base(module: nn.Module) -> bool:
    """Whether the base is still there, under an adapter."""
    return hasattr(module, "disable_adapter")


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Inside, a module with an adapter is its base. A head that was trained beside the adapter is the one that training began with."""
    if not virtual_tokens(module):
        with module.disable_adapter():
            yield
        return
    # By hand: under virtual tokens peft's own way leaves a trained head in force, and fails for classifiers.
    from peft.utils import ModulesToSaveWrapper

    heads = [part for part in module.modules() if isinstance(part, ModulesToSaveWrapper)]
    own = module.__dict__.get("forward")
    module.forward = module.base_model.__call__
    module._adapters_disabled = True
    for head in heads:
        head.enable_adapters(False)
    try:
        yield
    finally:
        for head in heads:
            head.enable_adapters(True)
        module._adapters_disabled = False
        if own is None:
            del module.forward
        else:
            module.forward = own
