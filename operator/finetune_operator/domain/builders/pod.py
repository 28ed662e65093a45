"""The pod template of a stage. Its defaults satisfy the restricted Pod Security Standard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.contract import (
    CONTAINER,
    ENV_MASTER_ADDR,
    ENV_NODE_NAME,
    ENV_POD_NAME,
    ENV_SCRATCH,
    PROGRESS_PORT,
    RUN_CONFIG_PATH,
    SCRATCH,
)
from finetune_api.pods import PodSettings
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage

from finetune_operator.domain.builders.resources import resources
from finetune_operator.domain.builders.storage import secrets, volumes
from finetune_operator.domain.names import ANNOTATION_RUN_CONFIG

USER = 65532
GRACE_SECONDS: Mapping[str, int] = {"prepare": 30, "train": 120, "publish": 30}
"""Time between SIGTERM and SIGKILL: a training saves a checkpoint in it."""
_LONGEST_GRACE_S = 3600
_GRACE_STEP_S = 30


def grace_seconds(settings: PodSettings, stage: Stage, checkpoint_seconds: float | None = None) -> int:
    """Return the grace period of a stage's pods: the user's, else for train three times the measured time of a checkpoint."""
    if settings.termination_grace_period_seconds is not None:
        return settings.termination_grace_period_seconds
    usual = GRACE_SECONDS[stage]
    if stage != "train" or checkpoint_seconds is None:
        return usual
    # Rounded, so that measurements that differ a little give the same pods.
    measured = math.ceil(3 * checkpoint_seconds / _GRACE_STEP_S) * _GRACE_STEP_S
    return min(max(usual, measured), _LONGEST_GRACE_S)


def pod_template(
    spec: FineTuneJobSpec,
    settings: PodSettings,
    stage: Stage,
    name: str,
    labels: Mapping[str, str],
    run_config: str,
    grace: int,
    avoided_nodes: Sequence[str] = (),
    host_memory: int | None = None,
) -> dict[str, Any]:
    """`host_memory` in bytes, as planned; `spec` resolved, `settings` those of this stage, `name` that of its Job and Service."""
    pod_volumes, mounts = volumes(spec, settings, stage)
    metadata: dict[str, Any] = {
        "labels": {**(settings.labels or {}), **labels},
        "annotations": {**(settings.annotations or {}), ANNOTATION_RUN_CONFIG: run_config},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _pod_security(settings),
        "containers": [_container(spec, settings, stage, name, mounts, host_memory)],
        "volumes": pod_volumes,
    }
    if stage == "train":
        if spec.compute.nodes > 1:
            pod["subdomain"] = name
        if spec.scheduling is not None and spec.scheduling.priority_class:
            pod["priorityClassName"] = spec.scheduling.priority_class
    pod |= _placement(settings)
    if avoided_nodes:
        pod["affinity"] = _avoiding(settings.affinity or {}, avoided_nodes)
    return {"metadata": metadata, "spec": pod}


def _avoiding(affinity: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, Any]:
    """`affinity` as in a Pod, with these nodes as the last choice: where there are no others, they are better than none."""
    of_nodes = affinity.get("nodeAffinity") or {}
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    preferred = [
        *(of_nodes.get("preferredDuringSchedulingIgnoredDuringExecution") or []),
        {"weight": 100, "preference": {"matchFields": fields}},
    ]
    return {**affinity, "nodeAffinity": {**of_nodes, "preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def _container(
    spec: FineTuneJobSpec,
    settings: PodSettings,
    stage: Stage,
    name: str,
    mounts: list[dict[str, Any]],
    host_memory: int | None,
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        # The image's own entry point is not relied on.
        "command": ["python", "-m", "finetune_trainer", stage, "--config", RUN_CONFIG_PATH],
        "env": _environment(settings, name if stage == "train" and spec.compute.nodes > 1 else None),
        "ports": [{"name": "progress", "containerPort": PROGRESS_PORT}],
        "resources": resources(spec, stage, settings.resources, host_memory),
        "volumeMounts": mounts,
        # A crash before the trainer can speak for itself still leaves its last words.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if settings.image_pull_policy:
        container["imagePullPolicy"] = settings.image_pull_policy
    if credentials := secrets(spec, stage):
        container["envFrom"] = credentials
    return container


def _environment(settings: PodSettings, gang: str | None) -> list[dict[str, Any]]:
    """The user's variables by name, and the contract's, which no user can change. `gang`: the Service of several pods."""
    usual = {
        "HOME": SCRATCH,
        # A user id without an entry in /etc/passwd has no name, which some libraries ask for.
        "USER": "finetune",
        "LOGNAME": "finetune",
        "PYTHONUNBUFFERED": "1",
    }
    variables: dict[str, dict[str, Any]] = {key: {"name": key, "value": value} for key, value in usual.items()}
    for variable in settings.env or []:
        variables[variable.name] = variable.wire()
    contract: dict[str, dict[str, Any]] = {
        ENV_SCRATCH: {"value": SCRATCH},
        ENV_NODE_NAME: {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ENV_POD_NAME: {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    }
    if gang is not None:
        contract[ENV_MASTER_ADDR] = {"value": f"{gang}-0.{gang}"}
    for key, value in contract.items():
        variables[key] = {"name": key, **value}
    return list(variables.values())


def _pod_security(settings: PodSettings) -> dict[str, Any]:
    context = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        # Volumes may hold millions of files: change their group only where the top folder lacks it.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        **(settings.security_context or {}),
    }
    return {key: value for key, value in context.items() if value is not None}


def _placement(settings: PodSettings) -> dict[str, Any]:
    """Settings that a pod takes as they are."""
    chosen = {
        "imagePullSecrets": [{"name": secret.name} for secret in settings.image_pull_secrets or []],
        "serviceAccountName": settings.service_account_name,
        "nodeSelector": settings.node_selector,
        "tolerations": settings.tolerations,
        "affinity": settings.affinity,
        "topologySpreadConstraints": settings.topology_spread_constraints,
        "resourceClaims": settings.resource_claims,
        "hostNetwork": settings.host_network,
        # Without it pods on the node's network do not resolve the names of the gang's Service.
        "dnsPolicy": "ClusterFirstWithHostNet" if settings.host_network else None,
        "runtimeClassName": settings.runtime_class_name,
        "schedulerName": settings.scheduler_name,
    }
    return {key: value for key, value in chosen.items() if value}
