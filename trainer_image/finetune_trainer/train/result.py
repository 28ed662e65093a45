"""`trained/`: what a finished training leaves for publish, sealed.

trained/model/            adapter or whole model in Hugging Face layout, with its tokenizer and chat template
trained/evaluation.json   rows, metrics of base and tuned, samples
trained/manifest.json     its config hash, the step whose weights these are and why, and what the termination message said
"""

from __future__ import annotations

from typing import Any

from finetune_api.contract import TerminationMessage
from torch import nn

from finetune_trainer import sealed
from finetune_trainer.model.save import save
from finetune_trainer.stage import StageContext
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointReader
from finetune_trainer.train.fence import Fence
from finetune_trainer.train.identity import result_hash
from finetune_trainer.train.trained import EVALUATION, FORMAT, KIND, MODEL


def seal(
    context: StageContext,
    fence: Fence,
    *,
    module: nn.Module,
    best: Checkpoint,
    tokenizer: Any,
    evaluation: dict[str, Any],
) -> None:
    """Write it whole: the module as it was adapted, with the weights of `best`. Rank 0 only.

    Raises OSError when the storage is full, PeerLost when a newer attempt has taken over.
    """
    config = context.config
    word = TerminationMessage(stage="train", outcome="succeeded", exit_code=0, **context.known)
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "config_hash": result_hash(config.spec),
        "attempt": config.attempt,
        "best": {"step": best.step, "metric": best.metric, "value": best.value},
        "word": word.wire(),
    }
    with sealed.sealing(config.layout.trained, manifest) as temporary:
        save(module, CheckpointReader(best.folder).weights(), config.spec, temporary / MODEL)
        tokenizer.save_pretrained(temporary / MODEL)
        sealed.write_json(temporary / EVALUATION, evaluation)
        fence.check()
