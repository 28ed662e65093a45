"""Settings of the process, from the environment. A wrong one ends the start with one sentence."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.contract import PROGRESS_PORT
from finetune_api.effective import PlatformDefaults
from finetune_api.errors import sentences
from pydantic import ValidationError

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class SettingsError(Exception):
    """A setting is wrong; the message names it and says what a right one looks like."""


@dataclass(frozen=True, slots=True)
class Settings:
    """See operator/README.md for the names in the environment."""

    namespaces: tuple[str, ...] = ()
    defaults: PlatformDefaults = field(default_factory=PlatformDefaults)
    http_host: str = ""
    """Empty: every address of the pod, of either family."""
    http_port: int = 8080
    log_level: str = "info"
    log_format: str = "json"
    workers: int = 64
    poll_seconds: float = 15.0
    resync_seconds: float = 300.0
    retry_seconds: float = 10.0
    progress_port: int = PROGRESS_PORT
    leader_election: bool = False
    lease_namespace: str = ""
    lease_name: str = "finetune-operator"
    identity: str = ""
    """Of this process, in the lease."""

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Raises SettingsError."""
        host, port = _address(environment.get("FINETUNE_HTTP") or ":8080")
        return cls(
            namespaces=tuple(n for n in environment.get("FINETUNE_NAMESPACES", "").replace(",", " ").split()),
            defaults=_defaults(environment.get("FINETUNE_DEFAULTS", "")),
            http_host=host,
            http_port=port,
            log_level=_choice(environment, "FINETUNE_LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
            log_format=_choice(environment, "FINETUNE_LOG_FORMAT", "json", ("json", "text")),
            workers=int(_number(environment, "FINETUNE_WORKERS", 64, 1, 1000)),
            poll_seconds=_number(environment, "FINETUNE_POLL_SECONDS", 15, 0.1, 3600),
            resync_seconds=_number(environment, "FINETUNE_RESYNC_SECONDS", 300, 1, 86400),
            retry_seconds=_number(environment, "FINETUNE_RETRY_SECONDS", 10, 0, 300),
            progress_port=int(_number(environment, "FINETUNE_PROGRESS_PORT", PROGRESS_PORT, 1, 65535)),
            leader_election=_elects(environment),
            lease_namespace=_namespace(environment),
            lease_name=environment.get("FINETUNE_LEASE") or "finetune-operator",
            identity=f"{environment.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4()}",
        )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"FINETUNE_HTTP is {text!r}, but must be HOST:PORT, such as 127.0.0.1:8080, or :8080")
    return host.strip("[]"), int(port)


def _namespace(environment: Mapping[str, str]) -> str:
    """The operator's own; empty outside a pod."""
    try:
        return environment.get("POD_NAMESPACE") or _NAMESPACE_FILE.read_text().strip()
    except OSError:
        return ""


def _elects(environment: Mapping[str, str]) -> bool:
    """In a pod by default."""
    inside = bool(_namespace(environment))
    wanted = (
        _choice(environment, "FINETUNE_LEADER_ELECTION", "true" if inside else "false", ("true", "false")) == "true"
    )
    if wanted and not inside:
        raise SettingsError("FINETUNE_LEADER_ELECTION is true, but the Lease's namespace is unknown: set POD_NAMESPACE")
    return wanted


def _choice(environment: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = (environment.get(name) or default).lower()
    if value not in choices:
        raise SettingsError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")
    return value


def _number(environment: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise SettingsError(f"{name} is {text!r}, but must be a number from {low:g} to {high:g}")
    return value


def _defaults(path: str) -> PlatformDefaults:
    if not path:
        return PlatformDefaults()
    try:
        return PlatformDefaults.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise SettingsError(f"FINETUNE_DEFAULTS names {path}, which cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise SettingsError(f"{path}: {'; '.join(sentences(error, PlatformDefaults))}") from None
