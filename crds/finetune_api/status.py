"""`status` of a FineTuneJob. Every list is bounded; history lies in files on the workspace."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Int64, PreservedObject, schema

Phase = Literal["Pending", "Preparing", "Queued", "Training", "Publishing", "Suspended", "Completed", "Failed"]
Stage = Literal["prepare", "train", "publish"]
Time = Annotated[str, Field(json_schema_extra=schema(format="date-time"))]
"""RFC 3339 in UTC with seconds, as Kubernetes writes it: 2026-01-31T12:00:00Z."""


class Condition(ApiModel):
    """As metav1.Condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    observed_generation: Int64 | None = None
    last_transition_time: Time


class DataStatus(ApiModel):
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


class PlanStatus(ApiModel):
    """What training will do."""

    steps: int | None = None
    epochs: float | None = None
    tokens: Int64 | None = Field(default=None, description="Tokens of the whole training.")
    global_batch_size: int | None = None
    checkpoint_every_steps: int | None = None
    validate_every_steps: int | None = None
    max_new_tokens: int | None = None


class ProgressStatus(ApiModel):
    """How far the running stage is; written at most every 15 seconds."""

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


class AttemptStatus(ApiModel):
    """One Job of one stage."""

    stage: Stage
    number: int
    job: str
    started: Time | None = None
    finished: Time | None = None
    outcome: Literal["Running", "Succeeded", "Stopped", "Failed", "Evicted"] = "Running"
    reason: str | None = None
    message: str | None = None
    resumed_from_step: int | None = None
    last_step: int | None = None


class CheckpointStatus(ApiModel):
    """A sealed checkpoint."""

    step: int
    path: str | None = None
    time: Time | None = None
    eval_loss: float | None = None


class MetricRow(ApiModel):
    """One line of the base-against-tuned table."""

    metric: str
    base: float | None = None
    tuned: float | None = None


class EvaluationStatus(ApiModel):
    """Base against tuned on the test split."""

    rows: int | None = Field(default=None, description="Rows of the test split that were measured.")
    generated_rows: int | None = Field(default=None, description="Rows whose answers were generated, for exact match.")
    metrics: list[MetricRow] | None = Field(default=None, max_length=16)


class FailureStatus(ApiModel):
    """Why the job failed, and what to do."""

    code: str
    stage: Stage | None = None
    rank: int | None = None
    node: str | None = None
    exit_code: int | None = None
    message: str
    remedy: str | None = None
    retriable: bool = False


class ArtifactsStatus(ApiModel):
    """Where the result lies."""

    uri: str
    report: str | None = Field(default=None, description="The HTML report.")
    files: int | None = None
    bytes: Int64 | None = None
    digest: str | None = Field(default=None, description="sha256 of SHA256SUMS, which lists every file.")


class FineTuneJobStatus(ApiModel):
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
    effective: PreservedObject | None = Field(
        default=None, description="The spec with every absent field decided, without pods."
    )
    defaults: PreservedObject | None = Field(
        default=None, description="The platform's defaults as they were when the job was accepted."
    )
    data: DataStatus | None = None
    plan: PlanStatus | None = None
    progress: ProgressStatus | None = None
    attempts: list[AttemptStatus] | None = Field(default=None, max_length=20, description="The newest ones.")
    infra_failures: int | None = Field(default=None, description="Failures counted against retry.infra.")
    checkpoints: list[CheckpointStatus] | None = Field(default=None, max_length=10)
    last_checkpoint: CheckpointStatus | None = None
    evaluation: EvaluationStatus | None = None
    failure: FailureStatus | None = None
    artifacts: ArtifactsStatus | None = None
    gpu_seconds: Int64 | None = Field(default=None, description="GPUs times the seconds in which training pods ran.")
    start_time: Time | None = None
    completion_time: Time | None = None
