"""The life of one FineTuneJob as a stream of what is new: snapshots, silence, lost connections.

A thread watches the API server and fills a queue, so that whoever reads can redraw, count seconds and be interrupted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions

from finetune_cli.cluster import Cluster, Gone, unreachable
from finetune_cli.errors import CliError, Exit

WATCH_SECONDS = 240
RETRY_SECONDS = (0.5, 1, 2, 4, 8)
GIVE_UP_SECONDS = 600


@dataclass(frozen=True)
class Snapshot:
    """The FineTuneJob as it is now."""

    job: dict[str, Any]


@dataclass(frozen=True)
class Quiet:
    """Nothing new for a second."""


@dataclass(frozen=True)
class Deleted:
    """The object that was followed is gone, or another one has its name."""


@dataclass(frozen=True)
class Lost:
    """The API server does not answer; it is asked again."""

    sentence: str


News = Snapshot | Quiet | Deleted | Lost


def follow(cluster: Cluster, namespace: str, name: str, uid: str | None = None) -> Iterator[News]:
    """News of a job until it is deleted, or the reader stops reading. Raises CliError when there is nothing to follow
    or the API server has been away for ten minutes."""
    news: queue.Queue[News | CliError] = queue.Queue()
    stop = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(cluster, namespace, name, uid, news, stop), name="watch", daemon=True
    )
    watcher.start()
    try:
        while True:
            try:
                item = news.get(timeout=1)
            except queue.Empty:
                yield Quiet()
                continue
            if isinstance(item, CliError):
                raise item
            yield item
            if isinstance(item, Deleted):
                return
    finally:
        stop.set()


def _watch(
    cluster: Cluster,
    namespace: str,
    name: str,
    uid: str | None,
    news: queue.Queue[News | CliError],
    stop: threading.Event,
) -> None:
    """Get, then watch from there; after anything unusual (410, a cut connection) get again."""
    failures, lost_since = 0, 0.0
    while not stop.is_set():
        try:
            job = cluster.job(namespace, name)
            failures = 0
            uid = uid or job["metadata"]["uid"]
            if job["metadata"]["uid"] != uid:
                news.put(Deleted())
                return
            news.put(Snapshot(job))
            for event in cluster.watch_job(namespace, name, job["metadata"]["resourceVersion"], WATCH_SECONDS):
                if stop.is_set():
                    return
                match event["type"]:
                    case "ADDED" | "MODIFIED":
                        news.put(Snapshot(event["object"]))
                    case "DELETED":
                        news.put(Deleted())
                        return
                    case "ERROR":
                        break  # 410: the version is too old to watch from
        except Gone as error:
            news.put(Deleted() if uid else error)
            return
        except (CliError, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            problem = error if isinstance(error, CliError) else unreachable(error, cluster.configuration.host)
            failures += 1
            lost_since = lost_since if failures > 1 else time.monotonic()
            fatal = problem.exit_code is not Exit.UNREACHABLE or uid is None
            if fatal or time.monotonic() - lost_since > GIVE_UP_SECONDS:
                news.put(problem)
                return
            if failures > 1:  # the first one is often just a connection that ended
                news.put(Lost(problem.lines[-1]))
            stop.wait(RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1])
