"""Words that appear in conditions, in status.reason and in events. They are part of the API: documented and stable."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a job is where it is."""

    # On the way.
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

    # What happened.
    STAGE_STARTED = "StageStarted"
    STAGE_DONE = "StageDone"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    RESULT_LOST = "ResultLost"
    ATTEMPT_FAILED = "AttemptFailed"
    RESUMED = "Resumed"
    RERUN = "Rerun"
    REPLACED = "Replaced"
    FAILED = "Failed"

    # Somebody must mend something; the job goes on by itself afterwards.
    IMAGE_PULL_FAILED = "ImagePullFailed"
    MISSING_SECRET = "MissingSecret"
    MISSING_CONFIG_MAP = "MissingConfigMap"
    MISSING_CLAIM = "MissingClaim"
    UNBOUND_CLAIM = "UnboundClaim"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_SECURITY = "PodSecurity"
    PODS_NOT_CREATED = "PodsNotCreated"
    MOUNT_FAILED = "MountFailed"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"
    NO_TRAINER_IMAGE = "NoTrainerImage"
    NAME_TAKEN = "NameTaken"
    NOT_ALLOWED = "NotAllowed"
    REJECTED = "Rejected"
    API_SERVER_ERROR = "APIServerError"
    UNREADABLE_STATUS = "UnreadableStatus"

    # Progress of a training cannot be read.
    POLL_FAILED = "PollFailed"


class Code(StrEnum):
    """Codes of status.failure beside those that the trainer gives."""

    INVALID_SPEC = "InvalidSpec"
    OVER_BUDGET = "OverBudget"
    INVALID_WORKSPACE = "InvalidWorkspace"
    BAD_INPUT = "BadInput"
    OUT_OF_MEMORY = "OutOfMemory"
    DIVERGED = "Diverged"
    PEER_LOST = "PeerLost"
    STORAGE_FULL = "StorageFull"
    UNKNOWN = "Unknown"
