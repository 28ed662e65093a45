"""What we know of the cluster: FineTuneJobs, their Jobs and pods, as last seen by a watch, a list or an answer.

An object only moves forward: what is older than what we hold is ignored, so an answer to our own write and the watch's echo
of the write before cannot cross. A deleted uid does not come back. `observe` and `forget` say whose plan may change.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from finetune_api.contract import LABEL_JOB
from finetune_api.errors import sentences
from finetune_api.finetunejob import FineTuneJob, Metadata
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from pydantic import ValidationError

from finetune_operator.domain.observed import JobView, ObservedState, PodView
from finetune_operator.runtime.job_cache import JobCache
from finetune_operator.runtime.queue import Key

Object = dict[str, Any]

_TOMBSTONE_S = 600.0


@dataclass(slots=True)
class Held:
    """An object as we hold it: enough to tell older from newer."""

    uid: str
    version: int
    key: Key
    owner: str
    """uid of its FineTuneJob."""


@dataclass(slots=True)
class HeldJob:
    """A FineTuneJob. `body` is the API server's; `spec` is parsed once a generation."""

    body: Object
    version: int
    facts: JobCache = field(default_factory=JobCache)
    spec: FineTuneJobSpec | None = None
    invalid: str | None = None
    unreadable: frozenset[str] = frozenset()
    """Fields of the status that this version cannot read, and must not write."""
    generation: int = -1

    @property
    def uid(self) -> str:
        uid: str = self.body["metadata"]["uid"]
        return uid

    @property
    def status(self) -> Object:
        return self.body.get("status") or {}


class Cache:
    """For one event loop; not for threads."""

    def __init__(self) -> None:
        self._finetunejobs: dict[Key, HeldJob] = {}
        self._jobs: dict[str, dict[str, JobView]] = {}  # by owner's uid, by name
        self._pods: dict[str, dict[str, PodView]] = {}  # by owner's uid, by name
        self._held: dict[tuple[str, str, str], Held] = {}  # (kind, namespace, name) of Jobs and pods
        self._tombs: dict[str, float] = {}
        self._departed: dict[str, list[PodView]] = {}
        """By owner's uid: pods that are gone and whose termination messages no reconcile has seen."""

    # What happens in the cluster.

    def observe(self, kind: str, body: Object) -> Key | None:
        """Take in an object. Returns the job whose plan may change by it; None when nothing did."""
        metadata = body["metadata"]
        if metadata["uid"] in self._tombs:
            return None
        if kind == "FineTuneJob":
            return self._observe_finetunejob(body)
        place = (kind, metadata["namespace"], metadata["name"])
        held = self._held.get(place)
        version = _version(body)
        if held is not None and held.uid == metadata["uid"] and version <= held.version:
            return None
        if held is not None and held.uid != metadata["uid"]:
            self._drop(place)
        view: JobView | PodView = JobView.of(body) if kind == "Job" else PodView.of(body)
        owner = view.owner
        if not owner:
            return None
        key = (metadata["namespace"], (metadata.get("labels") or {}).get(LABEL_JOB, ""))
        self._held[place] = Held(view.uid, version, key, owner)
        shelf: dict[str, Any] = (self._jobs if kind == "Job" else self._pods).setdefault(owner, {})
        before = shelf.get(view.name)
        shelf[view.name] = view
        return key if before != view else None

    def forget(self, kind: str, namespace: str, name: str, uid: str) -> Key | None:
        """Take an object out for good."""
        self._bury(uid)
        if kind == "FineTuneJob":
            held = self._finetunejobs.get((namespace, name))
            if held is None or held.uid != uid:
                return None
            del self._finetunejobs[namespace, name]
            self._departed.pop(uid, None)
            return (namespace, name)
        place = (kind, namespace, name)
        known = self._held.get(place)
        if known is None or known.uid != uid:
            return None
        pod = self._pods.get(known.owner, {}).get(name) if kind == "Pod" else None
        said = pod is not None and pod.ended is not None and pod.ended.message is not None
        if pod is not None and said and known.owner not in self._tombs:
            self._departed.setdefault(known.owner, []).append(pod)
        self._drop(place)
        return known.key

    # What a plan looks at.

    def finetunejob(self, key: Key) -> HeldJob | None:
        return self._finetunejobs.get(key)

    def snapshot(self, key: Key) -> ObservedState | None:
        """The job and everything around it; None when there is no such job."""
        held = self._finetunejobs.get(key)
        if held is None:
            return None
        self._parse_spec(held)
        assert held.spec is not None
        status, held.unreadable = read_status(held.status)
        job = FineTuneJob.model_construct(
            metadata=Metadata.model_validate(held.body["metadata"]), spec=held.spec, status=status
        )
        jobs = self._jobs.get(held.uid, {})
        facts = held.facts
        return ObservedState(
            job=job,
            invalid=held.invalid,
            unreadable=held.unreadable,
            jobs=dict(jobs),
            pods=_by_attempt(self._pods.get(held.uid, {}).values()),
            departed=_by_attempt(self._departed.get(held.uid, ())),
            known=frozenset(facts.known),
            claims=dict(facts.claims),
            warnings=dict(facts.warnings),
            refusals=facts.refusals,
            nodes=dict(facts.nodes),
            jobs_read=dict(facts.jobs_read),
            progress=facts.progress,
        )

    def looked_at(self, seen: ObservedState) -> None:
        """What pods that are gone had said stands in the status now."""
        uid, recorded = seen.job.metadata.uid, [pod for pods in seen.departed.values() for pod in pods]
        left = [pod for pod in self._departed.pop(uid, ()) if pod not in recorded]
        if left:
            self._departed[uid] = left

    def names(self) -> list[Key]:
        return list(self._finetunejobs)

    def holdings(self, kind: str) -> Iterator[tuple[str, str, str, int]]:
        """(namespace, name, uid, version) of everything of a kind."""
        if kind == "FineTuneJob":
            for (namespace, name), job in list(self._finetunejobs.items()):
                yield namespace, name, job.uid, job.version
            return
        for (of_kind, namespace, name), held in list(self._held.items()):
            if of_kind == kind:
                yield namespace, name, held.uid, held.version

    def version(self, kind: str, namespace: str, name: str, uid: str) -> int:
        """The version we hold; -1 for none, and the highest there is for what was deleted."""
        if uid in self._tombs:
            return 2**63
        if kind == "FineTuneJob":
            job = self._finetunejobs.get((namespace, name))
            return job.version if job is not None and job.uid == uid else -1
        held = self._held.get((kind, namespace, name))
        return held.version if held is not None and held.uid == uid else -1

    def holds(self, kind: str, namespace: str, name: str, uid: str) -> bool:
        return uid not in self._tombs and self.version(kind, namespace, name, uid) >= 0

    def phases(self) -> Counter[str]:
        return Counter(job.status.get("phase") or "Pending" for job in self._finetunejobs.values())

    def gpus(self) -> int:
        """GPUs of jobs whose training pods run."""
        return sum(
            job.status.get("gpus") or 0 for job in self._finetunejobs.values() if job.status.get("phase") == "Training"
        )

    # Within.

    def _observe_finetunejob(self, body: Object) -> Key | None:
        metadata = body["metadata"]
        key = (metadata["namespace"], metadata["name"])
        version = _version(body)
        held = self._finetunejobs.get(key)
        if held is None or held.uid != metadata["uid"]:
            if held is not None:
                self._bury(held.uid)
            self._finetunejobs[key] = HeldJob(body, version)
            return key
        if version <= held.version:
            return None
        if body["metadata"].get("generation") != held.body["metadata"].get("generation"):
            held.facts.retry_now()  # what was refused may have been corrected
        held.body, held.version = body, version
        return key

    def _drop(self, place: tuple[str, str, str]) -> None:
        kind, _, name = place
        held = self._held.pop(place)
        shelves: dict[str, dict[str, Any]] = self._jobs if kind == "Job" else self._pods
        shelf = shelves.get(held.owner, {})
        shelf.pop(name, None)
        if not shelf:
            shelves.pop(held.owner, None)

    def _bury(self, uid: str) -> None:
        now = time.monotonic()
        self._tombs[uid] = now
        # Oldest first: a dict keeps the order of insertion.
        while (oldest := next(iter(self._tombs))) is not None and now - self._tombs[oldest] > _TOMBSTONE_S:
            del self._tombs[oldest]

    def _parse_spec(self, held: HeldJob) -> None:
        generation = held.body["metadata"].get("generation", 0)
        if held.spec is not None and held.generation == generation:
            return
        held.generation, held.invalid = generation, None
        raw = held.body.get("spec") or {}
        try:
            held.spec = FineTuneJobSpec.model_validate(raw)
        except ValidationError as error:
            held.invalid = "; ".join(f"spec.{text}" for text in sentences(error, FineTuneJobSpec)[:5])
            held.spec = _readable(raw, error)


