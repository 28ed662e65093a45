"""Codes of status.failure: what each means, what to do, and whether the stage is retried. Codes are part of the API."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from finetune_api.checks import CHECKS

FailureKind = Literal["fatal", "infra", "evicted"]
"""fatal: never retried. infra: counts against spec.retry.infra. evicted: a disruption, resumes without using a retry."""


class FailureCode(StrEnum):
    """Why a stage failed. The trainer and the operator use no others, apart from the codes of data checks."""

    INVALID_SPEC = "InvalidSpec"
    INVALID_DATA = "InvalidData"
    INVALID_TEMPLATE = "InvalidTemplate"
    INVALID_MODEL = "InvalidModel"
    OVER_BUDGET = "OverBudget"
    MISSING_CREDENTIAL = "MissingCredential"
    UNTRUSTED_CERTIFICATE = "UntrustedCertificate"
    NOT_FOUND = "NotFound"
    OUTPUT_TAKEN = "OutputTaken"
    BAD_INPUT = "BadInput"
    OUT_OF_MEMORY = "OutOfMemory"
    DIVERGED = "Diverged"

    HOST_MEMORY_EXCEEDED = "HostMemoryExceeded"
    STORAGE_FULL = "StorageFull"
    HUB_UNREACHABLE = "HubUnreachable"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    PEER_LOST = "PeerLost"
    HANG = "Hang"
    SUPERSEDED = "Superseded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    INIT_CONTAINER_FAILED = "InitContainerFailed"
    CONTAINER_FAILED = "ContainerFailed"
    START_FAILED = "StartFailed"
    START_TIMEOUT = "StartTimeout"
    WRONG_ARCHITECTURE = "WrongArchitecture"
    KILLED = "Killed"
    UNKNOWN = "Unknown"

    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    POD_REJECTED = "PodRejected"
    STOPPED = "Stopped"


@dataclass(frozen=True, slots=True)
class Failure:
    """`remedy` may hold {stage}, {pod}, {container} and {node}."""

    kind: FailureKind
    meaning: str
    remedy: str = ""

    def advice(
        self, *, stage: str = "STAGE", pod: str = "POD", container: str = "CONTAINER", node: str | None = None
    ) -> str:
        return self.remedy.format(stage=stage, pod=pod, container=container, node=node or "NODE")


FAILURES: dict[FailureCode, Failure] = {
    FailureCode.INVALID_SPEC: Failure("fatal", "The manifest asks for something that is not possible.", "Correct the field in the message"),
    FailureCode.INVALID_DATA: Failure("fatal", "A row, a file or a split cannot be used.", "Correct the line in the message; the data report in the run's folder lists all invalid rows"),
    FailureCode.INVALID_TEMPLATE: Failure("fatal", "The chat template would train on no tokens, or on the wrong ones.", "Correct the chat template (data-fixes.md), or set spec.data.template"),
    FailureCode.INVALID_MODEL: Failure("fatal", "The model cannot be read or is of a kind that is not supported.", "Correct spec.model, or the files at its location"),
    FailureCode.OVER_BUDGET: Failure("fatal", "The plan is beyond a limit of spec.budget.", "Raise the limit or choose a cheaper plan, and set a new spec.runToken"),
    FailureCode.MISSING_CREDENTIAL: Failure("fatal", "A server refused access.", "Create a Secret with the keys of the scheme (sources.md) and set it as secretRef"),
    FailureCode.UNTRUSTED_CERTIFICATE: Failure("fatal", "The certificate of a server is not trusted.", "Create a ConfigMap with the certificate of its authority and set it as caBundleRef"),
    FailureCode.NOT_FOUND: Failure("fatal", "A path or repository does not exist or may not be read.", "Correct the location, or the permissions of the files"),
    FailureCode.OUTPUT_TAKEN: Failure("fatal", "The output folder holds files of another job or person.", "Set another folder in spec.output, or empty this one"),
    FailureCode.BAD_INPUT: Failure("fatal", "The trainer refused its input and gave no code of its own.", "Correct the problem in the message and set a new spec.runToken"),
    FailureCode.OUT_OF_MEMORY: Failure("fatal", "The GPU, or the memory limit of the container, was too small.", "Raise spec.pods.{stage}.resources.limits.memory if the container reached its limit; for GPU memory lower spec.compute.microBatchTokens or spec.data.maxLength"),
    FailureCode.DIVERGED: Failure("fatal", "The loss is NaN or infinite, or stays far above its best value.", "Lower spec.training.learningRate, raise spec.training.warmupRatio, or check the data; the best checkpoint is kept in the workspace"),
    FailureCode.HOST_MEMORY_EXCEEDED: Failure("infra", "The node ran out of memory and evicted the pod, which used more than it requested.", "Set spec.pods.{stage}.resources.requests.memory to what the pod uses"),
    FailureCode.STORAGE_FULL: Failure("infra", "A claim or the disk of the node is full, or the pod used more disk than its limit.", "Use a larger claim, or lower spec.checkpoint.keep; if the pod was evicted, raise its ephemeral-storage request and limit in spec.pods.{stage}.resources"),
    FailureCode.HUB_UNREACHABLE: Failure("infra", "The model hub does not answer.", "Check the network and the proxy in spec.pods.prepare.env, or set an endpoint"),
    FailureCode.SOURCE_UNREACHABLE: Failure("infra", "The server of a location does not answer.", "Check the network and the proxy in spec.pods.prepare.env, or copy the files to a claim"),
    FailureCode.PEER_LOST: Failure("infra", "The ranks of a training lost each other.", "Read the logs of the other pods; if it happens again, check the network between the nodes"),
    FailureCode.HANG: Failure("infra", "A training made no step for longer than its time-out.", "Read the stack dumps in the attempt's folder; if it happens again, check the network and the GPUs of the nodes"),
    FailureCode.SUPERSEDED: Failure("infra", "A newer attempt of the same job took over the checkpoints.", "Check that nothing else starts pods of this job"),
    FailureCode.DEADLINE_EXCEEDED: Failure("infra", "The Job or pod ran longer than its activeDeadlineSeconds, which this operator does not set.", "Exclude the FineTuneJob's Jobs and pods from the policy that sets activeDeadlineSeconds, or raise its value"),
    FailureCode.INIT_CONTAINER_FAILED: Failure("infra", "An init container failed, so that the trainer did not start.", "Read its log: kubectl logs {pod} -c {container}; it was added by spec.pods or by a webhook"),
    FailureCode.CONTAINER_FAILED: Failure("infra", "A container next to the trainer failed, and its pod with it.", "Read its log: kubectl logs {pod} -c {container}; it was added by a webhook"),
    FailureCode.START_TIMEOUT: Failure("infra", "The pods of an attempt did not start within `spec.retry.startTimeout`.", "Fix what the message names, or raise spec.retry.startTimeout"),
    FailureCode.START_FAILED: Failure("infra", "The container runtime could not start the trainer.", "Correct spec.pods.common.image, or the runtime of the node (kubectl describe node {node})"),
    FailureCode.WRONG_ARCHITECTURE: Failure("infra", "The image was built for another CPU architecture than the node has.", "Use an image for the architecture of the node, or set spec.pods.common.nodeSelector[kubernetes.io/arch]"),
    FailureCode.KILLED: Failure("infra", "The trainer was killed with SIGKILL, and not for its own memory limit.", "Find out what killed it on node {node}: memory pressure of the whole node (kubectl describe node {node}), an agent, or a person"),
    FailureCode.UNKNOWN: Failure("infra", "Any other failure.", "Read the log of the pod: kubectl logs {pod}"),
    FailureCode.EVICTED: Failure("evicted", "A pod was evicted, preempted, drained or deleted, or disappeared."),
    FailureCode.NODE_LOST: Failure("evicted", "The node of a pod does not answer.", "Repair or delete the node; the stage resumes on another one"),
    FailureCode.POD_REJECTED: Failure("evicted", "The kubelet rejected a pod before any of its containers started.", "If it happens again, check the free resources of node {node}: kubectl describe node {node}"),
    FailureCode.STOPPED: Failure("evicted", "The trainer was asked to stop and saved a checkpoint."),
}  # fmt: skip

KNOWN_CODES: frozenset[str] = frozenset({*FAILURES, *CHECKS})
"""Everything that may stand in status.failure.code; nothing else becomes a reason of a condition or a metric label."""


def known_code(code: str) -> str:
    """The code, or Unknown for one that is in no table: a pod's image is chosen by its user and may write anything."""
    return code if code in KNOWN_CODES else FailureCode.UNKNOWN
