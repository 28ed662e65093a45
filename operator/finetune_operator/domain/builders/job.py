"""The batch/v1 Job of one attempt at one stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.contract import CONTAINER, ExitCode
from finetune_api.finetunejob import Metadata
from finetune_api.pods import Pods, PodSettings
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage

from finetune_operator.domain.builders.pod import grace_seconds, pod_template
from finetune_operator.domain.names import (
    ANNOTATION_DIGEST,
    ANNOTATION_HELD,
    ANNOTATION_PREVIOUS,
    child_name,
    labels,
    owner,
)


def pod_settings(spec: FineTuneJobSpec, stage: Stage) -> PodSettings:
    return (spec.pods or Pods()).of(stage)


_QUEUE_PREFIX = "kueue.x-k8s.io/"
_DIGEST_VERSION = "v2:"
_SWITCHES = {
    "suspend",
    "budget",
    "mode",
    "retry",
    "ready_when",
    "ttl_seconds_after_finished",
    "run_token",
    "managed_by",
}


def digest(wanted: FineTuneJobSpec, stage: Stage) -> str:
    """Hash the settings that a stage's Job and run config are built from.

    `wanted` is the spec as the user wrote it. Platform defaults are frozen and decided values follow from the spec, so
    neither belongs in it; fields that have their default value do not either. A new version of the operator, with more
    fields or other decisions, therefore computes the same digest for the same spec.
    """
    settings = wanted.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_defaults=True, exclude=_SWITCHES | {"pods"}
    )
    settings["pods"] = pod_settings(wanted, stage).model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
    )
    text = json.dumps(_without_empty(settings), sort_keys=True)
    return _DIGEST_VERSION + hashlib.sha256(text.encode()).hexdigest()[:16]


def outdated(recorded: str | None, wanted: FineTuneJobSpec, stage: Stage) -> bool:
    """Return whether a Job with this digest was built from other settings. False for a digest of an unknown version: what
    it covers cannot be compared, and replacing the Job would cost its place in a queue."""
    return recorded is not None and recorded.startswith(_DIGEST_VERSION) and recorded != digest(wanted, stage)


def _without_empty(node: Any) -> Any:
    """Drop empty groups: an absent group and one with defaults alone are the same setting."""
    if not isinstance(node, dict):
        return node
    return {name: kept for name, value in node.items() if (kept := _without_empty(value)) != {}}


def job(
    metadata: Metadata,
    spec: FineTuneJobSpec,
    run: str,
    stage: Stage,
    attempt: int,
    run_config: str,
    previous: Mapping[str, Any] | None = None,
    *,
    wanted: FineTuneJobSpec | None = None,
    checkpoint_seconds: float | None = None,
    avoided_nodes: Sequence[str] = (),
    host_memory: int | None = None,
) -> dict[str, Any]:
    """Build a gang of `nodes` pods for train, one pod for the other stages.

    `spec` is resolved, `run_config` the text of its run config, `wanted` the one it was resolved from (None: `spec`). `previous` is the end of the attempt before;
    `host_memory` what training is planned to take, in bytes; `checkpoint_seconds` how long a checkpoint of this job was measured to take.

    Exit 5 (stopped with a checkpoint) is ignored, so that the same Job resumes; 3, 4 and 6 end it at once; anything else
    is the one failure that ends it (backoffLimit 0), since a gang without one rank is no gang. A train Job is created
    suspended: whoever may release it is known only from the API server's answer.
    """
    name = child_name(metadata.name, run, stage, attempt)
    settings = pod_settings(spec, stage)
    common = labels(metadata, run, stage, attempt)
    annotations = {
        **_for_queues(metadata.annotations),
        **(settings.job_annotations or {}),
        ANNOTATION_DIGEST: digest(wanted or spec, stage),
    }
    pods = 1
    if stage == "train":
        pods = spec.compute.nodes
        annotations[ANNOTATION_HELD] = "true"
    if previous is not None:
        annotations[ANNOTATION_PREVIOUS] = json.dumps(previous, sort_keys=True)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": metadata.namespace,
            "labels": {**_for_queues(metadata.labels), **(settings.job_labels or {}), **common},
            "annotations": annotations,
            "ownerReferences": [owner(metadata)],
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    _rule("Ignore", ExitCode.STOPPED),
                    _rule("FailJob", ExitCode.BAD_INPUT, ExitCode.OUT_OF_MEMORY, ExitCode.DIVERGED),
                ]
            },
            **({"suspend": True} if stage == "train" else {}),
            "template": pod_template(
                spec,
                settings,
                stage,
                name,
                common,
                run_config,
                grace_seconds(settings, stage, checkpoint_seconds),
                avoided_nodes,
                host_memory,
            ),
        },
    }


def _for_queues(of_job: Mapping[str, str]) -> dict[str, str]:
    """Labels or annotations of the FineTuneJob that a queue system expects on the Job."""
    return {key: value for key, value in of_job.items() if key.startswith(_QUEUE_PREFIX)}


def _rule(action: str, *codes: ExitCode) -> dict[str, Any]:
    values = [int(code) for code in codes]
    return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": values}}
