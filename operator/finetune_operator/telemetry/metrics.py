"""Prometheus metrics, by the names that dashboards for Go controllers know, and our own under `finetune_`."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

CONTROLLER = "finetunejob"
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 30, 60, 300, 900, 3600)

reconciles = Counter("controller_runtime_reconcile_total", "Reconciles by result.", ["controller", "result"])
reconcile_errors = Counter("controller_runtime_reconcile_errors_total", "Reconciles that failed.", ["controller"])
reconcile_timeouts = Counter("controller_runtime_reconcile_timeouts_total", "Reconciles cut off.", ["controller"])
reconcile_seconds = Histogram(
    "controller_runtime_reconcile_time_seconds", "Length of a reconcile.", ["controller"], buckets=_SECONDS
)
max_workers = Gauge("controller_runtime_max_concurrent_reconciles", "Workers.", ["controller"])
active_workers = Gauge("controller_runtime_active_workers", "Workers that are busy.", ["controller"])

queue_depth = Gauge("workqueue_depth", "Keys that wait.", ["name", "controller"])
queue_adds = Counter("workqueue_adds_total", "Keys added.", ["name", "controller"])
queue_retries = Counter("workqueue_retries_total", "Keys added again after an error.", ["name", "controller"])
queue_wait_seconds = Histogram(
    "workqueue_queue_duration_seconds", "How long a key waits.", ["name", "controller"], buckets=_SECONDS
)
queue_work_seconds = Histogram(
    "workqueue_work_duration_seconds", "How long a key is worked on.", ["name", "controller"], buckets=_SECONDS
)
queue_unfinished_seconds = Gauge(
    "workqueue_unfinished_work_seconds", "Seconds of work in progress, over all workers.", ["name", "controller"]
)
queue_longest_seconds = Gauge(
    "workqueue_longest_running_processor_seconds", "Longest work in progress.", ["name", "controller"]
)

requests = Counter("rest_client_requests_total", "Requests to the API server.", ["code", "method", "host"])
request_seconds = Histogram(
    "rest_client_request_duration_seconds", "Length of a request.", ["verb", "host"], buckets=_SECONDS
)

leader = Gauge("leader_election_master_status", "1 while this replica leads.", ["name"])

build_info = Gauge("finetune_build_info", "Version of the operator.", ["version"])
jobs = Gauge("finetune_jobs", "FineTuneJobs by phase.", ["phase"])
jobs_completed = Counter("finetune_completed_total", "Jobs that ended.", ["result", "reason"])
child_created_seconds = Histogram(
    "finetune_time_to_child_created_seconds",
    "From a FineTuneJob's creation, in whole seconds, to its first Job.",
    buckets=_LONG_SECONDS,
)
running_seconds = Histogram(
    "finetune_time_to_running_seconds", "From a training's first pod running to all of them.", buckets=_LONG_SECONDS
)
queue_wait = Histogram(
    "finetune_queue_wait_seconds",
    "From the end of the attempt before, or the job's start, to a training's first running pod.",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600, 168 * 3600),
)
gpu_seconds = Counter("finetune_gpu_seconds_total", "GPU-seconds of training attempts, by their end.", ["outcome"])
steps_lost = Counter("finetune_steps_lost_total", "Steps that were trained and had to be trained again.")
retries = Counter("finetune_retries_total", "Attempts that were followed by another one.", ["cause"])
progress_age = Gauge(
    "finetune_progress_age_seconds", "Since the last answer of the running training that is silent longest."
)
gpus_allocated = Gauge("finetune_gpus_allocated", "GPUs that trainings hold.")
watch_age_seconds = Gauge("finetune_watch_last_event_age_seconds", "Since the last event of a watch.", ["resource"])
watch_restarts = Counter(
    "finetune_watch_restarts_total", "Watches that began again with a list.", ["resource", "reason"]
)
namespaces_unwatched = Gauge(
    "finetune_namespaces_unwatched",
    "Watched namespaces that are not in the cache: the API server does not let us list them.",
)
task_restarts = Counter("finetune_task_restarts_total", "Background tasks that ended and were started again.", ["task"])
jobs_blocked = Gauge("finetune_jobs_blocked", "Jobs that cannot proceed and are retried later.")
cache_repairs = Counter("finetune_cache_repairs_total", "Objects that the watch had missed.", ["resource"])
loop_lag_seconds = Gauge("finetune_event_loop_lag_seconds", "How late the event loop was last.")
events_dropped = Counter("finetune_events_dropped_total", "Events that were not written.", ["why"])
progress_polls = Counter("finetune_progress_polls_total", "Reads of a training's progress.", ["result"])


def prepare(workers: int, version: str) -> None:
    """Every series that is known beforehand exists from the start, at 0."""
    for result in ("success", "error", "requeue", "requeue_after"):
        reconciles.labels(CONTROLLER, result)
    for counter in (reconcile_errors, reconcile_timeouts):
        counter.labels(CONTROLLER)
    max_workers.labels(CONTROLLER).set(workers)
    active_workers.labels(CONTROLLER).set(0)
    build_info.labels(version).set(1)


def exposition() -> bytes:
    """The text that Prometheus reads."""
    return generate_latest(REGISTRY)
