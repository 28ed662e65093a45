"""How fast trainings of one kind were on this workspace, so that the next plan need not guess.

One small file a kind below `<workspace>/throughput/`. The kind is everything that decides speed and that prepare knows
too: the model's shape, the method, how the work is shared and on what, and the rows' length to the next power of two.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from finetune_api.contract import RunConfig
from finetune_api.planner.facts import Measured, PlanFacts
from pydantic import ValidationError

from finetune_trainer import sealed
from finetune_trainer.data.digests import json_digest

FOLDER = "throughput"
_WEIGHT_OF_NEWEST = 0.5
"""Of the newest run in the average: machines change, and the newest knows best."""


def known(config: RunConfig, facts: PlanFacts) -> Measured | None:
    """What was measured of trainings like `config`'s, whose spec is resolved and decided."""
    with contextlib.suppress(OSError, ValidationError):
        return Measured.model_validate_json(_path(config, facts).read_bytes())
    return None


def remember(config: RunConfig, facts: PlanFacts, new: Measured) -> None:
    """Average `new` into what is known. A workspace that cannot take it loses nothing but a better estimate."""
    old = known(config, facts)
    if old is not None:
        new = Measured(
            tokens_per_second=_between(old.tokens_per_second, new.tokens_per_second),
            startup_seconds=_between(old.startup_seconds, new.startup_seconds),
            evaluation_seconds=_between(old.evaluation_seconds, new.evaluation_seconds),
            runs=old.runs + 1,
        )
    path = _path(config, facts)
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        sealed.write_json(path, new.wire())


def _between(old: float, new: float) -> float:
    return (1 - _WEIGHT_OF_NEWEST) * old + _WEIGHT_OF_NEWEST * new


def _path(config: RunConfig, facts: PlanFacts) -> Path:
    spec = config.spec
    training = spec.training.model_dump(
        include={
            "global_batch_size",
            "optimizer",
            "precision",
            "activation_checkpointing",
            "compile",
            "deterministic",
            "ema",
        }
    )
    kind = {
        "model": facts.model.wire(),
        "method": spec.method.model_dump(exclude={"init_from"}),
        "compute": spec.compute.model_dump(exclude={"gpu_memory", "gpu_resource"}),
        "training": training,
        "packing": spec.data.packing,
        "task": facts.task,
        "longest": facts.data.longest.bit_length(),
    }  # fmt: skip
    return config.path(spec.workspace) / FOLDER / f"{json_digest(kind)[:24]}.json"
