"""Saving is collective: states are gathered from all ranks while rank 0 writes. Either all ranks go on, or all fail alike."""

from __future__ import annotations

from typing import Any

from finetune_trainer.train.checkpoint import Checkpoint, CheckpointStore
from finetune_trainer.train.engines.engine import Engine
from finetune_trainer.train.gang import Gang


def save(
    gang: Gang, engine: Engine, store: CheckpointStore | None, state: dict[str, Any], manifest: dict[str, Any]
) -> Checkpoint:
    """Seal a checkpoint. `store` is rank 0's. Raises OSError (StorageFull) or PeerLost on every rank when rank 0 could not."""
    tensors = engine.export()

    def seal() -> Checkpoint:
        assert store is not None
        try:
            return store.seal(tensors, state, manifest)
        except OSError:
            for _ in tensors:  # the others are in the middle of the same collectives
                pass
            raise

    if not gang.is_first:
        for _ in tensors:
            pass
    return gang.on_first(seal)
