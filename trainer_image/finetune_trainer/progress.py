"""How far the stage is: rank 0 writes a file, PID 1 serves it. A worker deep in its work never blocks the endpoint."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finetune_api.contract import METRICS_PATH, PROGRESS_PATH, Progress, RunConfig

FILE = "progress.json"
_SHORTEST_INTERVAL_SECONDS = 0.5

_METRICS = (
    # field, Prometheus name, type, help
    ("step", "finetune_step", "gauge", "Optimizer steps done (rows read or measured in other stages)."),
    ("total_steps", "finetune_total_steps", "gauge", "Steps that the stage will take; 0 means not known yet."),
    ("percent", "finetune_progress_ratio", "gauge", "Share of the stage that is done, 0 to 1."),
    ("epoch", "finetune_epoch", "gauge", "Passes over the training data."),
    ("loss", "finetune_loss", "gauge", "Training loss, mean over trained tokens."),
    ("eval_loss", "finetune_eval_loss", "gauge", "Validation loss, mean over trained tokens."),
    ("learning_rate", "finetune_learning_rate", "gauge", "Learning rate of the last step."),
    ("grad_norm", "finetune_grad_norm", "gauge", "L2 norm of the gradients before clipping."),
    (
        "tokens_per_second",
        "finetune_tokens_per_second",
        "gauge",
        "Tokens of rows, padding not counted, over the whole gang.",
    ),
    ("eta_seconds", "finetune_eta_seconds", "gauge", "Seconds until the stage is done."),
    ("step_seconds", "finetune_step_seconds", "gauge", "Duration of a step."),
    ("checkpoint_seconds", "finetune_checkpoint_seconds", "gauge", "Duration of the last checkpoint, to its seal."),
    (
        "step_time_skew",
        "finetune_step_time_skew_ratio",
        "gauge",
        "Forward time of the slowest rank over that of the median rank.",
    ),
    ("slowest_rank", "finetune_slowest_rank", "gauge", "The rank that step_time_skew is about."),
    ("world_size", "finetune_world_size", "gauge", "Processes of the gang."),
    ("updated", "finetune_updated_timestamp_seconds", "gauge", "Unix time of this state."),
)


class ProgressWriter:
    """Keeps the state of one stage and writes it whole. On other ranks than 0 (`path` None) it does nothing."""

    def __init__(self, path: Path | None, progress: Progress) -> None:
        self._path = path
        self._state = progress
        self._written = 0.0

    @property
    def state(self) -> Progress:
        return self._state

    def update(self, *, force: bool = False, **fields: Any) -> None:
        """Set fields of `Progress`. Written at most twice a second unless `force` (a change of stage, the end)."""
        self._state = self._state.model_copy(update={**fields, "updated": time.time()})
        now = time.monotonic()
        if self._path is None or not (force or now - self._written >= _SHORTEST_INTERVAL_SECONDS):
            return
        self._written = now
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._state.wire(), allow_nan=False))
        temporary.replace(self._path)


def read(path: Path) -> Progress | None:
    try:
        return Progress.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def prometheus(progress: Progress, *, job: str, namespace: str) -> str:
    """The same state in Prometheus' text format."""
    labels = ",".join(
        f"{name}={json.dumps(value)}"
        for name, value in (
            ("job_name", job),
            ("job_namespace", namespace),
            ("stage", progress.stage),
            ("attempt", str(progress.attempt)),
        )
    )
    lines = []
    for field, name, kind, text in _METRICS:
        value = getattr(progress, field)
        if value is None:
            continue
        lines += [
            f"# HELP {name} {text}",
            f"# TYPE {name} {kind}",
            f"{name}{{{labels}}} {value / 100 if field == 'percent' else value}",
        ]
    return "\n".join(lines) + "\n"


class ProgressServer:
    """Serves /progress and /metrics from the file. Only the pod of rank 0 has one; others answer 404."""

    def __init__(self, path: Path, config: RunConfig, port: int) -> None:
        """Raises OSError when the port is taken."""
        self._server = ThreadingHTTPServer(("", port), _handler(lambda: read(path), config))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="progress", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(progress: Callable[[], Progress | None], config: RunConfig) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            state = progress()
            if self.path not in (PROGRESS_PATH, METRICS_PATH) or state is None:
                self.send_error(404, "nothing here yet" if state is None else None)
                return
            if self.path == PROGRESS_PATH:
                kind, body = "application/json", json.dumps(state.wire())
            else:
                kind, body = (
                    "text/plain; version=0.0.4; charset=utf-8",
                    prometheus(state, job=config.job.name, namespace=config.job.namespace),
                )
            data = body.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Polls are not worth a line."""

    return Handler
