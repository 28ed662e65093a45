"""What a rival really learns from: tokens of its micro-batches, without padding."""

from __future__ import annotations

from typing import Any


class RealTokens:
    """Counts those of a transformers.Trainer, from its making on."""

    def __init__(self, trainer: Any) -> None:
        self._count = 0
        self._training_step = trainer.training_step
        trainer.training_step = self._counting

    def taken(self) -> int:
        """Since the last call."""
        count, self._count = self._count, 0
        return count

    def _counting(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        self._count += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        return self._training_step(model, inputs, *args, **kwargs)
