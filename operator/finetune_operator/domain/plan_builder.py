"""A plan being drawn up, and the plan itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.effective import PlatformDefaults, resolve, shown
from finetune_api.finetunejob import Metadata
from finetune_api.operator_state import OperatorState
from finetune_api.planner.ladder import apply
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import AttemptStatus, FineTuneJobStatus, Phase, Stage

from finetune_operator.domain.observed import ObservedState, PodView, Read

WAITING_PHASE: dict[Stage, Phase] = {"prepare": "Preparing", "train": "Queued", "publish": "Publishing"}
"""Phase of a stage whose pods do not all run yet."""


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of the operator that a plan depends on."""

    defaults: PlatformDefaults = field(default_factory=PlatformDefaults)
    retry_delay: float = 10.0
    """Seconds before the first retry."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A merge patch of a Job. `patch_type` is always merge: only what differs is written."""

    name: str
    uid: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delete:
    """A Job to delete, if it still is the one with this uid. What it owns goes with it."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Event:
    """An event for people."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `status` None: the job is not ours, or is going; write nothing.

    `status_first`: the status must be written before anything is created, since it holds the verdict on the attempt before.
    """

    status: FineTuneJobStatus | None = None
    status_first: bool = False
    create: tuple[dict[str, Any], ...] = ()
    patch: tuple[Patch, ...] = ()
    delete: tuple[Delete, ...] = ()
    events: tuple[Event, ...] = ()
    reads: frozenset[Read] = frozenset()
    requeue_after: float | None = None
    """Seconds until time alone changes the plan."""
    retry: str | None = None
    """Why to reconcile again without a known time: with a backoff for each reason."""
    poll: PodView | None = None
    """The pod whose progress should be read."""
    just_started: bool = False
    """All pods run since a moment ago: a first progress value follows."""
    just_ended: bool = False
    """All pods succeeded a moment ago: the end of their Job follows."""


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job stands, in the words that conditions, phase and columns share."""

    phase: Phase
    reason: str
    message: str
    running: bool = False
    """Every pod of the stage runs."""
    problem: bool = False
    """Somebody has to fix something."""
    suspended: bool = False
    """Suspended, and no pod runs any more."""


@dataclass(slots=True)
class PlanBuilder:
    """Policies fill it in one after the other. `status` is a copy; `before` is what the API server holds."""

    observed: ObservedState
    now: float
    config: Config
    status: FineTuneJobStatus
    before: FineTuneJobStatus
    state: OperatorState
    spec: FineTuneJobSpec
    planned_spec: FineTuneJobSpec
    """`spec` without the notches that were taken after running out of memory."""
    job_state: JobState | None = None
    status_first: bool = False
    create: list[dict[str, Any]] = field(default_factory=list)
    patch: list[Patch] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    reads: set[Read] = field(default_factory=set)
    poll: PodView | None = None
    just_started: bool = False
    just_ended: bool = False
    blocked: JobState | None = None
    """Why nothing may be created now. Pods that run are kept."""
    _requeue_after: float | None = None
    _retry: str | None = None

    @classmethod
    def open(cls, observed: ObservedState, now: float, config: Config) -> PlanBuilder:
        before = observed.job.status
        status = before.model_copy()
        # The parts that policies write into; everything else they replace.
        status.attempts = before.attempts and [attempt.model_copy() for attempt in before.attempts]
        status.progress = before.progress and before.progress.model_copy()
        return cls(
            observed, now, config, status, before, OperatorState.of(before), observed.job.spec, observed.job.spec
        )

    @property
    def metadata(self) -> Metadata:
        return self.observed.job.metadata

    @property
    def wanted(self) -> FineTuneJobSpec:
        """The spec as the user wrote it: its switches (suspend, runToken ...) count at once."""
        return self.observed.job.spec

    @property
    def run(self) -> str:
        return self.status.run or ""

    @property
    def attempts(self) -> list[AttemptStatus]:
        if self.status.attempts is None:
            self.status.attempts = []
        return self.status.attempts

    def resolve(self) -> None:
        """Decide every absent field, over the platform's defaults as they were when the job was accepted."""
        defaults = PlatformDefaults.model_validate(self.state.defaults or {})
        # Before prepare is done, what model and data decide stays open; after it, nothing does.
        prepared = any(a.stage == "prepare" and a.outcome == "Succeeded" for a in self.status.attempts or [])
        self.planned_spec = resolve(self.wanted, defaults, (self.state.decided or {}) if prepared else None)
        self.spec = apply(self.planned_spec, self.state.notches or [], given=self.wanted)

    def resolve_and_show(self) -> None:
        """Resolve, and show what it came to."""
        self.resolve()
        self.state.effective = shown(self.spec)

    def requeue_after(self, seconds: float) -> None:
        seconds = max(0.0, seconds)
        self._requeue_after = seconds if self._requeue_after is None else min(self._requeue_after, seconds)

    def retry(self, reason: str) -> None:
        """Reconcile again after a backoff that grows while `reason` stays the same."""
        self._retry = reason

    def block(self, stage: Stage, reason: str, message: str) -> None:
        """Report what stops progress. It is no failure: it is tried again with backoff, and when something changes."""
        self.job_state = JobState(WAITING_PHASE[stage], reason, message, problem=True)
        self.retry(f"blocked:{reason}")

    def emit_event(self, type: Literal["Normal", "Warning"], reason: str, action: str, text: str) -> None:
        self.events.append(Event(type, reason, action, text))

    def close(self) -> Plan:
        self.status.state = self.state.encode()
        return Plan(
            status=self.status,
            status_first=self.status_first,
            create=tuple(self.create),
            patch=tuple(self.patch),
            delete=tuple(self.delete),
            events=tuple(self.events),
            reads=frozenset(self.reads),
            requeue_after=self._requeue_after,
            retry=self._retry,
            poll=self.poll,
            just_started=self.just_started,
            just_ended=self.just_ended,
        )
