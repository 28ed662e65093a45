"""Accept a job: its run's name, the platform's defaults as of now, every absent field decided; and what blocks it."""

from __future__ import annotations

from finetune_api.combinations import refused
from finetune_api.status import STAGES, FailureStatus

from finetune_operator.domain.attempts.completion import fail
from finetune_operator.domain.attempts.history import latest
from finetune_operator.domain.builders.job import pod_settings
from finetune_operator.domain.names import run_of
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Code, Reason
from finetune_operator.domain.times import stamp


def accept(builder: PlanBuilder) -> None:
    """Nothing of this is done twice, so an upgrade of the operator changes no running job."""
    status = builder.status
    if status.run is None:
        status.run = run_of(builder.metadata.uid, builder.wanted.run_token)
        status.start_time = stamp(builder.now)
    if builder.state.defaults is None:
        builder.state.defaults = builder.config.defaults.wire()
    if builder.observed.invalid is None:
        builder.resolve_and_show()
        if latest(builder.attempts, "train") is None:
            status.gpus = builder.spec.compute.nodes * (builder.spec.compute.gpus_per_node or 0)


def unreadable(builder: PlanBuilder) -> JobState | None:
    """A spec that the schema let through and this version's models do not: another version may."""
    if builder.observed.invalid is None:
        return None
    return _blocked(
        builder,
        Code.INVALID_SPEC,
        f"{builder.observed.invalid}. Correct the field, or upgrade the operator if a newer version wrote it",
    )


def impossible(builder: PlanBuilder) -> JobState | None:
    """What only shows once absent fields are decided, or was changed after acceptance. A new job ends by it, since most of its
    fields are fixed; a job that was accepted waits for another change."""
    combination = next(refused(builder.spec), None)
    if combination is None:
        return None
    message = f"spec: {combination.message}"
    if not builder.attempts:
        remedy = "Correct the manifest and create the job again"
        fail(builder, FailureStatus(code=Code.INVALID_SPEC, message=message, remedy=remedy))
        return builder.job_state
    return _blocked(builder, Code.INVALID_SPEC, f"{message}. Change it back, or to something that can be combined")


def without_image(builder: PlanBuilder) -> JobState | None:
    """Every stage needs an image, from the job or from the platform."""
    for stage in STAGES:
        if not pod_settings(builder.spec, stage).image:
            return _blocked(
                builder,
                Reason.NO_TRAINER_IMAGE,
                f"No image is set for stage {stage}. Set spec.pods.common.image, or trainer.image in the operator's chart",
            )
    return None


def _blocked(builder: PlanBuilder, reason: str, message: str) -> JobState:
    phase = builder.before.phase or "Pending"
    return JobState("Pending" if phase == "Failed" else phase, reason, message, problem=True)
