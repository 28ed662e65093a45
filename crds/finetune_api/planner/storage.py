"""Room that a job takes on its claims: shards and checkpoints on the workspace, the result in the output."""

from __future__ import annotations

from finetune_api.planner import parameters
from finetune_api.planner.facts import PlanFacts
from finetune_api.spec import FineTuneJobSpec

_BYTES_A_TOKEN = 4 + 1 / 8
"""A token id and its bit of the loss mask in a shard."""
_BYTES_A_ROW = 64
_MARGIN = 64 * 2**20
"""Reports, logs, tokenizer."""


def bytes_of(spec: FineTuneJobSpec, facts: PlanFacts) -> int:
    """Over both claims, at the most: the best checkpoint, those that are kept, and the one being written."""
    count = parameters.count(spec, facts.model, labels=facts.data.labels)
    data = facts.data
    held = data.rows + data.validation_rows + data.test_rows
    shards = int(data.tokens / data.rows * held * _BYTES_A_TOKEN) + held * _BYTES_A_ROW
    states = 3 + (1 if spec.training.ema else 0)  # weights and two moments in fp32
    checkpoints = (spec.checkpoint.keep + 2) * states * 4 * count.trainable
    weights = facts.model.weight_bytes or 2 * facts.model.parameters
    result = weights if spec.method.type == "full" else 4 * count.trainable
    downloaded = weights if spec.model.parsed.remote else 0
    return shards + checkpoints + 2 * result + downloaded + data.bytes + _MARGIN
