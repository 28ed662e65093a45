"""Encoder-decoder models: the target's tokens are predicted from the source and from the target's tokens before them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.model.wrapped import innermost
from finetune_trainer.tasks.base import IGNORED, Batch, Rows


class Seq2SeqTask:
    """See `base.Task`. A row is its source, up to `prompt_length`, and then its target.

    `inputs`: input_ids and attention_mask [rows, source width], filled up on the right. `labels` [rows, target width]: the
    target's tokens, or IGNORED. What the decoder reads is made of them when the model is at hand, in the model's own way.
    """

    def __init__(self, *, pad: int) -> None:
        self._pad = pad

    def collate(self, split: Split, rows: Rows, *, counted: bool = True) -> Batch:
        sources, targets = [], []
        for row in map(int, rows):
            tokens, cut = split.tokens(row), split.prompt_length(row)
            sources.append(tokens[:cut])
            targets.append(np.where(split.mask(row)[cut:], tokens[cut:], IGNORED))
        ids = filled(sources, self._pad)
        mask = filled([np.ones(len(source)) for source in sources], 0)
        labels = filled(targets, IGNORED)
        if not counted:
            labels[:] = IGNORED
        return Batch(
            {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}, torch.from_numpy(labels)
        )

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
        decoder_input_ids = innermost(model).prepare_decoder_input_ids_from_labels(labels=batch.labels)
        logits = model(**batch.inputs, decoder_input_ids=decoder_input_ids, use_cache=False).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            batch.labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )

    def weight(self, split: Split, rows: Rows) -> int:
        """Tokens of the targets."""
        return sum(int(np.count_nonzero(split.mask(int(row))[split.prompt_length(int(row)) :])) for row in rows)


def filled(rows: list[np.ndarray], filler: int) -> np.ndarray:
    """int64 of shape [rows, longest], with `filler` on the right."""
    out = np.full((len(rows), max(len(row) for row in rows)), filler, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
