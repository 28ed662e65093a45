"""`spec` of a FineTuneJob. A field that is absent is decided for the user; `ftj describe --effective` shows what it became."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.budget import DURATION, BudgetSpec, seconds_of
from finetune_api.combinations import COMBINATIONS
from finetune_api.compute import ComputeSpec
from finetune_api.data import DataSpec
from finetune_api.evaluation import EvaluationSpec
from finetune_api.location import ClaimLocation
from finetune_api.method import MethodSpec, ModelSpec
from finetune_api.pods import Pods
from finetune_api.rules import Rule, Ruled, fixed
from finetune_api.training import TrainingSpec


class SchedulingSpec(ApiModel):
    """How the training pods get their place."""

    priority_class: str | None = Field(default=None, max_length=253, description="PriorityClass of the training pods.")


class CheckpointSpec(ApiModel):
    """How often training is saved. A stop or an eviction saves as well, whatever stands here."""

    every_steps: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="Absent: ten times over the training, at least every 500 steps."
    )
    keep: int = Field(
        default=2, ge=1, le=100, description="Newest checkpoints that are kept, in addition to the best one."
    )


class RetrySpec(ApiModel):
    """How often a stage is retried after a failure that may pass. Bad input and divergence are never retried; a preempted job always resumes."""

    infra: int = Field(
        default=3, ge=0, le=100, description="Failures of unknown or infrastructure cause, over the whole job."
    )
    start_timeout: Annotated[str, Field(min_length=2, max_length=32, pattern=DURATION)] | None = Field(
        default=None,
        description="How long the pods of an attempt may need to start once their Job was released: 30m, 2h. Then the attempt counts as an infrastructure failure. Absent: without limit, since waiting costs nothing.",
    )
    oom: int = Field(
        default=4,
        ge=0,
        le=20,
        description="Notches down the memory ladder, over the whole job: the attempt after one that ran out of memory needs less GPU memory, or its pods get more host memory; the global batch stays. Fields that the spec sets are kept, except memory in pods.*.resources. 0: none.",
    )

    @property
    def start_seconds(self) -> int | None:
        return None if self.start_timeout is None else seconds_of(self.start_timeout)


def _same(*fields: str) -> str:
    """CEL: optional fields of an object that are the same as before."""
    return " && ".join(
        f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})"
        for name in fields
    )


def _same_sources(name: str) -> str:
    """CEL: the same files in a list of locations; credentials and endpoint may change (a rotated Secret, a moved mirror)."""
    new, old = f"self.{name}", f"oldSelf.{name}"
    return f"{new}.map(l, l.uri) == {old}.map(l, l.uri) && {new}.map(l, has(l.revision) ? l.revision : '') == {old}.map(l, has(l.revision) ? l.revision : '')"


_SAME_MODEL = f"self == oldSelf || (self.uri == oldSelf.uri && {_same('revision', 'task', 'trustRemoteCode')})"
_SAME_DATA = " && ".join(
    (
        f"({_same_sources('train')})",
        *(
            f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || ({_same_sources(name)}))"
            for name in ("validation", "test")
        ),
        _same(
            "split",
            "checks",
            "format",
            "lossOn",
            "maxLength",
            "overlong",
            "template",
            "templateArguments",
            "packing",
            "fixes",
        ),
    )
)


class FineTuneJobSpec(ApiModel, Ruled):
    """What to fine-tune, on what, where, and where the result goes."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        fixed("model", _SAME_MODEL),
        fixed("method"),
        fixed("data", f"self == oldSelf || ({_SAME_DATA})"),
        fixed("training"),
        fixed("evaluation"),
        fixed("workspace"),
        fixed("output"),
        fixed("managedBy"),
        *(combination.rule() for combination in COMBINATIONS),
    )

    model: ModelSpec
    method: MethodSpec
    data: DataSpec
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    compute: ComputeSpec = Field(default_factory=ComputeSpec)
    pods: Pods | None = None
    workspace: ClaimLocation = Field(
        description="Where shards and checkpoints lie while the job runs. With several nodes the claim must be ReadWriteMany."
    )
    scheduling: SchedulingSpec | None = None
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    output: ClaimLocation = Field(
        description="Folder that will hold the tuned adapter or model, its card and its report."
    )
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    mode: Literal["Run", "Plan"] = Field(
        default="Run", description="Plan: check the data, make the plan and end; Run then continues from there."
    )
    suspend: bool = Field(default=False, description="Stop with a checkpoint and release the GPUs; false resumes.")
    ready_when: Literal["Accepted", "Completed"] = Field(
        default="Accepted",
        description="When the Ready condition becomes True: Accepted suits GitOps, Completed suits pipelines.",
    )
    managed_by: str = Field(
        default="finetune.dev/operator",
        max_length=63,
        description="Who reconciles this job; another value makes this operator leave it alone.",
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None,
        description="Delete the finished job's Jobs and pods after this time; never the FineTuneJob itself. Absent: the platform's, by default 7 days.",
    )
    run_token: str | None = Field(
        default=None,
        max_length=63,
        description="Change it to run the job again, from the start. It takes effect when the current run has ended, and never stops one.",
    )
