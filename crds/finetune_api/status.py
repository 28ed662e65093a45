"""`status` of a FineTuneJob. Every list is bounded; history lies in files on the workspace."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from finetune_api.base import Int64, PreservedObject, StatusModel, schema

Phase = Literal[
    "Pending", "Preparing", "AwaitingApproval", "Queued", "Training", "Publishing", "Suspended", "Completed", "Failed"
]
Stage = Literal["prepare", "train", "publish"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In their order."""
Time = Annotated[str, Field(json_schema_extra=schema(format="date-time"))]
"""RFC 3339 in UTC with seconds, as Kubernetes writes it: 2026-01-31T12:00:00Z."""


def _deprecated(instead: str, **bounds: Any) -> Any:
    return Field(default=None, description=f"Deprecated: see {instead}.", **bounds)


class Condition(StatusModel):
    """As metav1.Condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    observed_generation: Int64 | None = None
    last_transition_time: Time


class FindingStatus(StatusModel):
    """What a check found. The report has the rows."""

    code: str
    severity: Literal["Error", "Warning", "Info"]
    count: int
    where: str | None = Field(default=None, description="FILE:LINE of the first row.")


class SourceStatus(StatusModel):
    """Where something was downloaded from, pinned to what it was."""

    uri: str
    digest: str


class DataStatus(StatusModel):
    """What prepare found."""

    format: str | None = None
    rows: int | None = None
    invalid_rows: int | None = None
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    tokens: Int64 | None = Field(default=None, description="Tokens of one epoch of the training rows.")
    trained_tokens: Int64 | None = Field(default=None, description="Those of them that the loss counts.")
    max_length: int | None = Field(default=None, description="Longest row in tokens after truncation.")
    truncated_rows: int | None = None
    dropped_rows: int | None = None
    digest: str | None = Field(default=None, description="sha256 over the data files' content.")
    findings: list[FindingStatus] | None = Field(default=None, max_length=32)
    sources: list[SourceStatus] | None = Field(default=None, max_length=16, description="What was downloaded.")


class ChoiceStatus(StatusModel):
    """A field that was left out, what it became, and why."""

    field: str
    value: str
    why: str


class PlanStatus(StatusModel):
    """What training will do, and what it will take."""

    digest: str | None = Field(default=None, description="Names this plan, for budget.approvedPlan.")
    steps: int | None = None
    epochs: float | None = None
    tokens: Int64 | None = Field(default=None, description="Tokens of the whole training.")
    global_batch_size: int | None = None
    checkpoint_every_steps: int | None = None
    validate_every_steps: int | None = None
    max_new_tokens: int | None = None
    parameters: Int64 | None = None
    trainable_parameters: Int64 | None = None
    memory_per_gpu: str | None = Field(default=None, description="Peak: 41.3Gi.")
    host_memory_per_pod: str | None = Field(
        default=None,
        description="Of a training pod at its peak: 18.5Gi. Its memory request, where pods.train.resources sets none.",
    )
    storage: str | None = None
    duration: str | None = None
    duration_seconds: Int64 | None = None
    longest_seconds: Int64 | None = None
    gpu_hours: float | None = None
    cost: float | None = None
    basis: str | None = None
    warning: str | None = None
    choices: list[ChoiceStatus] | None = Field(default=None, max_length=32)


class ProgressStatus(StatusModel):
    """How far the running stage is; at most every 15 seconds once it moves."""

    stage: str | None = Field(
        default=None,
        description="prepare, train, evaluate or publish. The training pods evaluate, in their own attempt.",
    )
    summary: str | None = Field(default=None, description="For people: '42% 120/288'.")
    percent: int | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    eta: str | None = Field(default=None, description="For people: '3m12s'.")
    eta_seconds: int | None = None
    tokens_per_second: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    straggler: str | None = Field(
        default=None, description="A rank that holds up the others: 'rank 3 takes 1.8 times the median step'."
    )


class AttemptStatus(StatusModel):
    """One Job of one stage."""

    stage: Stage
    number: int
    job: str
    started: Time | None = None
    finished: Time | None = None
    outcome: Literal["Running", "Succeeded", "Stopped", "Failed", "Evicted"] = "Running"
    reason: str | None = None
    message: str | None = None
    node: str | None = Field(default=None, description="Where the pod ran that ended the attempt.")
    resumed_from_step: int | None = None
    last_step: int | None = None
    steps_lost: int | None = Field(
        default=None, description="Steps since the checkpoint that the next attempt resumes from."
    )


class CheckpointStatus(StatusModel):
    """A sealed checkpoint."""

    step: int
    path: str | None = None
    time: Time | None = None
    eval_loss: float | None = None


class MetricRow(StatusModel):
    """One line of the base-against-tuned table."""

    metric: str
    base: float | None = None
    tuned: float | None = None


class EvaluationStatus(StatusModel):
    """Base against tuned on the test split."""

    rows: int | None = Field(default=None, description="Rows of the test split that were measured.")
    generated_rows: int | None = Field(default=None, description="Rows whose answers were generated, for exact match.")
    metrics: list[MetricRow] | None = Field(default=None, max_length=16)


class FailureStatus(StatusModel):
    """Why the job failed, and what to do."""

    code: str
    stage: Stage | None = None
    rank: int | None = None
    node: str | None = None
    exit_code: int | None = None
    message: str
    remedy: str | None = None
    retriable: bool = False
    stacks: str | None = Field(default=None, description="Folder with the stack dumps of all ranks, after a hang.")


class ArtifactsStatus(StatusModel):
    """Where the result lies."""

    uri: str
    report: str | None = Field(default=None, description="The HTML report.")
    files: int | None = None
    bytes: Int64 | None = None
    digest: str | None = Field(default=None, description="sha256 of SHA256SUMS, which lists every file.")


class UsageStatus(StatusModel):
    """What the training has used, over all attempts of this run."""

    train_seconds: Int64 | None = Field(default=None, description="Seconds in which all training pods ran.")
    gpu_seconds: Int64 | None = Field(default=None, description="The same times their GPUs.")
    cost: float | None = Field(default=None, description="By spec.budget.gpuHourPrice.")


class FineTuneJobStatus(StatusModel):
    """Written by the operator alone."""

    observed_generation: Int64 = -1
    phase: Phase | None = None
    reason: str | None = Field(default=None, description="Why the job is in this phase, in one word.")
    message: str | None = Field(default=None, description="The same in one sentence, with what to do.")
    conditions: list[Condition] | None = Field(
        default=None,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    run: str | None = Field(default=None, description="Name of this run: changes with spec.runToken.")
    gpus: int | None = Field(default=None, description="GPUs that training holds: nodes * gpusPerNode.")
    data: DataStatus | None = None
    plan: PlanStatus | None = None
    progress: ProgressStatus | None = None
    attempts: list[AttemptStatus] | None = Field(default=None, max_length=20, description="The newest ones.")
    last_checkpoint: CheckpointStatus | None = None
    evaluation: EvaluationStatus | None = None
    failure: FailureStatus | None = None
    artifacts: ArtifactsStatus | None = None
    usage: UsageStatus | None = None
    start_time: Time | None = None
    completion_time: Time | None = None
    state: str | None = Field(
        default=None,
        max_length=262144,
        description="For the operator alone; `ftj describe --effective` prints the resolved spec that is in it.",
    )

    # Of version 0.1: read where `state` and `usage` are missing, and left as they are.
    effective: PreservedObject | None = _deprecated("state")
    defaults: PreservedObject | None = _deprecated("state")
    facts: PreservedObject | None = _deprecated("state")
    decided: PreservedObject | None = _deprecated("state")
    infra_failures: int | None = _deprecated("state")
    checkpoints: list[CheckpointStatus] | None = _deprecated("lastCheckpoint", max_length=10)
    gpu_seconds: Int64 | None = _deprecated("usage")
    train_seconds: Int64 | None = _deprecated("usage")

    @property
    def used(self) -> UsageStatus:
        """`usage`, also of a status that version 0.1 wrote."""
        if self.usage is not None:
            return self.usage
        return UsageStatus(train_seconds=self.train_seconds, gpu_seconds=self.gpu_seconds)
