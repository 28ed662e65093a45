"""`trained/`: what a finished training leaves for publish, sealed.

trained/model/            adapter or whole model in Hugging Face layout, with its tokenizer and chat template
trained/evaluation.json   rows, metrics of base and tuned, samples
trained/manifest.json     its config hash and what the termination message said
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from finetune_api.contract import TerminationMessage
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import EvaluationStatus, MetricRow
from torch import nn

from finetune_trainer import sealed
from finetune_trainer.stage import StageContext
from finetune_trainer.train.checkpoint import CheckpointReader
from finetune_trainer.train.fence import Fence
from finetune_trainer.train.identity import config_hash
from finetune_trainer.train.trained import EVALUATION, FORMAT, KIND, MODEL


def status_of(evaluation: dict[str, Any]) -> EvaluationStatus:
    return EvaluationStatus(
        rows=evaluation["rows"],
        generated_rows=evaluation.get("generatedRows"),
        metrics=[MetricRow(**row) for row in evaluation["metrics"]],
    )


def seal(
    context: StageContext,
    fence: Fence,
    *,
    module: nn.Module,
    best: CheckpointReader,
    tokenizer: Any,
    evaluation: dict[str, Any],
) -> None:
    """Write it whole, with the weights of `best`. Rank 0 only; the module is of no other use after.

    Raises OSError when the storage is full, PeerLost when a newer attempt has taken over.
    """
    config = context.config
    word = TerminationMessage(stage="train", outcome="succeeded", exit_code=0, **context.known)
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "config_hash": config_hash(config.spec),
        "attempt": config.attempt,
        "word": word.wire(),
    }
    with sealed.sealing(config.layout.trained, manifest) as temporary:
        _save_model(module, best, config.spec, temporary / MODEL)
        tokenizer.save_pretrained(temporary / MODEL)
        sealed.write_json(temporary / EVALUATION, evaluation)
        fence.check()


def _save_model(module: nn.Module, best: CheckpointReader, spec: FineTuneJobSpec, folder: Path) -> None:
    """Adapters in fp32, as they were trained; a whole model in the precision that its files had before."""
    lora = spec.method.type == "lora"
    precision = torch.float32 if lora else module.written_in
    parameters = dict(module.named_parameters())
    for name, tensor in best.weights():  # the engine may hold only a rounded copy
        parameters[name].data = tensor.to(precision)
    if lora:
        for adapter in module.peft_config.values():
            adapter.base_model_name_or_path = spec.model.uri.removeprefix("hf://")  # not this pod's mount
            adapter.revision = spec.model.revision
        module.save_pretrained(folder, save_embedding_layers=False)  # they are never changed; "auto" asks a hub
    else:
        module.config.dtype = precision
        module.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # publish writes the card
