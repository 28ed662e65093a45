"""The loss: sum of negative log-likelihoods over the tokens that count. Dividing by their number is the caller's."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

from finetune_trainer.train.batches import IGNORED, Batch


def nll_sum(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Sum in nats over the batch's trained tokens, a float32 scalar. Logits are computed only where they are needed."""
    logits = model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=batch.keep).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
