"""What can be refused before anything runs."""

from __future__ import annotations

from finetune_api.status import FailureStatus

from finetune_operator.domain.attempts.completion import fail
from finetune_operator.domain.diagnosis.pending_pods import missing_claim
from finetune_operator.domain.observed import Read
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Code

_LOOK_AGAIN_S = 5.0


def check_workspace(draft: PlanBuilder) -> None:
    """Pods on several nodes write to the workspace. Asked once, before the first attempt."""
    name = draft.spec.workspace.parsed.claim
    if draft.spec.compute.nodes < 2 or draft.attempts or not name:
        return
    claim = draft.seen.claims.get(name)
    if claim is None:
        draft.reads.add(Read("claim", name))
        draft.situation = JobState("Pending", "Starting", "Looking at the workspace")
    elif claim.found is False:
        problem = missing_claim(name)
        draft.situation = JobState("Pending", problem.reason, problem.text, problem=True)
        draft.requeue_after(_LOOK_AGAIN_S)
    elif claim.found and "ReadWriteMany" not in claim.access_modes:
        modes = ", ".join(claim.access_modes) or "none"
        fail(
            draft,
            FailureStatus(
                code=Code.INVALID_WORKSPACE,
                message=f"spec.workspace: claim {name} has the access modes {modes}, but compute.nodes {draft.spec.compute.nodes} needs ReadWriteMany",
                remedy="Name a claim of a storage class that gives ReadWriteMany (NFS, CephFS, EFS, Filestore ...), or set compute.nodes: 1",
            ),
        )
