"""Whether every pod of a gang can mount the workspace."""

from __future__ import annotations

from finetune_operator.domain.diagnosis.pending_pods import missing_claim
from finetune_operator.domain.observed import Read
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Reason


def unshared_workspace(builder: PlanBuilder) -> JobState | None:
    """Pods on several nodes write to the workspace. Checked before the first attempt."""
    name = builder.spec.workspace.parsed.claim
    nodes = builder.spec.compute.nodes
    if nodes < 2 or builder.attempts or not name:
        return None
    claim = builder.observed.claims.get(name)
    if claim is None:
        builder.reads.add(Read("claim", name))
        return JobState("Pending", Reason.STARTING, "Checking the workspace")
    if claim.found is False:
        problem = missing_claim(name)
        builder.retry(f"blocked:{problem.reason}")
        return JobState("Pending", problem.reason, problem.text, problem=True, blocked=True)
    if claim.found and "ReadWriteMany" not in claim.access_modes:
        builder.retry(f"blocked:{Reason.INVALID_WORKSPACE}")
        modes = ", ".join(claim.access_modes) or "none"
        message = (
            f"spec.workspace: claim {name} has the access modes {modes}, but compute.nodes {nodes} needs ReadWriteMany. "
            "Recreate the claim with a storage class that offers ReadWriteMany (NFS, CephFS, EFS, Filestore ...), or set "
            "compute.nodes: 1"
        )
        return JobState("Pending", Reason.INVALID_WORKSPACE, message, problem=True, blocked=True)
    return None
