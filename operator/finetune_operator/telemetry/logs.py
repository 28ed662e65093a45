"""Logs: one JSON object a line, one line a change, none for a look that changed nothing. Never the body of an object."""

from __future__ import annotations

import contextvars
import datetime as dt
import json
import logging
import sys
from typing import Any, Literal

key_in_work: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("key_in_work", default=None)
"""(namespace, name) of the job that the current task works on."""

_OWN = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`, with the job in work."""
    found = {name: value for name, value in record.__dict__.items() if name not in _OWN}
    key = key_in_work.get()
    if key is not None:
        found = {"namespace": key[0], "name": key[1], **found}
    return found


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{name}={value}" for name, value in fields(record).items())
        line = f"{self.formatTime(record)} {record.levelname:7} {record.getMessage()} {extra}".rstrip()
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def configure(level: str, style: Literal["json", "text"]) -> None:
    """Everything to stderr. Nothing of kopf's: it logs whole objects, and each attempt of each request; what ends a watch is
    logged by us."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("kopf").setLevel(logging.CRITICAL)
    logging.getLogger("finetune_operator").setLevel(level.upper())
