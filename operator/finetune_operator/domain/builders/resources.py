"""What a stage's container asks for when nobody says it."""

from __future__ import annotations

from typing import Any

from finetune_api.planner.gpus import size_of
from finetune_api.pods import Resources
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage

# Small, so that a laptop can place them: a request is a floor. No CPU limit, since throttled ranks hold up the whole gang.
_CPU_STAGE = {"cpu": "250m", "memory": "512Mi"}


def resources(
    spec: FineTuneJobSpec, stage: Stage, asked: Resources | None, planned: int | None = None
) -> dict[str, Any]:
    """Requests, limits and claims of a stage's container: the defaults with the user's own on top. Training requests
    `planned`, the bytes of host memory of its plan, if that is more than the default."""
    requests: dict[str, Any] = dict(_CPU_STAGE)
    limits: dict[str, Any] = {}
    compute = spec.compute
    if stage == "train":
        if compute.gpus_per_node:
            requests = {"cpu": str(compute.gpus_per_node), "memory": f"{4 * compute.gpus_per_node}Gi"}
            limits[compute.gpu_resource] = compute.gpus_per_node
        else:
            processes = compute.processes_per_node or 1
            requests = {"cpu": f"{250 * processes}m", "memory": f"{512 * processes}Mi"}
        if planned is not None:
            requests["memory"] = max(requests["memory"], f"{-(-planned // 2**20)}Mi", key=size_of)
    if asked is not None:
        limits |= asked.limits or {}
        # A limit without a request is taken as the request; our floor must not stand above it.
        for name in asked.limits or {}:
            requests.pop(name, None)
        requests |= asked.requests or {}
    claims = {"claims": asked.claims} if asked is not None and asked.claims else {}
    return {"requests": requests, **({"limits": limits} if limits else {}), **claims}