def _readable(raw: Object, error: ValidationError) -> FineTuneJobSpec:
    """What can be read of a spec: pods that run by it are followed on, and its switches count."""
    bad = {str(item["loc"][0]) for item in error.errors(include_url=False) if item["loc"]}
    rest = {name: value for name, value in raw.items() if name not in bad}
    try:
        return FineTuneJobSpec.model_validate(rest)
    except ValidationError:
        fields = FineTuneJobSpec.model_fields.items()
        switches = {name: rest[field.alias or name] for name, field in fields if (field.alias or name) in rest}
        simple: dict[str, Any] = {
            name: value for name, value in switches.items() if isinstance(value, str | bool | int)
        }
        return FineTuneJobSpec.model_construct(**simple)


def _by_attempt(pods: Iterable[PodView]) -> dict[str, tuple[PodView, ...]]:
    found: dict[str, tuple[PodView, ...]] = {}
    for pod in pods:
        found[pod.attempt] = (*found.get(pod.attempt, ()), pod)
    return found


def read_status(raw: Object) -> tuple[FineTuneJobStatus, frozenset[str]]:
    """A status that another version may have written, and the fields that this one cannot read."""
    try:
        return FineTuneJobStatus.model_validate(raw), frozenset()
    except ValidationError as error:
        bad = frozenset(str(item["loc"][0]) for item in error.errors(include_url=False) if item["loc"])
        return FineTuneJobStatus.model_validate({name: value for name, value in raw.items() if name not in bad}), bad


def _version(body: Object) -> int:
    """Versions of one object can be compared as numbers (Kubernetes 1.35 made that a promise; etcd always kept it)."""
    version = body["metadata"].get("resourceVersion", "0")
    return int(version) if version.isdigit() else 0
