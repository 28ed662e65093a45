"""Causal language models: each trained token is predicted from those before it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.tasks.base import IGNORED, Batch, Rows


class CausalTask:
    """See `base.Task`. Rows are padded on the right: no token of a causal model sees what follows it, so no mask is needed.

    `inputs`: input_ids [rows, width] and logits_to_keep [k], the positions (the same for all rows) whose logits are
    needed. `labels` [rows, k]: the token that follows each, or IGNORED.
    """

    def __init__(self, *, pad: int) -> None:
        self._pad = pad

    def collate(self, split: Split, rows: Rows, *, counted: bool = True) -> Batch:
        tokens = [split.tokens(int(row)) for row in rows]
        masks = [split.mask(int(row)) for row in rows]
        width = max(len(row) for row in tokens)
        ids = np.full((len(tokens), width), self._pad, dtype=np.int64)
        labels = np.full((len(tokens), width), IGNORED, dtype=np.int64)  # column j holds the token at j + 1
        for i, (row, mask) in enumerate(zip(tokens, masks, strict=True)):
            ids[i, : len(row)] = row
            if counted:
                labels[i, : len(row) - 1][mask[1:]] = row[1:][mask[1:]]
        keep = np.flatnonzero((labels != IGNORED).any(axis=0))
        if not len(keep):
            keep = np.zeros(1, dtype=np.int64)
        return Batch(
            {"input_ids": torch.from_numpy(ids), "logits_to_keep": torch.from_numpy(keep)},
            torch.from_numpy(np.ascontiguousarray(labels[:, keep])),
        )

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
        logits = model(**batch.inputs, use_cache=False).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            batch.labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )

    def weight(self, split: Split, rows: Rows) -> int:
        return sum(int(np.count_nonzero(split.mask(int(row))[1:])) for row in rows)
