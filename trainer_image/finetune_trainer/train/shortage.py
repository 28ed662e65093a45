"""What to say when memory ran out: what was asked for, in which phase of which step, for which rows, and what would help."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from finetune_api.spec import FineTuneJobSpec

from finetune_trainer.errors import OutOfMemory
from finetune_trainer.stage import StageContext
from finetune_trainer.termination import allocation, out_of_memory


@contextlib.contextmanager
def explaining(
    context: StageContext, where: str | Callable[[], str], lengths: Callable[[], Sequence[int]] = tuple
) -> Iterator[None]:
    """Lack of memory within becomes OutOfMemory that says so.

    `where` is the phase, such as "the backward pass of step 7"; `lengths` are the tokens of the rows that were on their
    way. Both are asked only if it comes to that.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        phase, rows = where if isinstance(where, str) else where(), lengths()
        raise OutOfMemory(
            f"memory ran out in {phase} on rank {context.rank}{_rows(rows)}: {allocation(error)}",
            code="OutOfMemory",
            remedy=remedy(context.config.spec, context.world_size, sum(rows) if len(rows) > 1 else None),
        ) from error


def remedy(spec: FineTuneJobSpec, ranks: int, tokens: int | None) -> str:
    """What is not used yet, the cheapest first. `tokens` were in the micro-batch, if it can be made smaller."""
    training, compute = spec.training, spec.compute
    whole = spec.method.type == "full"
    ways = [f"lower compute.microBatchTokens to {max(1, tokens // 2)}"] if tokens else []
    if training.activation_checkpointing in (None, "none") and spec.method.type != "prefix":
        ways.append("set training.activationCheckpointing to selective or full")
    elif training.activation_checkpointing == "selective":
        ways.append("set training.activationCheckpointing to full")
    ways.append("lower data.maxLength")
    if ranks > 1 and compute.strategy == "ddp":
        ways.append("take compute.strategy " + ("zero3 or fsdp2" if whole else "zero2"))
    elif ranks > 1 and compute.strategy in ("zero1", "zero2") and spec.method.type != "qlora":
        ways.append("take compute.strategy zero3 or fsdp2, which shard the weights too")
    elif spec.method.type == "lora" and compute.device == "cuda":
        ways.append("take method qlora")
    ways.append(
        "raise spec.pods.train.resources.limits.memory" if compute.device == "cpu" else "use larger or more GPUs"
    )
    return ", ".join(ways[:-1]) + ", or " + ways[-1]


def _rows(lengths: Sequence[int]) -> str:
    if not len(lengths):
        return ""
    count, longest, total = len(lengths), int(max(lengths)), int(sum(lengths))
    return f", with a micro-batch of {count} row{'s' * (count > 1)} of up to {longest:,} tokens ({total:,} in all)"
