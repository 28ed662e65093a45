"""Start the reading pod, take its stream, delete it in any case."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from finetune_cli import view
from finetune_cli.cluster import Cluster, Target
from finetune_cli.errors import CliError
from finetune_cli.pull.folder import Fetched, check_target, unpack
from finetune_cli.pull.pod import CONTAINER, reading_pod, tar_command, waiting_for
from finetune_cli.text import bytes_size, count

START_SECONDS = 300


def pull_artifacts(name: str, folder: Path, target: Target, output: str | None) -> None:
    """Fetch the artifacts of a job into `folder`. Raises CliError; then `folder` is as it was."""
    cluster = Cluster(target)
    job = view.parse(cluster.job(cluster.namespace, name))
    artifacts = job.status.artifacts
    if artifacts is None:
        ended = view.end(job)
        state = ended.sentence if ended else f"it is {job.status.phase or 'new'}"
        raise CliError(f"{name} has published nothing: {state}")
    check_target(folder, artifacts.bytes)
    from finetune_cli.pull.execute import output_of  # the client's generated classes: two seconds

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with _sigterm_unwinds(), _progress(console) as progress:
        task = progress.add_task("starting a pod", total=artifacts.bytes)
        with _pod(cluster, job, artifacts.uri, lambda why: progress.update(task, description=why)) as pod:
            progress.update(task, description="fetching")
            chunks = output_of(cluster, cluster.namespace, pod, CONTAINER, tar_command(artifacts.uri))
            fetched = unpack(chunks, folder, artifacts.digest, lambda size: progress.advance(task, size))
            progress.update(task, description="fetched", total=fetched.bytes, completed=fetched.bytes)
    _report(folder, fetched, output)


@contextlib.contextmanager
def _pod(cluster: Cluster, job: FineTuneJob, uri: str, say: Any) -> Iterator[str]:
    """The name of the pod, once it runs."""
    namespace = job.metadata.namespace
    body = reading_pod(job, uri)
    name = body["metadata"]["name"]
    try:
        cluster.create_pod(namespace, body)
        began, reason = time.monotonic(), waiting_for(cluster.pod(namespace, name))
        while reason is not None:
            say(f"waiting for pod {name}: {reason}")
            if time.monotonic() - began > START_SECONDS:
                raise CliError(f"the reading pod did not start within {START_SECONDS} s: {reason}")
            time.sleep(0.5)
            reason = waiting_for(cluster.pod(namespace, name))
        yield name
    finally:
        cluster.delete_pod(namespace, name)


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM runs the clean-up too."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _report(folder: Path, fetched: Fetched, output: str | None) -> None:
    if output == "json":
        print(json.dumps({"folder": str(folder), **vars(fetched)}))
    else:
        print(f"{folder}: {count(fetched.files, 'file')}, {bytes_size(fetched.bytes)}, checked against SHA256SUMS.")
