"""`trained/`: what a finished training leaves for publish, sealed.

trained/model/            adapter or whole model in Hugging Face layout, with its tokenizer and chat template
trained/evaluation.json   rows, metrics of base and tuned, samples
trained/manifest.json     its config hash and what the termination message said
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.contract import TerminationMessage
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import EvaluationStatus, MetricRow
from torch import nn

from finetune_trainer import sealed
from finetune_trainer.stage import StageContext

KIND = "trained"
FORMAT = 1
MODEL = "model"
EVALUATION = "evaluation.json"


def recorded(context: StageContext, folder: Path, run_hash: str) -> bool:
    """Whether this run was finished before; then its result is noted for the termination message."""
    manifest = sealed.read_manifest(folder)
    if manifest is None or (manifest.get("kind"), manifest.get("config_hash")) != (KIND, run_hash):
        return False
    word = TerminationMessage.model_validate(manifest["word"])
    context.note(**{name: getattr(word, name) for name in _NOTED})
    context.progress.update(percent=100.0, step=word.step or 0, total_steps=word.step or 0, force=True)
    return True


_NOTED = ("step", "resumed_from_step", "last_checkpoint", "metrics", "evaluation")


def status_of(evaluation: dict[str, Any]) -> EvaluationStatus:
    return EvaluationStatus(
        rows=evaluation["rows"],
        generated_rows=evaluation.get("generatedRows"),
        metrics=[MetricRow(**row) for row in evaluation["metrics"]],
    )


def seal(
    context: StageContext, folder: Path, run_hash: str, *, module: nn.Module, tokenizer: Any, evaluation: dict[str, Any]
) -> None:
    """Write it whole. Rank 0 only; the module holds the best weights. Raises OSError when the storage is full."""
    spec = context.config.spec
    word = TerminationMessage(stage="train", outcome="succeeded", exit_code=0, **context.known)
    manifest = {"kind": KIND, "format": FORMAT, "config_hash": run_hash, "attempt": context.config.attempt}
    manifest["word"] = word.wire()
    with sealed.sealing(folder, manifest) as temporary:
        _save_model(module, spec, temporary / MODEL)
        tokenizer.save_pretrained(temporary / MODEL)
        sealed.write_json(temporary / EVALUATION, evaluation)


def _save_model(module: nn.Module, spec: FineTuneJobSpec, folder: Path) -> None:
    if spec.method.type == "lora":
        for adapter in module.peft_config.values():
            adapter.base_model_name_or_path = spec.model.uri.removeprefix("hf://")  # not this pod's mount
            adapter.revision = spec.model.revision
        module.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # publish writes the card
    else:
        module.save_pretrained(folder)
