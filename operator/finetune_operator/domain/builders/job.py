"""The batch/v1 Job of one attempt at one stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from finetune_api.contract import CONTAINER, ExitCode
from finetune_api.finetunejob import Metadata
from finetune_api.pods import Pods, PodSettings
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage

from finetune_operator.domain.builders.pod import pod_template
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


def digest(spec: FineTuneJobSpec, stage: Stage) -> str:
    """Of every setting that a stage's Job and run config are made from."""
    made_from = spec.model_dump(
        mode="json",
        exclude={
            "pods",
            "suspend",
            "budget",
            "mode",
            "retry",
            "ready_when",
            "ttl_seconds_after_finished",
            "run_token",
            "managed_by",
        },
    )
    made_from["pods"] = pod_settings(spec, stage).wire()
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def job(
    metadata: Metadata,
    spec: FineTuneJobSpec,
    run: str,
    stage: Stage,
    attempt: int,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A gang of `nodes` pods for train, one pod for the other stages. `previous`: the verdict on the attempt before.

    Exit 5 (stopped with a checkpoint) is ignored, so that the same Job goes on; 3, 4 and 6 end it at once; anything else
    is the one failure that ends it (backoffLimit 0), since a gang without one rank is no gang. A train Job is created
    suspended: whoever may release it is known only from the API server's answer.
    """
    name = child_name(metadata.name, run, stage, attempt)
    common = labels(metadata, run, stage, attempt)
    annotations = {ANNOTATION_DIGEST: digest(spec, stage)}
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
            "labels": common,
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
            "template": pod_template(spec, pod_settings(spec, stage), stage, name, common),
        },
    }


def _rule(action: str, *codes: ExitCode) -> dict[str, Any]:
    values = [int(code) for code in codes]
    return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": values}}
