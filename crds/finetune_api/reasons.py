"""Reasons of conditions, of status.reason and of events: what each means and what to do. They are part of the API."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a job is where it is."""

    # Progress.
    STARTING = "Starting"
    PREPARING = "Preparing"
    TRAINING = "Training"
    PUBLISHING = "Publishing"
    RESUMING = "Resuming"
    RETRYING = "Retrying"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    HELD_ELSEWHERE = "HeldElsewhere"
    AWAITING_APPROVAL = "AwaitingApproval"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    PLANNED = "Planned"
    COMPLETED = "Completed"

    # Events.
    STAGE_STARTED = "StageStarted"
    STAGE_DONE = "StageDone"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    RESULT_LOST = "ResultLost"
    MEMORY_REDUCED = "MemoryReduced"
    ATTEMPT_FAILED = "AttemptFailed"
    RESUMED = "Resumed"
    RERUN = "Rerun"
    REPLACED = "Replaced"
    FAILED = "Failed"

    # Something has to be fixed; the job continues by itself afterwards.
    IMAGE_PULL_FAILED = "ImagePullFailed"
    WRONG_ARCHITECTURE = "WrongArchitecture"
    NO_TRAINER_IMAGE = "NoTrainerImage"
    INVALID_SPEC = "InvalidSpec"
    INVALID_WORKSPACE = "InvalidWorkspace"
    CLAIM_NOT_SHARED = "ClaimNotShared"
    MISSING_SECRET = "MissingSecret"
    MISSING_CONFIG_MAP = "MissingConfigMap"
    MISSING_CLAIM = "MissingClaim"
    UNBOUND_CLAIM = "UnboundClaim"
    VOLUME_UNAVAILABLE = "VolumeUnavailable"
    MOUNT_FAILED = "MountFailed"
    UNSCHEDULABLE = "Unschedulable"
    NO_SCHEDULER = "NoScheduler"
    SCHEDULING_GATED = "SchedulingGated"
    QUOTA_EXCEEDED = "QuotaExceeded"
    RESOURCES_NOT_SET = "ResourcesNotSet"
    LIMIT_RANGE_VIOLATED = "LimitRangeViolated"
    POD_SECURITY = "PodSecurity"
    MISSING_PRIORITY_CLASS = "MissingPriorityClass"
    MISSING_RUNTIME_CLASS = "MissingRuntimeClass"
    MISSING_SERVICE_ACCOUNT = "MissingServiceAccount"
    PODS_NOT_CREATED = "PodsNotCreated"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"
    POD_NOT_STARTED = "PodNotStarted"
    NAME_TAKEN = "NameTaken"
    NOT_ALLOWED = "NotAllowed"
    REJECTED = "Rejected"
    API_SERVER_ERROR = "APIServerError"
    UNREADABLE_STATUS = "UnreadableStatus"

    # The training continues.
    POLL_FAILED = "PollFailed"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job waits and what to do; its message has the names."""

    cause: str
    remedy: str


WAITING: dict[Reason, Waiting] = {
    Reason.IMAGE_PULL_FAILED: Waiting("The image cannot be pulled.", "Correct `spec.pods.common.image` or the chart's `trainer.image`; set `imagePullSecrets` for a private registry"),
    Reason.WRONG_ARCHITECTURE: Waiting("The image does not exist for the CPU architecture of the node.", "Use an image for it, or set `spec.pods.common.nodeSelector[kubernetes.io/arch]`"),
    Reason.NO_TRAINER_IMAGE: Waiting("No trainer image is set.", "Set `trainer.image` in the chart, or `spec.pods.common.image`"),
    Reason.INVALID_SPEC: Waiting("This version of the operator cannot read or combine fields of the spec.", "Correct the fields in the message, or upgrade the operator"),
    Reason.CLAIM_NOT_SHARED: Waiting("Several nodes are to train, but only one node can mount the model's claim.", "Use a ReadOnlyMany or ReadWriteMany claim, or set `spec.compute.nodes` to 1"),
    Reason.INVALID_WORKSPACE: Waiting("Several nodes are to train, but only one node can write to the workspace claim.", "Use a ReadWriteMany claim, or set `spec.compute.nodes` to 1"),
    Reason.MISSING_SECRET: Waiting("A Secret, or a key of it, does not exist in the job's namespace.", "Create it, or correct the reference"),
    Reason.MISSING_CONFIG_MAP: Waiting("A ConfigMap, or a key of it, does not exist in the job's namespace.", "Create it, or correct the reference"),
    Reason.MISSING_CLAIM: Waiting("A PersistentVolumeClaim does not exist in the job's namespace.", "Create the claim, or correct the `pvc://` location"),
    Reason.UNBOUND_CLAIM: Waiting("A PersistentVolumeClaim has no volume.", "`kubectl describe pvc`: check that its storage class exists and can provide a volume"),
    Reason.VOLUME_UNAVAILABLE: Waiting("A volume cannot be used: its claim is being deleted, another pod holds it, or it is bound to other nodes.", "Use another claim, end the other pod, or let the pods run where the volume is"),
    Reason.MOUNT_FAILED: Waiting("The node cannot attach or mount a volume.", "Fix the problem in the message; often the volume is still attached to another node"),
    Reason.UNSCHEDULABLE: Waiting("No node has room for a pod, or none may run it.", "Free or add nodes, or ask for less; the message counts why each node was refused"),
    Reason.NO_SCHEDULER: Waiting("No scheduler has considered the pod.", "Install the scheduler in `spec.pods.*.schedulerName`, or correct the name"),
    Reason.SCHEDULING_GATED: Waiting("The pod has scheduling gates.", "The controller that set the gate removes it; check that it runs"),
    Reason.QUOTA_EXCEEDED: Waiting("The quota of the namespace is used up.", "`kubectl describe quota`: free quota or raise it, or ask for less"),
    Reason.RESOURCES_NOT_SET: Waiting("The quota of the namespace requires requests or limits that are not set.", "Set them in `spec.pods.*.resources`, or add a LimitRange with defaults to the namespace"),
    Reason.LIMIT_RANGE_VIOLATED: Waiting("A LimitRange of the namespace refuses the resources of the pods.", "Change `spec.pods.*.resources` or `spec.compute`, or the LimitRange (`kubectl describe limitrange`)"),
    Reason.POD_SECURITY: Waiting("The Pod Security level of the namespace refuses the pods.", "Remove what the message lists from `spec.pods`, or use a namespace with another level"),
    Reason.MISSING_PRIORITY_CLASS: Waiting("A PriorityClass does not exist.", "Create it, or correct `spec.scheduling.priorityClass`"),
    Reason.MISSING_RUNTIME_CLASS: Waiting("A RuntimeClass does not exist.", "Create it, or correct `spec.pods.*.runtimeClassName`"),
    Reason.MISSING_SERVICE_ACCOUNT: Waiting("A service account does not exist in the job's namespace.", "Create it, or correct `spec.pods.*.serviceAccountName`"),
    Reason.PODS_NOT_CREATED: Waiting("The Job controller cannot create the pods.", "Fix the problem in the message; often an admission webhook or policy"),
    Reason.CONTAINER_NOT_STARTED: Waiting("A container of the pod cannot start.", "Fix the problem in the message"),
    Reason.POD_NOT_STARTED: Waiting("A pod has a node and does not start, and no event gives a cause.", "`kubectl describe pod` and `kubectl describe node`: check that the kubelet of the node runs"),
    Reason.NAME_TAKEN: Waiting("An object that is not the job's has the name of one of its children.", "Delete or rename that object"),
    Reason.NOT_ALLOWED: Waiting("The operator lacks a right, or a policy refuses a child.", "Compare its rights with the chart's roles, or change the policy"),
    Reason.REJECTED: Waiting("The API server, an admission policy or a webhook rejects a child.", "Correct the field in the message, or change the policy; the request is repeated"),
    Reason.API_SERVER_ERROR: Waiting("The API server cannot create or change a child, often because a webhook does not answer.", "Repair or remove the webhook in the message; the request is repeated"),
    Reason.UNREADABLE_STATUS: Waiting("Another version of the operator wrote a status that this one cannot read.", "Run the newer version again, or finish the job with it"),
    Reason.AWAITING_APPROVAL: Waiting("The plan waits for an approval.", "Check `status.plan`, then `ftj approve NAME`, or set `spec.budget.approvedPlan`"),
    Reason.BUDGET_EXHAUSTED: Waiting("A limit of `spec.budget` is reached.", "Raise the limit; the training resumes from its checkpoint"),
    Reason.HELD_ELSEWHERE: Waiting("A queue or a person has suspended the training Job.", "It continues when the queue admits it, or when its `spec.suspend` is set to false"),
}  # fmt: skip
"""Reasons for which somebody has to act, or another controller."""
