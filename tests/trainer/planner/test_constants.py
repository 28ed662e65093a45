"""The planner reckons with the trainer's own constants."""

from __future__ import annotations

from finetune_api.planner import memory
from finetune_trainer.tasks import fused_loss
from finetune_trainer.train import saving
from finetune_trainer.train.engines import fsdp2, zero


def test_memory_is_reckoned_with_the_trainers_constants() -> None:
    assert memory.LOGITS_IN_A_CHUNK == fused_loss.LOGITS_IN_A_CHUNK
    assert memory.HELD_GRADIENT_BYTES == zero._HELD_GRADIENT_BYTES == fsdp2._HELD_GRADIENT_BYTES
    assert memory._BUCKET_ELEMENTS == zero._LARGEST_BUCKET_ELEMENTS
    assert memory.STAGED_BYTES == saving.SMALL_BYTES
