"""`ftj run` and `ftj watch`: submit a job, follow it, report how it ended."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NoReturn

from finetune_api.finetunejob import FineTuneJob
from rich.console import Console

from finetune_cli import follow as following
from finetune_cli import manifest, result, view
from finetune_cli.cluster import Cluster, Gone, Target, without_managed_fields
from finetune_cli.display import Display, display
from finetune_cli.errors import CliError, Exit

UNSEEN_AFTER_SECONDS = 15


def submit(file: str, target: Target, *, follow: bool, force_conflicts: bool, output: str | None) -> NoReturn:
    """Check FILE here, apply it, and follow the job if `follow`. Exits."""
    given = manifest.read(file)
    manifest.refuse_file_locations(given)
    cluster = Cluster(target)
    metadata = given.body["metadata"]
    namespace = metadata.get("namespace") or cluster.namespace
    if target.namespace and metadata.get("namespace", target.namespace) != target.namespace:
        raise CliError(
            f"{given.where('metadata', 'namespace')}: metadata.namespace is {metadata['namespace']}, but -n is {target.namespace}"
        )
    before = _existing(cluster, namespace, metadata["name"])
    after = cluster.apply(
        {**given.body, "metadata": {**metadata, "namespace": namespace}}, force_conflicts=force_conflicts
    )
    job = view.parse(after)
    console = _console(output)
    if before is not None and _nothing_started(view.parse(before), job):
        _already_ended(console, job, cluster.flags(namespace))
        _finish(after, view.end(job), output)
    if not follow:
        verb = "created" if before is None else "already there" if _same(before, after) else "changed"
        console.print(f"FineTuneJob {namespace}/{job.metadata.name} {verb}. Follow it: {_watch_again(cluster, job)}")
        _finish(after, None, output)
    if before is not None:
        console.print(
            f"FineTuneJob {namespace}/{job.metadata.name} was there already"
            + ("." if _same(before, after) else "; changed.")
        )
    _follow(cluster, namespace, job, console, output)


def watch_job(name: str, target: Target, output: str | None) -> NoReturn:
    """Follow a job that is there. Exits."""
    cluster = Cluster(target)
    body = cluster.job(cluster.namespace, name)
    _follow(cluster, cluster.namespace, view.parse(body), _console(output), output)


def _follow(cluster: Cluster, namespace: str, job: FineTuneJob, console: Console, output: str | None) -> NoReturn:
    screen = display(console)
    try:
        body = _until_end(cluster, namespace, job, screen)
    except KeyboardInterrupt:
        screen.close()
        console.print(f"Stopped watching; the job continues. Watch it again: {_watch_again(cluster, job)}")
        sys.exit(Exit.INTERRUPTED)
    finally:
        screen.close()
    ended = view.parse(body)
    pull = f"Fetch them: ftj pull {ended.metadata.name} DIR{cluster.flags(namespace)}"
    result.show(console, ended, [pull] if ended.status.artifacts else [])
    _finish(body, view.end(ended), output)


def _until_end(cluster: Cluster, namespace: str, job: FineTuneJob, screen: Display) -> dict[str, Any]:
    """Show every piece of news until the job ends; returns the object as it was then."""
    submitted, warned, away, told = time.monotonic(), False, False, ""
    for item in following.follow(cluster, namespace, job.metadata.name, job.metadata.uid):
        match item:
            case following.Snapshot(body):
                if away:
                    screen.say("The cluster answers again.")
                    away = False
                job = view.parse(body)
                screen.show(job)
                if (digest := view.awaits(job)) and digest != told:
                    flags = cluster.flags(namespace)
                    screen.say(f"Approve it: ftj approve {job.metadata.name} --plan {digest}{flags}", warning=True)
                    told = digest
                if view.end(job):
                    return body
            case following.Quiet():
                if not warned and not view.observed(job) and time.monotonic() - submitted > UNSEEN_AFTER_SECONDS:
                    screen.say(_unseen(job), warning=True)
                    warned = True
            case following.Lost(sentence):
                if not away:
                    screen.say(f"{sentence}; retrying", warning=True)
                away = True
            case following.Deleted():
                raise CliError(f"FineTuneJob {namespace}/{job.metadata.name} was deleted")
    raise CliError("the job can no longer be followed", exit_code=Exit.UNREACHABLE)


def _unseen(job: FineTuneJob) -> str:
    if job.spec.managed_by != type(job.spec).model_fields["managed_by"].default:
        return f"spec.managedBy is {job.spec.managed_by}, so finetune-operator leaves this job alone; waiting for that controller."
    return (
        f"No operator has written this job's status for {UNSEEN_AFTER_SECONDS} s; is one running, does it serve this namespace, and "
        "may it write? kubectl get deployments -A -l app.kubernetes.io/part-of=finetune-operator; "
        f"kubectl get events -n {job.metadata.namespace}"
    )


def _existing(cluster: Cluster, namespace: str, name: str) -> dict[str, Any] | None:
    try:
        return cluster.job(namespace, name)
    except Gone:
        return None


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return bool(before["metadata"]["generation"] == after["metadata"]["generation"])


def _nothing_started(before: FineTuneJob, after: FineTuneJob) -> bool:
    """The job had ended, and applying it again asks for no new run."""
    return view.end(before) is not None and before.spec.run_token == after.spec.run_token


def _already_ended(console: Console, job: FineTuneJob, flags: str) -> None:
    name = job.metadata.name
    console.print(
        f"FineTuneJob {job.metadata.namespace}/{name} had already ended ({job.status.phase}); nothing was started. To run it "
        f"again, give spec.runToken a new value, or delete it first: kubectl delete ftj {name}{flags}",
    )
    result.show(console, job)


def _watch_again(cluster: Cluster, job: FineTuneJob) -> str:
    return f"ftj watch {job.metadata.name}{cluster.flags(job.metadata.namespace)}"


def _console(output: str | None) -> Console:
    """With -o json, standard output belongs to the one object."""
    return Console(stderr=output is not None, highlight=False, markup=False, soft_wrap=True)


def _finish(body: dict[str, Any], ended: view.End | None, output: str | None) -> NoReturn:
    if output == "json":
        print(json.dumps(without_managed_fields(body)))
    sys.exit(ended.exit_code if ended else Exit.DONE)
