"""Whether every pod of a gang can mount its claims."""

from __future__ import annotations

from finetune_operator.domain.builders.storage import claims_needing_many
from finetune_operator.domain.diagnosis.pending_pods import missing_claim
from finetune_operator.domain.observed import ClaimView, Read
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Reason


def unshared_claim(builder: PlanBuilder) -> JobState | None:
    """Pods on several nodes mount the workspace and the model. Checked before the first attempt, since the second pod would
    wait for its volume while the first one holds its GPUs."""
    if builder.attempts:
        return None
    needed = claims_needing_many(builder.spec)
    unread = [name for name in needed if name not in builder.observed.claims]
    if unread:
        builder.reads |= {Read("claim", name) for name in unread}
        return JobState("Pending", Reason.STARTING, "Checking the claims that the gang mounts")
    for name, written in sorted(needed.items()):
        state = _objection(builder, builder.observed.claims[name], written)
        if state is not None:
            builder.retry(f"blocked:{state.reason}")
            return state
    return None


def _objection(builder: PlanBuilder, claim: ClaimView, written: bool) -> JobState | None:
    if claim.found is False:
        problem = missing_claim(claim.name)
        return JobState("Pending", problem.reason, problem.text, problem=True)
    suitable = {"ReadWriteMany"} if written else {"ReadWriteMany", "ReadOnlyMany"}
    if claim.found is None or suitable & set(claim.access_modes):
        return None
    field = "workspace" if written else "model"
    modes = ", ".join(claim.access_modes) or "none"
    message = (
        f"spec.{field}: claim {claim.name} has the access modes {modes}, but compute.nodes {builder.spec.compute.nodes} needs "
        f"{' or '.join(sorted(suitable))}. Recreate the claim with a storage class that offers it (NFS, CephFS, EFS, "
        "Filestore ...), or set compute.nodes: 1"
    )
    reason = Reason.INVALID_WORKSPACE if written else Reason.CLAIM_NOT_SHARED
    return JobState("Pending", reason, message, problem=True)
