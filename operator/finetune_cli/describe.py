"""`ftj describe`: everything about a job on one or two screens, or its resolved spec."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

from finetune_api.failures import FailureCode
from finetune_api.finetunejob import FineTuneJob
from finetune_api.operator_state import OperatorState
from finetune_api.planner.ladder import Notch
from finetune_api.status import AttemptStatus, FailureStatus, FineTuneJobStatus, UsageStatus
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML

from finetune_cli import result, view
from finetune_cli.cluster import Cluster, Target, without_managed_fields
from finetune_cli.errors import CliError
from finetune_cli.planned import show_plan
from finetune_cli.text import duration, figure, money, number, visible

EVENTS_SHOWN = 10
Format = Literal["json", "yaml"]


def describe(name: str, target: Target, *, effective: bool, output: Format | None) -> None:
    """Print the job for people; with `output` the object, with `effective` its resolved spec (YAML unless `output`)."""
    cluster = Cluster(target)
    body = cluster.job(cluster.namespace, name)
    job = view.parse(body)
    if effective:
        print_object(_resolved_spec(job), output or "yaml")
    elif output is not None:
        print_object(without_managed_fields(body), output)
    else:
        events: list[dict[str, Any]] | str
        try:
            events = cluster.events(cluster.namespace, job.metadata.uid)
        except CliError as error:  # reading the job does not imply reading events
            events = str(error)
        show(Console(highlight=False, markup=False, soft_wrap=True), job, events, time.time())


def print_object(value: Any, output: Format) -> None:
    if output == "json":
        print(json.dumps(value))
        return
    yaml = YAML()
    yaml.default_flow_style, yaml.width = False, 4096
    yaml.dump(value, sys.stdout)


def show(console: Console, job: FineTuneJob, events: Sequence[dict[str, Any]] | str, now: float) -> None:
    """`events` are those of the API server, in any order, or why they cannot be read; `now` in seconds since 1970."""
    status, state = job.status, _state(job)
    console.print(Text(view.headline(job), style="bold"))
    _rows(console, _summary(job, now))
    if status.plan is not None:
        _heading(console, "Plan")
        show_plan(console, status.plan)
    if status.attempts:
        _heading(console, "Attempts")
        console.print(_attempts(status.attempts, state.notches or [], now), end="")
    if status.evaluation is not None and status.evaluation.metrics:
        _heading(console, "Evaluation")
        console.print(result.table(status.evaluation.metrics), end="")
    _rows(console, _result(job, state, now))
    _heading(console, "Events")
    if isinstance(events, str):
        console.print(Text(f"not shown: {events}", style="dim"))
    elif not events:
        console.print(Text("none; the cluster deletes events after a while", style="dim"))
    else:
        console.print(_events(events, now), end="")


def _state(job: FineTuneJob) -> OperatorState:
    """Empty where another version wrote it: the description needs little of it."""
    try:
        return OperatorState.of(job.status)
    except ValueError:
        return OperatorState()


def _resolved_spec(job: FineTuneJob) -> dict[str, Any]:
    name = job.metadata.name
    try:
        effective = OperatorState.of(job.status).effective
    except ValueError:
        raise CliError(
            f"status.state of {name} was written by another version and cannot be read by this one: upgrade ftj"
        ) from None
    if effective is None:
        raise CliError(f"the spec of {name} is not resolved yet: the operator has not accepted the job")
    return effective


def _heading(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", style="bold"))


def _rows(console: Console, rows: Iterator[tuple[str, str]]) -> None:
    for name, value in rows:
        console.print(Text.assemble((f"{name:<12}", "bold"), visible(value)))


def _summary(job: FineTuneJob, now: float) -> Iterator[tuple[str, str]]:
    status = job.status
    if not view.observed(job):
        yield "", "The operator has not reconciled this version of the spec yet."
    yield "Phase", f"{status.phase or 'none'}{_age(job, now)}"
    if status.reason:
        yield "Reason", status.reason
    if status.message:
        yield "Message", status.message
    by_status: dict[str, list[str]] = {}
    for condition in status.conditions or []:
        by_status.setdefault(condition.status, []).append(condition.type)
    if by_status:
        yield (
            "Conditions",
            "; ".join(f"{value}: {', '.join(by_status[value])}" for value in sorted(by_status, reverse=True)),
        )
    if status.failure is not None:
        yield "Failure", _failure(status.failure)
    if progress := _progress(status):
        yield "Progress", progress
    if data := view.data_sentence(job):
        yield "Data", data
    if status.last_checkpoint is not None:
        path = f" in {status.last_checkpoint.path}" if status.last_checkpoint.path else ""
        yield "Checkpoint", f"step {number(status.last_checkpoint.step)}{path}"


def _age(job: FineTuneJob, now: float) -> str:
    status = job.status
    if status.start_time and status.completion_time:
        return f", after {duration(_unix(status.completion_time) - _unix(status.start_time))}"
    return f", for {duration(view.lasts_seconds(job, now))}" if status.start_time else ""


def _failure(failure: FailureStatus) -> str:
    fields = {
        "stage": failure.stage,
        "rank": failure.rank,
        "node": failure.node,
        "exit code": failure.exit_code,
    }
    return ", ".join([failure.code, *(f"{name} {value}" for name, value in fields.items() if value is not None)])


def _progress(status: FineTuneJobStatus) -> str:
    progress = status.progress
    if progress is None or progress.summary is None:
        return ""
    parts = [f"{progress.stage} {progress.summary}" if progress.stage else progress.summary]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    if progress.eval_loss is not None:
        parts.append(f"validation {progress.eval_loss:.4g}")
    if progress.eta:
        parts.append(f"{progress.eta} left")
    return ", ".join(parts)


def _attempts(attempts: Sequence[AttemptStatus], notches: Sequence[Notch], now: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "outcome", "reason", "node", "ran", "steps", "lost", "notch"):
        table.add_column(name, overflow="fold", justify="right" if name in ("ran", "steps", "lost") else "left")
    for attempt in attempts:
        cells = (
            f"{attempt.stage} {attempt.number}",
            attempt.outcome,
            attempt.reason,
            attempt.node,
            _ran(attempt, now),
            _steps(attempt),
            None if attempt.steps_lost is None else number(attempt.steps_lost),
            _notch(attempt, notches),
        )
        table.add_row(*(Text(visible(cell or "")) for cell in cells))
    return table


def _ran(attempt: AttemptStatus, now: float) -> str:
    if not attempt.started:
        return ""
    return duration((_unix(attempt.finished) if attempt.finished else now) - _unix(attempt.started))


def _steps(attempt: AttemptStatus) -> str:
    if attempt.last_step is None:
        return ""
    return f"{number(attempt.resumed_from_step or 0)}-{number(attempt.last_step)}"


def _notch(attempt: AttemptStatus, notches: Sequence[Notch]) -> str | None:
    """The notch that was taken when this attempt ran out of memory: its message ends with the notch's sentence."""
    if attempt.reason != FailureCode.OUT_OF_MEMORY or attempt.message is None:
        return None
    taken = next((notch for notch in notches if notch.sentence in (attempt.message or "")), None)
    return None if taken is None else f"{taken.field} {taken.before} -> {taken.after}"


