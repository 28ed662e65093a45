"""Whether the workspace can take what the job will write, before anything is computed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from finetune_api.contract import RunConfig

from finetune_trainer.errors import BadInput, accessing
from finetune_trainer.prepare.model import ModelFacts
from finetune_trainer.sources import room

_MARGIN_BYTES = 64 << 20
_SHARD_BYTES_PER_DATA_BYTE = 4  # ids of 4 bytes for tokens of about 3 bytes, twice while they are divided into splits


def check_workspace(config: RunConfig) -> None:
    """Raises BadInput when the run's folder cannot be made or written."""
    uri, parsed = config.spec.workspace.uri, config.spec.workspace.parsed
    if parsed.scheme == "pvc" and not (Path(config.claims_root) / parsed.claim).is_dir():
        raise BadInput(f"spec.workspace.uri: claim {parsed.claim} is not mounted in this pod", code="NotFound")
    with accessing("spec.workspace.uri", uri):
        config.layout.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=config.layout.root, prefix=".probe-"):
            pass


def bytes_needed(config: RunConfig, model: ModelFacts, data_bytes: int) -> int:
    """What shards, checkpoints and the result will take on the workspace, roughly and rather too much."""
    checkpoints = config.spec.checkpoint.keep + 2  # the best one, and one being written
    if config.spec.method.type == "full":
        state = model.parameters * 12 * checkpoints + model.weight_bytes  # fp32 weights and two moments
    else:
        rank = config.spec.method.lora.rank if config.spec.method.lora else 16
        share = min(1.0, rank / 256)  # of the model's size; r16 on every linear layer is about one percent
        state = int(model.parameters * share * 12 * checkpoints * 0.25)
    return data_bytes * _SHARD_BYTES_PER_DATA_BYTE + state + _MARGIN_BYTES


def check_room(config: RunConfig, needed: int) -> None:
    """Raises BadInput (StorageFull) when the workspace has less than `needed` bytes free."""
    free = shutil.disk_usage(config.layout.root).free
    if free < needed:
        raise BadInput(
            f"spec.workspace.uri: {config.spec.workspace.uri} has {room.text(free)} free, but shards and checkpoints need about {room.text(needed)}",
            code="StorageFull",
            remedy="name a larger volume, delete what is no longer needed on it, or keep fewer checkpoints (spec.checkpoint.keep)",
        )
