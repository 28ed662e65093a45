"""`ftj logs`: what a job's pods wrote, merged in the order of time."""

from __future__ import annotations

import contextlib
import heapq
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions
from finetune_api import contract
from finetune_api.status import STAGES, Stage
from rich.console import Console
from rich.text import Text

from finetune_cli import view
from finetune_cli.cluster import Cluster, Target
from finetune_cli.errors import CliError

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")
_RANK = re.compile(r"^\[rank (\d+)\] (.*)$")
"""A training pod can hold several ranks, and marks which one wrote a line."""
LOOK_EVERY_SECONDS = 2.0
SETTLE_SECONDS = 0.4
"""While following, a line waits this long for an earlier one of another rank."""


@dataclass(frozen=True)
class Choice:
    """Which pods; None is what a person most likely means."""

    stage: Stage | None = None
    rank: int | None = None
    """Of the whole gang; only a training has ranks."""
    attempt: int | None = None


@dataclass(frozen=True, order=True)
class Source:
    """One pod's log."""

    stage: str
    attempt: int
    index: int
    pod: str
    started: bool = False
    """Whether its container has ever run, so that there is a log to read."""


@dataclass(frozen=True, order=True)
class Line:
    """`time` is RFC 3339 with nanoseconds, so that its order is that of the text."""

    time: str
    source: Source
    text: str

    @property
    def writer(self) -> tuple[str, int]:
        """Who wrote it, for people, and a number that gives the same writer the same colour."""
        if match := _RANK.match(self.text):
            return f"rank {match[1]}", int(match[1])
        if self.source.stage == "train":
            return f"pod {self.source.index}", self.source.index
        return self.source.stage, 0

    @property
    def words(self) -> str:
        match = _RANK.match(self.text)
        return match[2] if match else self.text


def show_logs(name: str, target: Target, choice: Choice, *, follow: bool, tail: int | None) -> None:
    """Print the logs. Raises CliError when there are no such pods."""
    cluster = Cluster(target)
    body = cluster.job(cluster.namespace, name)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if follow:
        lines = _followed(cluster, body, choice, tail)
    else:
        sources = [source for source in chosen(_sources(cluster, body), choice) if source.started]
        if not sources:
            raise CliError(_nothing(view.parse(body), choice))
        lines = heapq.merge(*(_read(cluster, source, body, tail) for source in sources))
    before: tuple[str, int] | None = None
    for line in lines:
        writer, colour = line.writer
        if choice.rank is not None and writer != f"rank {choice.rank}":
            continue
        attempt = (line.source.stage, line.source.attempt)
        if follow and attempt != before:
            console.print(Text(f"{attempt[0]}, attempt {attempt[1]}", style="bold"))
            before = attempt
        console.print(Text.assemble((f"{writer:<7} | ", COLOURS[colour % len(COLOURS)]), line.words))


def chosen(sources: list[Source], choice: Choice) -> list[Source]:
    """Those that were asked for; without a word about it, the newest attempt of the newest stage."""
    found = [
        source
        for source in sources
        if choice.stage in (None, source.stage)
        and choice.attempt in (None, source.attempt)
        and (choice.rank is None or source.stage == "train")
    ]
    if not found:
        return []
    newest = max(found, key=lambda source: (STAGES.index(source.stage), source.attempt))
    return sorted(s for s in found if (s.stage, s.attempt) == (newest.stage, newest.attempt))


def source_of(pod: dict[str, Any]) -> Source | None:
    """None for a pod that is no stage of a job."""
    labels = pod["metadata"].get("labels", {})
    stage = labels.get(contract.LABEL_STAGE)
    if stage not in STAGES:
        return None
    states = [status.get("state", {}) for status in pod.get("status", {}).get("containerStatuses", [])]
    return Source(
        stage=stage,
        attempt=int(labels.get(contract.LABEL_ATTEMPT, 1)),
        index=int(labels.get("batch.kubernetes.io/job-completion-index", 0)),
        pod=pod["metadata"]["name"],
        started=any("running" in state or "terminated" in state for state in states),
    )


