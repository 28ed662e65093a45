"""Kinds and their paths on the API server."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api import GROUP, PLURAL, VERSION
from finetune_api.contract import LABEL_UID

CHILDREN = LABEL_UID
"""Label selector of our children: the existence of a label that only we set. Tools and policies rewrite
app.kubernetes.io/managed-by."""


@dataclass(frozen=True, slots=True)
class Resource:
    """`selector`: the labels of those that concern us; the API server leaves out the others."""

    kind: str
    group: str
    version: str
    plural: str
    selector: str = ""

    def path(self, namespace: str | None, name: str | None = None, subresource: str = "") -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, f"namespaces/{namespace}" if namespace else "", self.plural, name or "", subresource]
        return "/".join(part for part in parts if part)


FINETUNEJOB = Resource("FineTuneJob", GROUP, VERSION, PLURAL)
JOB = Resource("Job", "batch", "v1", "jobs", CHILDREN)
POD = Resource("Pod", "", "v1", "pods", CHILDREN)
SERVICE = Resource("Service", "", "v1", "services")
CLAIM = Resource("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims")
NODE = Resource("Node", "", "v1", "nodes")
EVENT = Resource("Event", "events.k8s.io", "v1", "events")
LEASE = Resource("Lease", "coordination.k8s.io", "v1", "leases")

WATCHED = (FINETUNEJOB, JOB, POD)
BY_KIND = {resource.kind: resource for resource in (FINETUNEJOB, JOB, POD, SERVICE, CLAIM, EVENT)}
