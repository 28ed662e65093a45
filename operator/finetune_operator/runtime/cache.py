"""What we know of the cluster: FineTuneJobs, their Jobs and pods, as last seen by a watch, a list or an answer.

An object only moves forward: what is older than what we hold is ignored, so an answer to our own write and the watch's echo
of the write before cannot cross. What was deleted does not come back; what only lost our label does, in a later version. `observe` and `forget` return whose plan may change.

Most of the cache are finished jobs that nobody looks at, so objects are kept small: a FineTuneJob as compressed JSON without
managedFields, a Job or pod as the record that plans read, packed once it has ended.
"""

from __future__ import annotations

import pickle
import sys
import time
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

from finetune_api.contract import LABEL_JOB
from finetune_api.errors import sentences
from finetune_api.finetunejob import FineTuneJob, Metadata
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from finetune_operator.domain.observed import JobView, ObservedState, PodView
from finetune_operator.runtime.job_cache import JobCache
from finetune_operator.runtime.queue import Key

Object = dict[str, Any]
Place = tuple[str, str]
"""(namespace, name) of an object of a known kind."""

_TOMBSTONE_S = 600.0
_LAST = 2**63
_PARSED_SPECS = 256
_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""A copy of the spec, left by client-side apply."""


def _pack(value: Any) -> bytes:
    return zlib.compress(to_json(value), 1)


def _unpack(data: bytes) -> Any:
    return from_json(zlib.decompress(data))


class HeldJob:
    """A FineTuneJob."""

    __slots__ = ("_facts", "_packed", "generation", "gpus", "key", "phase", "uid", "unreadable", "version")

    def __init__(self, body: Object) -> None:
        metadata = body["metadata"]
        self.key: Key = (sys.intern(metadata["namespace"]), metadata["name"])
        self.uid = sys.intern(metadata["uid"])
        self.unreadable: frozenset[str] = frozenset()
        """Fields of the status that this version cannot read, and must not write."""
        self._facts: JobCache | None = None
        self.generation = metadata.get("generation", 0)
        self.take(body)

    def take(self, body: Object) -> None:
        metadata, status = body["metadata"], body.get("status") or {}
        self.version = version_of(body)
        if self.generation != metadata.get("generation", 0):
            self.generation = metadata.get("generation", 0)
            if self._facts is not None:
                self._facts.retry_now()  # what was refused may have been corrected
        self.phase: str | None = status.get("phase")
        self.gpus: int = status.get("gpus") or 0
        kept = {name: metadata[name] for name in _METADATA if name in metadata}
        annotations = metadata.get("annotations") or {}
        if annotations.keys() - {_LAST_APPLIED}:
            kept["annotations"] = {name: value for name, value in annotations.items() if name != _LAST_APPLIED}
        self._packed = (_pack({"metadata": kept, "spec": body.get("spec") or {}}), _pack(status))

    @property
    def body(self) -> Object:
        """metadata (as far as we read it) and spec, unpacked; a new object each time."""
        found: Object = _unpack(self._packed[0])
        return found

    @property
    def status(self) -> Object:
        """Unpacked; a new object each time."""
        found: Object = _unpack(self._packed[1])
        return found

    @property
    def facts(self) -> JobCache:
        if self._facts is None:
            self._facts = JobCache()
        return self._facts

    def drop_empty_facts(self) -> None:
        if self._facts is not None and self._facts.empty:
            self._facts = None


_VIEWS: dict[str, type[JobView | PodView]] = {"Job": JobView, "Pod": PodView}
_VALUES = {kind: attrgetter(*(field.name for field in fields(view))) for kind, view in _VIEWS.items()}


def _ended(view: JobView | PodView) -> bool:
    return view.over if isinstance(view, PodView) else not view.alive


@dataclass(slots=True)
class _Family:
    """The Jobs and pods of one FineTuneJob, by name."""

    key: Key
    jobs: dict[str, _Child] = field(default_factory=dict)
    pods: dict[str, _Child] = field(default_factory=dict)


@dataclass(slots=True)
class _Child:
    """A Job or pod. `family` None: it carries our label, but belongs to none of our jobs."""

    uid: str
    version: int
    family: _Family | None = None
    owner: str = ""
    _view: JobView | PodView | bytes | None = None

    @property
    def view(self) -> Any:
        if not isinstance(self._view, bytes):
            return self._view
        kind, values = pickle.loads(self._view)
        return _VIEWS[kind](*values)

    @view.setter
    def view(self, view: JobView | PodView) -> None:
        # As a tuple of its values: half the time of pickling the record, or less, and smaller.
        kind = "Job" if isinstance(view, JobView) else "Pod"
        self._view = pickle.dumps((kind, _VALUES[kind](view)), pickle.HIGHEST_PROTOCOL) if _ended(view) else view


class Cache:
    """For one event loop; not for threads."""

    def __init__(self) -> None:
        self._finetunejobs: dict[Key, HeldJob] = {}
        self._families: dict[str, _Family] = {}  # by the FineTuneJob's uid
        self._children: dict[str, dict[Place, _Child]] = {"Job": {}, "Pod": {}}
        self._tombs: dict[str, tuple[float, int]] = {}
        """By uid: when an object was taken out, and its version then."""
        self._departed: dict[str, list[PodView]] = {}
        """By owner's uid: pods that are gone, and how they ended, until the end of their attempt is recorded."""
        self._specs: OrderedDict[tuple[str, int], tuple[FineTuneJobSpec, str | None]] = OrderedDict()
        self.phases: Counter[str] = Counter()
        """FineTuneJobs by phase."""
        self.gpus = 0
        """GPUs of jobs whose training pods run."""
        self.on_freed: Callable[[str], None] = lambda namespace: None
        """Called when something that holds quota in a namespace has ended or is gone."""

    # What happens in the cluster.

    def observe(self, kind: str, body: Object) -> Key | None:
        """Take in an object. Returns the job whose plan may change by it; None when nothing did."""
        metadata = body["metadata"]
        if version_of(body) <= self._buried(metadata["uid"]):
            return None
        if kind == "FineTuneJob":
            return self._observe_finetunejob(body)
        children, place = self._children[kind], (metadata["namespace"], metadata["name"])
        held = children.get(place)
        version = version_of(body)
        if held is not None and held.uid == metadata["uid"] and version <= held.version:
            return None
        view: JobView | PodView = JobView.of(body) if kind == "Job" else PodView.of(body)
        owner = view.owner or ""
        left: Key | None = None
        if held is not None and (held.uid != metadata["uid"] or held.owner != owner):
            left = held.family.key if held.family is not None else None
            self._drop(kind, place)
            held = None
        if held is not None:
            before, held.version, held.view = held.view, version, view
            if _ended(view) and not _ended(before):
                self.on_freed(place[0])
            return held.family.key if held.family is not None and before != view else None
        if not owner:
            # Not one of ours: remembered by version alone, so that a comparison with the list does not take it for missed.
            children[place] = _Child(view.uid, version)
            return left
        family = self._families.get(owner)
        if family is None:
            job = (metadata.get("labels") or {}).get(LABEL_JOB, "")
            family = self._families[sys.intern(owner)] = _Family((sys.intern(metadata["namespace"]), job))
        child = children[place] = _Child(view.uid, version, family, sys.intern(owner))
        child.view = view
        (family.jobs if kind == "Job" else family.pods)[view.name] = child
        return family.key

    def forget(self, kind: str, namespace: str, name: str, uid: str, version: int = _LAST) -> Key | None:
        """Take an object out: for good, or until a later version than this one shows that it only lacked our label for a while."""
        self._bury(uid, version)
        place = (namespace, name)
        if kind == "FineTuneJob":
            held = self._finetunejobs.get(place)
            if held is None or held.uid != uid:
                return None
            self._count(held, -1)
            del self._finetunejobs[place]
            self._departed.pop(uid, None)
            return held.key
        child = self._children[kind].get(place)
        if child is None or child.uid != uid:
            return None
        if kind == "Pod" and child.family is not None and child.owner not in self._tombs:
            pod: PodView = child.view
            if pod.ended is not None:
                self._departed.setdefault(child.owner, []).append(pod)
        if child.family is not None and not _ended(child.view):
            self.on_freed(namespace)
        self._drop(kind, place)
        return child.family.key if child.family is not None else None

    # What a plan looks at.

    def finetunejob(self, key: Key) -> HeldJob | None:
        return self._finetunejobs.get(key)

    def snapshot(self, key: Key) -> ObservedState | None:
        """The job and everything around it; None when there is no such job."""
        held = self._finetunejobs.get(key)
        if held is None:
            return None
        body = held.body
        spec, invalid = self._spec(held, body["spec"])
        status, held.unreadable = read_status(held.status)
        job = FineTuneJob.model_construct(metadata=Metadata.model_validate(body["metadata"]), spec=spec, status=status)
        family = self._families.get(held.uid)
        facts = held.facts
        return ObservedState(
            job=job,
            invalid=invalid,
            unreadable=held.unreadable,
            jobs={} if family is None else {name: child.view for name, child in family.jobs.items()},
            pods={} if family is None else _by_attempt(child.view for child in family.pods.values()),
            departed=_by_attempt(self._departed.get(held.uid, ())),
            known=frozenset(facts.known),
            claims=dict(facts.claims),
            warnings=dict(facts.warnings),
            refusals=facts.refusals,
            nodes=dict(facts.nodes),
            pods_read=frozenset(facts.pods_read),
            jobs_read=dict(facts.jobs_read),
            progress=facts.progress,
        )

    def looked_at(self, seen: ObservedState, running: Collection[str]) -> None:
        """The status now holds what was seen. `running`: names of the Jobs whose attempts still run by it. How a pod of these ended
        is wanted until all have, unless a suspension stopped it that has passed."""
        metadata, recorded = seen.job.metadata, [pod for pods in seen.departed.values() for pod in pods]

        def wanted(pod: PodView) -> bool:
            job = seen.jobs.get(pod.attempt)
            return pod.attempt in running and (job is None or pod.created >= (job.released or 0.0))

        left = [pod for pod in self._departed.pop(metadata.uid, ()) if pod not in recorded or wanted(pod)]
        if left:
            self._departed[metadata.uid] = left
        held = self._finetunejobs.get((metadata.namespace, metadata.name))
        if held is not None:
            held.drop_empty_facts()

    def has_children(self, held: HeldJob) -> bool:
        return held.uid in self._families

    def names(self, namespace: str | None = None) -> list[Key]:
        """Of a namespace, or all."""
        return [key for key in self._finetunejobs if namespace in (None, key[0])]

    def holdings(self, kind: str, namespace: str | None) -> Iterator[tuple[Place, str, int]]:
        """(place, uid, version) of everything of a kind, in a namespace or all."""
        held: dict[Place, Any] = self._finetunejobs if kind == "FineTuneJob" else self._children[kind]
        for place, item in list(held.items()):
            if namespace in (None, place[0]):
                yield place, item.uid, item.version

    def holds(self, kind: str, place: Place) -> bool:
        return place in (self._finetunejobs if kind == "FineTuneJob" else self._children[kind])

    def version(self, kind: str, namespace: str, name: str, uid: str) -> int:
        """The version we hold or that was taken out; -1 for none, and the highest there is for what was deleted."""
        held: dict[Place, Any] = self._finetunejobs if kind == "FineTuneJob" else self._children[kind]
        item = held.get((namespace, name))
        return max(item.version if item is not None and item.uid == uid else -1, self._buried(uid))

    # Within.

    def _observe_finetunejob(self, body: Object) -> Key | None:
        metadata = body["metadata"]
        held = self._finetunejobs.get((metadata["namespace"], metadata["name"]))
        if held is not None and held.uid != metadata["uid"]:
            self._bury(held.uid, _LAST)
            self._count(held, -1)
            held = None
        if held is None:
            held = HeldJob(body)
            self._finetunejobs[held.key] = held
        elif version_of(body) <= held.version:
            return None
        else:
            self._count(held, -1)
            held.take(body)
        self._count(held, 1)
        return held.key

    def _count(self, held: HeldJob, by: int) -> None:
        self.phases[held.phase or "Pending"] += by
        if held.phase == "Training":
            self.gpus += by * held.gpus

    def _drop(self, kind: str, place: Place) -> None:
        child = self._children[kind].pop(place)
        family = child.family
        if family is None:
            return
        (family.jobs if kind == "Job" else family.pods).pop(place[1], None)
        if not family.jobs and not family.pods:
            self._families.pop(child.owner, None)

    def _buried(self, uid: str) -> int:
        """The version that was taken out, -1 for none."""
        return self._tombs.get(uid, (0.0, -1))[1]

    def _bury(self, uid: str, version: int) -> None:
        now = time.monotonic()
        self._tombs.pop(uid, None)
        self._tombs[uid] = (now, version)
        # Oldest first: a dict keeps the order of insertion.
        while (oldest := next(iter(self._tombs))) is not None and now - self._tombs[oldest][0] > _TOMBSTONE_S:
            del self._tombs[oldest]

    def _spec(self, held: HeldJob, raw: Object) -> tuple[FineTuneJobSpec, str | None]:
        """The spec, and why it cannot be read. The last few are kept."""
        known = self._specs.get((held.uid, held.generation))
        if known is None:
            known = self._specs[held.uid, held.generation] = _parse(raw)
            if len(self._specs) > _PARSED_SPECS:
                self._specs.popitem(last=False)
        return known


def _parse(raw: Object) -> tuple[FineTuneJobSpec, str | None]:
    try:
        return FineTuneJobSpec.model_validate(raw), None
    except ValidationError as error:
        invalid = "; ".join(f"spec.{text}" for text in sentences(error, FineTuneJobSpec)[:5])
        return _readable(raw, error), invalid


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


def version_of(body: Object) -> int:
    """Versions of one object can be compared as numbers (Kubernetes 1.35 made that a promise; etcd always kept it)."""
    version = body["metadata"].get("resourceVersion", "0")
    return int(version) if version.isdigit() else 0
