"""Classifiers of texts: one label a row, or any number of them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.model.wrapped import innermost, virtual_embeddings
from finetune_trainer.tasks.base import IGNORED, Batch, Rows
from finetune_trainer.tasks.seq2seq import filled


class ClassificationTask:
    """See `base.Task`. What counts are rows, so that the mean loss is a row's.

    One label a row: cross entropy. Several: binary cross entropy of each label, summed over the labels of a row (so that
    a row does not weigh less the more labels there are to choose from).

    `inputs`: input_ids and attention_mask [rows, width], filled up on the right; token_type_ids where the model tells a
    text from its pair. `labels`: [rows] numbers of labels, or IGNORED; or [rows, labels] of 0 and 1 in float32, with
    `extra["counts"]` [rows]. A decoder reads its answer at a row's last token, which it finds by the pad token: the
    model's own pad_token_id must be `pad`.
    """

    def __init__(self, *, pad: int, multi_label: bool, segments: bool = False) -> None:
        self._pad = pad
        self._segments = segments
        self.multi_label = multi_label

    def collate(self, split: Split, rows: Rows, *, counted: bool = True) -> Batch:
        tokens = [split.tokens(int(row)) for row in rows]
        inputs = {
            "input_ids": torch.from_numpy(filled(tokens, self._pad)),
            "attention_mask": torch.from_numpy(filled([np.ones(len(row)) for row in tokens], 0)),
        }
        if self._segments:
            begins = [split.prompt_length(int(row)) for row in rows]
            kinds = [np.arange(len(row)) >= begin for row, begin in zip(tokens, begins, strict=True)]
            inputs["token_type_ids"] = torch.from_numpy(filled(kinds, 0))
        if self.multi_label:
            wanted = np.zeros((len(tokens), split.label_count), dtype=np.float32)
            for i, row in enumerate(rows):
                wanted[i, list(split.labels(int(row)))] = 1
            counts = torch.full((len(tokens),), float(counted))
            return Batch(inputs, torch.from_numpy(wanted), {"counts": counts})
        label = [split.labels(int(row))[0] if counted else IGNORED for row in rows]
        return Batch(inputs, torch.tensor(label, dtype=torch.int64))

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """[rows, labels], float32."""
        inner = innermost(model)
        options = {"use_cache": False} if "use_cache" in inspect.signature(type(inner).forward).parameters else {}
        with _at_the_last_token(model, inner, batch):
            return model(**batch.inputs, **options).logits.float()

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
        return self.loss_of(self.logits(model, batch), batch, label_smoothing=label_smoothing)

    def loss_of(self, logits: torch.Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
        """As `loss`, of logits that are there already. Smoothing takes several labels halfway towards 1/2, each for itself."""
        if self.multi_label:
            wanted = batch.labels * (1 - label_smoothing) + label_smoothing / 2
            of_rows = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)
            return (of_rows * batch.extra["counts"]).sum()
        return F.cross_entropy(
            logits, batch.labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
        )

    def predicted(self, logits: torch.Tensor) -> list[tuple[int, ...]]:
        """Of each row the label that is likeliest, or those that are likelier than not."""
        if self.multi_label:
            return [tuple(np.flatnonzero(row).tolist()) for row in (logits > 0).cpu().numpy()]
        return [(label,) for label in logits.argmax(dim=1).tolist()]

    def weight(self, split: Split, rows: Rows) -> int:
        """Rows."""
        return len(rows)


@contextlib.contextmanager
def _at_the_last_token(model: nn.Module, inner: nn.Module, batch: Batch) -> Iterator[None]:
    """Where virtual tokens come as embeddings, a decoder sees no token ids and reads its answer at the last position, be
    that filled up or not. So its head, which works on all positions, is given the one of a row's last token alone."""
    if not (virtual_embeddings(model) and isinstance(getattr(inner, "score", None), nn.Module)):
        yield
        return
    mask = batch.inputs["attention_mask"]
    from_the_right = mask.sum(dim=1) - mask.shape[1] - 1

    def pick(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states = given[0]  # [rows, virtual tokens and width, hidden]
        rows = torch.arange(len(states), device=states.device)
        return (states[rows, states.shape[1] + from_the_right][:, None],)

    hook = inner.score.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