def _sources(cluster: Cluster, body: dict[str, Any]) -> list[Source]:
    metadata = body["metadata"]
    pods = cluster.pods(metadata["namespace"], f"{contract.LABEL_UID}={metadata['uid']}")
    return [source for pod in pods if (source := source_of(pod))]


def _read(
    cluster: Cluster, source: Source, body: dict[str, Any], tail: int | None, *, follow: bool = False
) -> Iterator[Line]:
    namespace = body["metadata"]["namespace"]
    for raw in cluster.pod_log(namespace, source.pod, contract.CONTAINER, follow=follow, tail=tail):
        stamp, _, text = raw.partition(" ")
        yield Line(stamp, source, text)


def _followed(cluster: Cluster, body: dict[str, Any], choice: Choice, tail: int | None) -> Iterator[Line]:
    """Lines of every pod that fits as it appears, until the job has ended and all have been read.

    One thread a pod fills one queue; a line is given out after SETTLE_SECONDS, when the others have caught up.
    """
    incoming: queue.Queue[Line] = queue.Queue()
    waiting: list[tuple[Line, float]] = []
    threads: dict[Source, threading.Thread] = {}
    namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
    looked, ended = 0.0, False
    while True:
        now = time.monotonic()
        if not ended and now - looked > LOOK_EVERY_SECONDS:
            looked = now
            current = cluster.job(namespace, name)
            ended = current["metadata"]["uid"] != body["metadata"]["uid"] or view.end(view.parse(current)) is not None
            for source in _wanted(_sources(cluster, body), choice, first=not threads):
                if source not in threads:
                    threads[source] = threading.Thread(
                        target=_pump, args=(cluster, source, body, tail, incoming), daemon=True
                    )
                    threads[source].start()
        with contextlib.suppress(queue.Empty):
            line = incoming.get(timeout=0.1)
            while True:
                heapq.heappush(waiting, (line, time.monotonic()))
                line = incoming.get_nowait()
        alive = any(thread.is_alive() for thread in threads.values())
        while waiting and (not alive or time.monotonic() - waiting[0][1] > SETTLE_SECONDS):
            yield heapq.heappop(waiting)[0]
        if ended and not alive and incoming.empty():
            return


def _wanted(sources: list[Source], choice: Choice, *, first: bool) -> list[Source]:
    """At first what `ftj logs` would print; from then on whatever fits and comes later."""
    started = [source for source in sources if source.started]
    if first or choice.attempt is not None:
        return chosen(started, choice)
    return [s for s in started if choice.stage in (None, s.stage) and (choice.rank is None or s.stage == "train")]


def _pump(cluster: Cluster, source: Source, body: dict[str, Any], tail: int | None, into: queue.Queue[Line]) -> None:
    # A log that breaks off (the pod was deleted, the node went away) just ends.
    with contextlib.suppress(CliError, urllib3.exceptions.HTTPError, OSError):
        for line in _read(cluster, source, body, tail, follow=True):
            into.put(line)


def _nothing(job: Any, choice: Choice) -> str:
    status = job.status
    asked = " ".join(
        f"{what} {value}"
        for what, value in (("stage", choice.stage), ("attempt", choice.attempt), ("rank", choice.rank))
        if value is not None
    )
    sentence = f"no pod of {job.metadata.name} with a log is there" + (f" ({asked})" if asked else "")
    if status.attempts:
        folder = f"{job.spec.workspace.uri.rstrip('/')}/{job.metadata.uid}/{status.run}/attempt-N"
        return f"{sentence}; pods that are gone took theirs with them, but {folder} keeps the ranks' logs"
    return f"{sentence}: the job is {status.phase or 'new'}" + (f" ({status.message})" if status.message else "")
