"""What a forward over text reaches. Multimodal models have more: vision towers, projectors, attention to images.

Nothing of that can learn from text. An adapter on it stays zero, and DistributedDataParallel waits for its gradients forever.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch
from finetune_api.spec import FineTuneJobSpec
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from finetune_trainer.errors import first_line
from finetune_trainer.model import load
from finetune_trainer.model.sentences import some

log = logging.getLogger("finetune.model")

_TOKENS = 16


def unreached(model: PreTrainedModel, spec: FineTuneJobSpec) -> frozenset[str]:
    """Names of the parameters of a multimodal model that get no gradient from text, by a forward and backward without any weights."""
    config = model.config
    if config.get_text_config() is config:
        return frozenset()
    try:
        with FakeTensorMode(), torch.enable_grad():
            empty = load.skeleton(config, load.auto_class(load.of(model).purpose.task), spec).eval()
            ids = torch.ones((1, _TOKENS), dtype=torch.long, device="meta")
            given = {"input_ids": ids} | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})
            names, parameters = zip(*empty.named_parameters(), strict=True)
            logits = empty(**given, use_cache=False).logits
            gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    except Exception as error:  # code of any make, which may look at values that are not there
        log.warning("Cannot find what text reaches in this model, so all of it counts: %s", first_line(error))
        return frozenset()
    found = frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)
    if found:
        log.info("Not trained, since text does not reach it: %s.", some(outermost(model, found)))
    return found


def outermost(model: nn.Module, parameters: Collection[str]) -> list[str]:
    """Names of the largest modules that hold none but these parameters."""
    other = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in parameters]
    whole: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in whole)
        own = next(module.parameters(), None) is not None
        if name and own and not inside and not any(each.startswith(f"{name}.") for each in other):
            whole.append(name)
    return whole
