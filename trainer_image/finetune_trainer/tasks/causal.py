"""Causal language models: each trained token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.model.attention import no_mask
from finetune_trainer.tasks import output_head
from finetune_trainer.tasks.base import IGNORED, Batch, Rows
from finetune_trainer.tasks.fused_loss import After
from finetune_trainer.tasks.output_head import Targets, Way


class CausalTask:
    """See `base.Task`. `packs`, `few_shapes`, `way` and `after` are how it works for this very model: the probes at start may choose
    faster ones.

    A batch is rows padded on the right (no token of a causal model sees what follows it, so no mask is needed), or, when
    packing, all rows end to end in one. `labels` [k]: the trained tokens, or one IGNORED; `extra` holds, for each, row
    and column of the position that predicts it (see `output_head.Targets`).
    """

    def __init__(self, *, pad: int) -> None:
        self._pad = pad
        self.packs = self.few_shapes = False
        self.way: Way = "picked"
        self.after = After()

    def collate(self, split: Split, rows: Rows, *, counted: bool = True) -> Batch:
        tokens = [split.tokens(int(row)) for row in rows]
        trained = [np.flatnonzero(split.mask(int(row))) if counted else _NOTHING for row in rows]
        if self.packs:
            return packed(tokens, trained, pad=self._pad, few_shapes=self.few_shapes)
        return padded(tokens, trained, pad=self._pad)

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
        return output_head.loss_of(
            model, batch.inputs, targets_of(batch), self.way, after=self.after, label_smoothing=label_smoothing
        )

    def weight(self, split: Split, rows: Rows) -> int:
        return sum(int(np.count_nonzero(split.mask(int(row))[1:])) for row in rows)


_NOTHING = np.zeros(0, dtype=np.int64)


def padded(tokens: Sequence[np.ndarray], trained: Sequence[np.ndarray], *, pad: int) -> Batch:
    """Rows one below the other. `trained` holds, of each row, the indices (from 1) of the tokens that count."""
    width = max(len(row) for row in tokens)
    ids = np.full((len(tokens), width), pad, dtype=np.int64)
    for i, row in enumerate(tokens):
        ids[i, : len(row)] = row
    columns = np.concatenate(trained) - 1
    labels = np.concatenate([row[at] for row, at in zip(tokens, trained, strict=True)])
    return _batch({"input_ids": torch.from_numpy(ids)}, _row_of_each(trained), columns, labels, width)


def packed(tokens: Sequence[np.ndarray], trained: Sequence[np.ndarray], *, pad: int, few_shapes: bool = False) -> Batch:
    """Rows end to end in one, each with positions from 0 and as a segment of its own.

    `few_shapes`: the number of segments and their greatest length are rounded up to powers of two, by segments of one pad token. cuDNN
    makes a new plan for each pair of them, which takes longer than the attention itself, and keeps it.
    """
    if few_shapes:
        fill = _power_of_two(len(tokens)) - len(tokens)
        tokens, trained = [*tokens, *[np.array([pad])] * fill], [*trained, *[_NOTHING] * fill]
    lengths = np.array([len(row) for row in tokens])
    longest = int(lengths.max())
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    total = int(bounds[-1])
    columns = np.concatenate([at + start - 1 for at, start in zip(trained, bounds, strict=False)])
    labels = np.concatenate([row[at] for row, at in zip(tokens, trained, strict=True)])
    inputs = {
        "input_ids": torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None],
        "position_ids": torch.from_numpy(np.arange(total) - np.repeat(bounds[:-1], lengths))[None],
        "attention_mask": no_mask(),
        "cu_seq_lens_q": torch.from_numpy(bounds.astype(np.int32)),
        "max_length_q": _power_of_two(longest) if few_shapes else longest,
    }
    return _batch(inputs, np.zeros(len(columns), dtype=np.int64), columns, labels, total)


def _power_of_two(number: int) -> int:
    """The least that is not below."""
    return 1 << (number - 1).bit_length()


def targets_of(batch: Batch) -> Targets:
    return Targets(batch.extra["row"], batch.extra["column"], batch.labels)


def _row_of_each(trained: Sequence[np.ndarray]) -> np.ndarray:
    return np.repeat(np.arange(len(trained)), [len(at) for at in trained])


def _batch(
    inputs: dict[str, torch.Tensor | int], row: np.ndarray, column: np.ndarray, labels: np.ndarray, width: int
) -> Batch:
    if not len(labels):  # the forward runs all the same, and gradients are zero
        row, column, labels = (np.array([value], dtype=np.int64) for value in (0, 0, IGNORED))
    return Batch(
        inputs,
        torch.from_numpy(labels.astype(np.int64)),
        {"row": torch.from_numpy(row.astype(np.int64)), "column": torch.from_numpy((column - width).astype(np.int64))},
    )
