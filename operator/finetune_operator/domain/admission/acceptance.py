"""Taking a job up: its run's name, the platform's defaults as of now, every absent field decided."""

from __future__ import annotations

from finetune_api.combinations import refused
from finetune_api.status import STAGES, FailureStatus

from finetune_operator.domain.attempts.completion import fail
from finetune_operator.domain.attempts.history import latest, running
from finetune_operator.domain.builders.job import pod_settings
from finetune_operator.domain.names import run_of
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Code, Reason
from finetune_operator.domain.times import stamp


def refuse_unreadable(draft: PlanBuilder) -> None:
    """A spec that the schema let through and the models do not."""
    if draft.seen.invalid is None:
        return
    draft.status.run = run_of(draft.metadata.uid, draft.wanted.run_token)
    failure = FailureStatus(
        code=Code.INVALID_SPEC, message=draft.seen.invalid, remedy="Correct the manifest and create the job again"
    )
    fail(draft, failure)


def accept(draft: PlanBuilder) -> None:
    """Nothing of this is done twice, so an upgrade of the operator changes no running job."""
    status = draft.status
    if status.run is None:
        status.run = run_of(draft.metadata.uid, draft.wanted.run_token)
        status.start_time = stamp(draft.now)
        status.defaults = draft.config.defaults.wire()
    draft.settle()
    if latest(draft.attempts, "train") is None:
        status.gpus = draft.spec.compute.nodes * (draft.spec.compute.gpus_per_node or 0)


def refuse_impossible(draft: PlanBuilder) -> None:
    """What only shows once absent fields are decided, or was changed after acceptance. Changes count from the next attempt: they
    do not end pods that run."""
    entry = running(draft.attempts)
    if entry is not None and entry.started is not None:
        return
    combination = next(refused(draft.spec), None)
    if combination is not None:
        remedy = "Correct the manifest and create the job again"
        fail(draft, FailureStatus(code=Code.INVALID_SPEC, message=f"spec: {combination.message}", remedy=remedy))


def refuse_without_image(draft: PlanBuilder) -> None:
    """Every stage needs an image, from the job or from the platform."""
    for stage in STAGES:
        if not pod_settings(draft.spec, stage).image:
            draft.situation = JobState(
                "Pending",
                Reason.NO_TRAINER_IMAGE,
                f"No image is named for stage {stage}. Set spec.pods.common.image, or trainer.image in the operator's chart",
                problem=True,
            )
            return
