"""Names and labels. They follow from the job alone, so that a crash between any two writes is repaired by doing it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from finetune_api import API_VERSION, GROUP, KIND
from finetune_api.contract import (
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_RUN,
    LABEL_STAGE,
    LABEL_UID,
    MANAGED_BY,
    MANAGED_BY_LABEL,
)
from finetune_api.finetunejob import Metadata
from finetune_api.status import Stage

ANNOTATION_HELD = f"{GROUP}/held"
"""On a suspended Job: this operator suspended it and may release it. A suspended Job without it is somebody else's to release."""
ANNOTATION_DIGEST = f"{GROUP}/settings-digest"
"""Which settings a Job was built from; a Job that never ran is replaced when they change. Earlier versions compare
`spec-digest` and keep a Job without it, so queued Jobs survive a rollback."""
ANNOTATION_RUN_CONFIG = f"{GROUP}/run-config"
"""On pods: the run config, which they mount as a file. It comes and goes with the pod, in the same write as the Job."""
ANNOTATION_PREVIOUS = f"{GROUP}/previous-attempt"
"""The verdict on the attempt before, since pods take their messages with them."""

# No vowels, so that no word appears; no 0, 1, 3 to be misread.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def run_of(uid: str, run_token: str | None, again: int = 0) -> str:
    """Name of a run: five characters that depend on the job's uid and spec.runToken alone, and for a token that the job had
    before on `again`."""
    text = f"{uid}\0{run_token or ''}" + (f"\0{again}" if again else "")
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    letters = []
    for _ in range(5):
        number, index = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[index])
    return "".join(letters)


def child_name(job: str, run: str, stage: Stage, attempt: int) -> str:
    """Name of a stage's Job and Service. At most 58 characters for jobs of the longest name and 99 attempts:
    an Indexed Job's pods need DNS labels, with their index behind it."""
    return f"{job}-{run}-{stage}-{attempt}"


def attempt_name(labels: Mapping[str, str]) -> str:
    """Name of the Job that the labels of a child or a pod belong to; empty where they are not ours."""
    parts = [labels.get(label, "") for label in (LABEL_JOB, LABEL_RUN, LABEL_STAGE, LABEL_ATTEMPT)]
    return "-".join(parts) if all(parts) else ""


def labels(metadata: Metadata, run: str, stage: Stage, attempt: int) -> dict[str, str]:
    """Labels of every child, and of its pods."""
    return {
        MANAGED_BY_LABEL: MANAGED_BY,
        LABEL_JOB: metadata.name,
        LABEL_UID: metadata.uid,
        LABEL_RUN: run,
        LABEL_STAGE: stage,
        LABEL_ATTEMPT: str(attempt),
    }


def owner(metadata: Metadata) -> dict[str, Any]:
    """The owner reference of every child: the garbage collector deletes it with its FineTuneJob."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": metadata.name,
        "uid": metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
