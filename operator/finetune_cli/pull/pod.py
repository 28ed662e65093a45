"""The short-lived pod that reads the output claim: the publish stage's image and place, less rights."""

from __future__ import annotations

import secrets
from typing import Any

from finetune_api import API_VERSION, KIND
from finetune_api.effective import PlatformDefaults, resolve
from finetune_api.finetunejob import FineTuneJob
from finetune_api.location import CLAIMS_ROOT, parse_uri
from finetune_api.operator_state import OperatorState
from finetune_api.pods import Pods

from finetune_cli.errors import CliError

CONTAINER = "reader"
LIFETIME_SECONDS = 6 * 3600
"""The pod ends by itself after this, in case that nobody was left to delete it."""
USER = 65532

TAR = """
import pathlib, sys, tarfile
folder = pathlib.Path(sys.argv[1])
names = [line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", bufsize=1 << 20) as archive:
    for name in ["SHA256SUMS", "finetune.json", *names]:
        if (folder / name).is_file():
            archive.add(folder / name, arcname=name, recursive=False)
"""
"""Sends what was published and nothing else: the output may be the root of a claim that holds more."""


def reading_pod(job: FineTuneJob, uri: str) -> dict[str, Any]:
    """Mounts the claim of `uri` read-only and sleeps. Owned by the job, so that it cannot outlive it."""
    location = parse_uri(uri)
    settings = (
        resolve(job.spec, PlatformDefaults.model_validate(OperatorState.of(job.status).defaults or {})).pods or Pods()
    ).of("publish")
    if not settings.image:
        raise CliError(f"{job.metadata.name} names no trainer image, so there is nothing to read {uri} with")
    small = {"cpu": "50m", "memory": "64Mi"}
    placement = {
        "imagePullSecrets": [secret.wire() for secret in settings.image_pull_secrets or []],
        "nodeSelector": settings.node_selector,
        "tolerations": settings.tolerations,
        "affinity": settings.affinity,
        "runtimeClassName": settings.runtime_class_name,
        "schedulerName": settings.scheduler_name,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{job.metadata.name}-pull-{secrets.token_hex(3)}",
            "labels": {**(settings.labels or {}), "app.kubernetes.io/managed-by": "ftj"},
            "annotations": settings.annotations or {},
            "ownerReferences": [
                {"apiVersion": API_VERSION, "kind": KIND, "name": job.metadata.name, "uid": job.metadata.uid}
            ],
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFETIME_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
                **(settings.security_context or {}),
            },
            "containers": [
                {
                    "name": CONTAINER,
                    "image": settings.image,
                    **({"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {}),
                    "command": ["python", "-c", f"import time; time.sleep({LIFETIME_SECONDS})"],
                    "resources": {"requests": small, "limits": {"cpu": "1", "memory": "256Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "output", "mountPath": f"{CLAIMS_ROOT}/{location.claim}", "readOnly": True}
                    ],
                }
            ],
            "volumes": [{"name": "output", "persistentVolumeClaim": {"claimName": location.claim, "readOnly": True}}],
            **{name: value for name, value in placement.items() if value},
        },
    }


def tar_command(uri: str) -> list[str]:
    """What to execute in the pod so that the folder `uri` comes out as a tar stream."""
    return ["python", "-c", TAR, str(parse_uri(uri).on_disk(CLAIMS_ROOT))]


def waiting_for(pod: dict[str, Any]) -> str | None:
    """Why the pod does not run yet; None when it does. Raises CliError when it never will."""
    status = pod.get("status", {})
    if status.get("phase") in ("Failed", "Succeeded"):
        raise CliError(f"the reading pod ended: {status.get('message') or status.get('reason') or status['phase']}")
    for container in status.get("containerStatuses", []):
        state = container.get("state", {})
        if "running" in state:
            return None
        if "waiting" in state and state["waiting"].get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{state['waiting']['reason']}: {state['waiting'].get('message', '')}".rstrip(": ")
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason"))
    return "starting"