def _result(job: FineTuneJob, state: OperatorState, now: float) -> Iterator[tuple[str, str]]:
    used = _used_so_far(job.status, state, now)
    parts = []
    if used.train_seconds:
        parts.append(f"training ran {duration(used.train_seconds)}")
    if used.gpu_seconds:
        parts.append(f"{figure(used.gpu_seconds / 3600)} GPU hours")
    if used.cost is not None:
        parts.append(f"cost {money(used.cost)}")
    if parts:
        yield "\nUsage", ", ".join(parts)
    if artifacts := view.artifacts_sentence(job):
        yield "Artifacts", artifacts
    if job.status.artifacts is not None and job.status.artifacts.report:
        yield "Report", job.status.artifacts.report


def _used_so_far(status: FineTuneJobStatus, state: OperatorState, now: float) -> UsageStatus:
    """`status.usage` and the time that it does not hold yet: since when all training pods run."""
    used = status.used.model_copy()
    if state.running_since is None:
        return used
    seconds = max(0, round(now - _unix(state.running_since)))
    used.train_seconds = (used.train_seconds or 0) + seconds
    if status.gpus:
        used.gpu_seconds = (used.gpu_seconds or 0) + seconds * status.gpus
        price = ((state.effective or {}).get("budget") or {}).get("gpuHourPrice")
        if isinstance(price, int | float):
            used.cost = round(used.gpu_seconds / 3600 * price, 2)
    return used


def _events(events: Sequence[dict[str, Any]], now: float) -> Table:
    """The newest ones, the last of them last."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("age", "type", "reason", "message"):
        table.add_column(name, overflow="fold", justify="right" if name == "age" else "left")
    for event in sorted(events, key=_last_seen)[-EVENTS_SHOWN:]:
        row = [
            duration(now - _last_seen(event)),
            *(str(event.get(name) or "") for name in ("type", "reason", "message")),
        ]
        style = "yellow" if event.get("type") == "Warning" else ""
        table.add_row(*(Text(visible(cell), style=style) for cell in row))
    return table


def _last_seen(event: dict[str, Any]) -> float:
    series = event.get("series") or {}
    at = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return _unix(at or event["metadata"]["creationTimestamp"])


def _unix(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
