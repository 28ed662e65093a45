"""`spec.budget`: what a job may cost, and who says so."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ApiModel

DURATION = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
Money = Annotated[float, Field(ge=0, le=1e12)]


class BudgetSpec(ApiModel):
    """What a job may cost. A plan beyond it is refused before any GPU is asked for; a training that reaches it stops with a checkpoint."""

    gpu_hour_price: Money | None = Field(default=None, description="Of one GPU. Absent: the platform's.")
    max_gpu_hours: Annotated[float, Field(gt=0, le=1e9)] | None = None
    max_cost: Annotated[float, Field(gt=0, le=1e12)] | None = Field(
        default=None, description="In the currency of gpuHourPrice."
    )
    max_duration: Annotated[str, Field(min_length=2, max_length=32, pattern=DURATION)] | None = Field(
        default=None, description="Time in which training pods run, over all attempts: 90m, 12h, 1h30m."
    )
    approval: Literal["Automatic", "Manual"] = Field(
        default="Automatic", description="Manual: training waits until approvedPlan names the plan in status."
    )
    approved_plan: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="status.plan.digest of the plan that is approved (`ftj approve`)."
    )

    @property
    def max_seconds(self) -> int | None:
        return None if self.max_duration is None else seconds_of(self.max_duration)


def seconds_of(duration: str) -> int:
    """1h30m -> 5400."""
    return sum(
        int(count) * {"h": 3600, "m": 60, "s": 1}[unit] for count, unit in re.findall(r"([0-9]+)([hms])", duration)
    )
