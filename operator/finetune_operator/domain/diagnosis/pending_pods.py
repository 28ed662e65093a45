"""Why the pods of a stage do not run yet, in the words of somebody who has to mend it.

A table of small functions, each of which knows one cause; the first that speaks wins. None of these causes fails a job:
it goes on by itself once the cause is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_operator.domain.observed import JobView, ObservedState, PodView, Read
from finetune_operator.domain.reasons import Reason

NO_PODS_S = 4.0
"""A Job without pods for longer than this is asked for its warnings."""
SLOW_START_S = 12.0
"""So is a pod that has a node and does not start."""
UNPLACED_S = 3.0
"""A pod may be without a node for a moment before anybody is told."""
LOOK_AGAIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong and what to do, each one sentence."""

    reason: Reason
    message: str
    remedy: str

    @property
    def text(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`reads`: what would tell more. `requeue_after`: seconds until another look could tell more."""

    problem: Problem | None = None
    reads: frozenset[Read] = frozenset()
    requeue_after: float | None = None


def diagnose(seen: ObservedState, job: JobView, pods: Sequence[PodView], missing: bool, now: float) -> Diagnosis:
    """Why not every pod of `job` runs. `pods` are those that should run now; `missing`: some were not even created."""
    for pod in pods:
        for known in _OF_A_POD:
            problem = known(pod)
            if problem is not None:
                return Diagnosis(problem)  # its end is an event of the pod
    unplaced = [pod for pod in pods if pod.unschedulable is not None]
    if unplaced:
        since = min(pod.unschedulable_since or pod.created for pod in unplaced)
        if 0 <= now - since < UNPLACED_S:
            return Diagnosis(requeue_after=UNPLACED_S)
        return Diagnosis(_unschedulable(unplaced[0]))
    if missing:
        return _by_warnings(seen, job.name, now - job.created, NO_PODS_S, _no_pods)
    slow = [pod for pod in pods if pod.node and not pod.running and not pod.over]
    if slow:
        oldest = min(slow, key=lambda pod: pod.created)
        return _by_warnings(seen, oldest.name, now - oldest.created, SLOW_START_S, lambda w: _not_starting(oldest, w))
    return Diagnosis()


def _by_warnings(
    seen: ObservedState, name: str, age: float, patience: float, judge: Callable[[Sequence[str] | None], Problem | None]
) -> Diagnosis:
    """A negative age is a clock that differs, not an object from the future: then nobody waits."""
    if 0 <= age < patience:
        return Diagnosis(requeue_after=patience - age + 0.5)
    if name not in seen.warnings:
        return Diagnosis(reads=frozenset({Read("warnings", name)}), requeue_after=LOOK_AGAIN_S)
    return Diagnosis(judge(seen.warnings[name]), requeue_after=LOOK_AGAIN_S)


def _image(pod: PodView) -> Problem | None:
    if pod.waiting not in (
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    ):
        return None
    image = f" {pod.image}" if pod.image else ""
    # The kubelet alternates between two reasons and wraps one text in the other: say the part that stays.
    detail = re.sub(r'^Back-off pulling image "[^"]*":? ?', "", pod.waiting_text or "")
    detail = re.sub(r"^(ErrImagePull|InvalidImageName|RegistryUnavailable):? ?", "", detail)
    return Problem(
        Reason.IMAGE_PULL_FAILED,
        f"The image{image} cannot be pulled on node {pod.node}" + (f": {_clipped(detail)}" if detail else ""),
        "Correct spec.pods.common.image, or name pull secrets in spec.pods.common.imagePullSecrets",
    )


def _configuration(pod: PodView) -> Problem | None:
    if pod.waiting != "CreateContainerConfigError":
        return None
    return _missing_object(pod.waiting_text or "") or Problem(
        Reason.CONTAINER_NOT_STARTED,
        f"The container of pod {pod.name} cannot be made: {_clipped(pod.waiting_text)}",
        "Correct spec.pods of the job",
    )


def _container(pod: PodView) -> Problem | None:
    if pod.waiting not in ("CreateContainerError", "RunContainerError", "StartError", "PostStartHookError"):
        return None
    return Problem(
        Reason.CONTAINER_NOT_STARTED,
        f"The container of pod {pod.name} cannot start: {_clipped(pod.waiting_text)}",
        "Correct the image or spec.pods of the job",
    )


_OF_A_POD: tuple[Callable[[PodView], Problem | None], ...] = (_image, _configuration, _container)


def _missing_object(text: str) -> Problem | None:
    if match := re.search(r'secret "([^"]+)" not found', text):
        name = match[1]
        return Problem(
            Reason.MISSING_SECRET,
            f"Secret {name} does not exist in this namespace",
            f"Create it (kubectl create secret generic {name} ...), or correct the secretRef",
        )
    if match := re.search(r'configmap "([^"]+)" not found', text):
        name = match[1]
        return Problem(
            Reason.MISSING_CONFIG_MAP,
            f"ConfigMap {name} does not exist in this namespace",
            "Create it, or correct the caBundleRef, or spec.pods",
        )
    if match := re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) \S*/([^\s/]+)", text):
        reason = Reason.MISSING_SECRET if match[2] == "Secret" else Reason.MISSING_CONFIG_MAP
        return Problem(reason, f"{match[2]} {match[3]} has no key {match[1]}", "Add the key, or correct spec.pods")
    return None


def missing_claim(name: str) -> Problem:
    return Problem(
        Reason.MISSING_CLAIM,
        f"PersistentVolumeClaim {name} does not exist in this namespace",
        "Create it, or correct the pvc:// location that names it",
    )


def _unschedulable(pod: PodView) -> Problem:
    text = pod.unschedulable or ""
    if match := re.search(r'persistentvolumeclaim "([^"]+)" not found', text):
        return missing_claim(match[1])
    if "unbound immediate PersistentVolumeClaims" in text or "unbound PersistentVolumeClaim" in text:
        which = f"PersistentVolumeClaim {pod.claims[0]} is" if len(pod.claims) == 1 else "A PersistentVolumeClaim is"
        among = f" (one of {', '.join(pod.claims)})" if len(pod.claims) > 1 else ""
        return Problem(
            Reason.UNBOUND_CLAIM,
            f"{which} not bound to a volume{among}, so pod {pod.name} waits",
            "Look at `kubectl describe pvc`: does its storage class exist, and can it make a volume?",
        )
    return Problem(
        Reason.UNSCHEDULABLE,
        f"No node takes pod {pod.name}: {_clipped(text)}",
        "Free or add nodes, lower spec.compute or spec.pods resources, or correct spec.pods nodeSelector, affinity and tolerations",
    )


def _no_pods(warnings: Sequence[str] | None) -> Problem | None:
    text = warnings[0] if warnings else ""
    if "exceeded quota" in text or "must specify" in text:
        return Problem(
            Reason.QUOTA_EXCEEDED,
            f"The namespace's quota allows no more pods: {_clipped(text)}",
            "Free quota or raise it (kubectl describe quota), or lower spec.compute and spec.pods resources",
        )
    if "violates PodSecurity" in text:
        return Problem(
            Reason.POD_SECURITY,
            f"The namespace's Pod Security level refuses the pods: {_clipped(text)}",
            "Remove what it names from spec.pods, or use a namespace with a looser level",
        )
    if text:
        return Problem(
            Reason.PODS_NOT_CREATED,
            f"The Job's pods cannot be created: {_clipped(text)}",
            "Mend what the message names",
        )
    if warnings is None:
        return Problem(Reason.PODS_NOT_CREATED, "The Job has no pods yet", "Its events say why: kubectl describe job")
    return None


def _not_starting(pod: PodView, warnings: Sequence[str] | None) -> Problem | None:
    text = warnings[0] if warnings else ""
    if missing := _missing_object(text):
        return missing
    if text:
        return Problem(
            Reason.MOUNT_FAILED if "ount" in text or "ttach" in text else Reason.CONTAINER_NOT_STARTED,
            f"Pod {pod.name} does not start on node {pod.node}: {_clipped(text)}",
            "Mend what the message names",
        )
    return None


def _clipped(text: str | None, limit: int = 600) -> str:
    line = " ".join((text or "").split()).rstrip(".")
    return line if len(line) <= limit else line[: limit - 1] + "…"
