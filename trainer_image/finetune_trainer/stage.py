"""What a stage is given: its config, where it stands in its gang, a way to tell how far it is, and whether to stop.

A stage is a package with `run(context: StageContext) -> None`. It returns when it is done, raises a StageError when it is
not, and tells by `context.note` whatever the termination message should say in either case.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.contract import RunConfig, TerminationMessage

from finetune_trainer.progress import ProgressWriter
from finetune_trainer.stop import StopFlag


@dataclass(slots=True)
class StageContext:
    """`rank` counts over all pods, `local_rank` within this one. `scratch` is this pod's writable folder.

    `alarm` tells PID 1 that this rank hangs, so that the stacks of its pod's other ranks are written down too.
    """

    config: RunConfig
    progress: ProgressWriter
    stop: StopFlag
    scratch: Path
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    known: dict[str, Any] = field(default_factory=dict)
    alarm: Callable[[], None] = lambda: None
    began: float = field(default_factory=time.monotonic)
    """Of the monotonic clock, before anything large was imported."""

    def note(self, **fields: Any) -> None:
        """Fields of the termination message that are known by now (step, last_checkpoint, metrics, data ...)."""
        unknown = fields.keys() - TerminationMessage.model_fields.keys()
        if unknown:
            raise TypeError(f"a termination message has no {', '.join(sorted(unknown))}")
        self.known.update(fields)
