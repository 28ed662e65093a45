"""What users and platform teams may say about the pods of each stage: typed, merged by name, never patched."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, PreservedObject

PodName = Annotated[str, Field(max_length=253)]
"""The name of an object that pods refer to: the API server checks it with the Job."""
LabelValue = Annotated[str, Field(max_length=63)]
Annotation = Annotated[str, Field(max_length=4096)]
Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        }
    ),
]


class EnvVar(ApiModel):
    """One environment variable; with `valueFrom` it comes from a Secret, a ConfigMap or the pod itself."""

    name: str = Field(min_length=1, max_length=256)
    value: str | None = Field(default=None, max_length=4096)
    value_from: PreservedObject | None = None


class NamedObject(ApiModel):
    """Reference by name."""

    name: PodName


class Resources(ApiModel):
    """Requests, limits and claims of the stage's container, as in a Pod."""

    requests: dict[str, Quantity] | None = Field(default=None, max_length=16)
    limits: dict[str, Quantity] | None = Field(default=None, max_length=16)
    claims: list[PreservedObject] | None = Field(
        default=None, max_length=16, description="Entries of resourceClaims that the container uses."
    )


class PodSettings(ApiModel):
    """Settings of the pods of one stage. Absent means the default, which satisfies the restricted Pod Security Standard."""

    image: str | None = Field(default=None, min_length=1, max_length=512, description="Trainer image of this stage.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: list[NamedObject] | None = Field(default=None, max_length=8)
    service_account_name: PodName | None = None
    labels: dict[str, LabelValue] | None = Field(default=None, max_length=32, description="Labels of the pods.")
    annotations: dict[str, Annotation] | None = Field(
        default=None, max_length=32, description="Annotations of the pods."
    )
    job_labels: dict[str, LabelValue] | None = Field(
        default=None,
        max_length=32,
        description="Labels of the Job itself, where queues read theirs, such as kueue.x-k8s.io/queue-name. Labels of the FineTuneJob that begin with kueue.x-k8s.io/ reach the Job without being repeated here.",
    )
    job_annotations: dict[str, Annotation] | None = Field(
        default=None, max_length=32, description="Annotations of the Job itself, likewise."
    )
    node_selector: dict[str, LabelValue] | None = Field(default=None, max_length=16)
    tolerations: list[PreservedObject] | None = Field(default=None, max_length=16, description="As in a Pod.")
    affinity: PreservedObject | None = Field(default=None, description="As in a Pod.")
    topology_spread_constraints: list[PreservedObject] | None = Field(
        default=None, max_length=16, description="As in a Pod."
    )
    env: list[EnvVar] | None = Field(default=None, max_length=64, description="Environment variables, merged by name.")
    volumes: list[PreservedObject] | None = Field(
        default=None, max_length=16, description="Volumes as in a Pod, merged by name."
    )
    volume_mounts: list[PreservedObject] | None = Field(
        default=None,
        max_length=16,
        description="Mounts as in a Pod, merged by path. A mount at /dev/shm, /tmp, /scratch or at the path of a claim replaces the operator's own.",
    )
    resources: Resources | None = None
    resource_claims: list[PreservedObject] | None = Field(
        default=None,
        max_length=16,
        description="Resource claims of the pod (dynamic resource allocation), as in a Pod, merged by name; resources.claims assigns them to the container.",
    )
    termination_grace_period_seconds: Annotated[int, Field(ge=0, le=86400)] | None = Field(
        default=None,
        description="Time between SIGTERM and SIGKILL, in which a training saves a checkpoint. Absent: 30 s; for train at least 120 s, and three times the measured time of a checkpoint.",
    )
    host_network: bool | None = Field(
        default=None, description="Use the node's network, as some RDMA setups need; the namespace must allow it."
    )
    runtime_class_name: PodName | None = None
    scheduler_name: str | None = Field(default=None, max_length=63)
    security_context: PreservedObject | None = Field(
        default=None,
        description="The pod's security context, as in a Pod, laid over the default (runAsUser 65532, runAsGroup 65532, fsGroup 65532). null removes a default, so that the cluster assigns the value.",
    )


class Pods(ApiModel):
    """Pod settings: `common` for every stage, then those of the stage on top, lists merged by name."""

    common: PodSettings | None = None
    prepare: PodSettings | None = None
    train: PodSettings | None = None
    publish: PodSettings | None = None

    def of(self, stage: str) -> PodSettings:
        """Settings of `stage`: common beneath, the stage's own on top."""
        return merge(self.common, getattr(self, stage))


def _by_name(below: list[Any], above: list[Any]) -> list[Any]:
    def key(item: Any) -> Any:
        name = item.get("name") if isinstance(item, dict) else getattr(item, "name", None)
        # A volume may be mounted twice, so a mount is known by its path, not by its volume's name.
        return item.get("mountPath", name) if isinstance(item, dict) else name

    merged = {key(item): item for item in below}
    merged.update({key(item): item for item in above})
    return list(merged.values())


def merge(below: PodSettings | None, above: PodSettings | None) -> PodSettings:
    """Lay `above` over `below`: maps by key, named lists by name, lists without names appended, everything else replaced."""
    if below is None or above is None:
        return above or below or PodSettings()
    values: dict[str, Any] = {}
    for field in PodSettings.model_fields:
        low, high = getattr(below, field), getattr(above, field)
        if low is None or high is None:
            values[field] = low if high is None else high
        elif field in ("tolerations", "topology_spread_constraints"):
            values[field] = low + [item for item in high if item not in low]
        elif isinstance(low, list):
            values[field] = _by_name(low, high)
        elif field == "resources":
            values[field] = Resources(
                requests={**(low.requests or {}), **(high.requests or {})} or None,
                limits={**(low.limits or {}), **(high.limits or {})} or None,
                claims=_by_name(low.claims or [], high.claims or []) or None,
            )
        elif isinstance(low, dict):
            values[field] = {**low, **high}
        else:
            values[field] = high
    return PodSettings(**values)
