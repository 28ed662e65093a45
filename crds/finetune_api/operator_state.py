"""`status.state`: what only the operator reads, as one JSON string, so that `kubectl describe` shows a job on two screens."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.planner.ladder import Notch
from finetune_api.status import CheckpointStatus, FineTuneJobStatus, Time

EARLIER_RUNS = 100
"""How many names of runs are kept."""


class OperatorState(StatusModel):
    """Versioned by its fields: new ones are optional, and those of another version are kept."""

    effective: dict[str, Any] | None = Field(default=None, description="The resolved spec, without pods.")
    defaults: dict[str, Any] | None = Field(default=None, description="The platform's defaults when it was accepted.")
    facts: dict[str, Any] | None = Field(default=None, description="Of model and data.")
    decided: dict[str, Any] | None = Field(default=None, description="What the data decided of absent fields.")
    infra_failures: int = Field(default=0, description="Failures counted against retry.infra.")
    notches: list[Notch] | None = Field(default=None, max_length=100, description="Taken after running out of memory.")
    checkpoints: list[CheckpointStatus] | None = Field(default=None, max_length=10)
    checkpoint_seconds: float | None = Field(
        default=None, description="What the last checkpoint took: see pods' grace."
    )
    running_since: Time | None = Field(
        default=None, description="Since when all training pods run: the time that status.usage does not hold yet."
    )
    earlier_runs: list[str] | None = Field(
        default=None, max_length=EARLIER_RUNS, description="Names of the runs before this."
    )
    counted_until: Time | None = Field(default=None, description="Up to when status.usage holds what ran.")

    @classmethod
    def of(cls, status: FineTuneJobStatus) -> OperatorState:
        """From `status.state`, or from the fields of a status that version 0.1 wrote. Raises ValueError."""
        if status.state is not None:
            return cls.model_validate_json(status.state)
        old = {name: getattr(status, name) for name in ("effective", "defaults", "facts", "decided", "checkpoints")}
        state = cls.model_validate(old | {"infra_failures": status.infra_failures or 0})
        running = next((c for c in status.conditions or [] if c.type == "Running"), None)
        if running is not None:
            runs = status.phase == "Training" and running.status == "True"
            state.running_since = running.last_transition_time if runs else None
            state.counted_until = None if runs else running.last_transition_time
        return state

    def encode(self) -> str:
        """The same state gives the same string."""
        wire = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        return json.dumps(wire, sort_keys=True, separators=(",", ":"))
