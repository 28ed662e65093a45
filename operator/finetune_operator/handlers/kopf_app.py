"""kopf as our eyes: it logs in, lists, watches and recovers. The only module that imports it.

It writes nothing: no finalizer, no annotation, no event. Its handlers put what they see into the cache and wake a key.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any, cast

import kopf

from finetune_operator.runtime.connection import Connection, Credentials
from finetune_operator.runtime.controller import Controller
from finetune_operator.runtime.resources import WATCHED

_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class NoCredentials(Exception):
    """Neither a service account nor a kubeconfig."""


class _NoProgress(kopf.ProgressStorage):
    """kopf has no state to keep, since it handles nothing."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


class _NoDiffBase(kopf.DiffBaseStorage):
    """Building the difference of every event costs a third of kopf's time, and nobody reads it."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


def connection() -> Connection:
    """By kopf's own logins: the pod's service account, else a kubeconfig. Raises NoCredentials."""
    logger, settings = logging.getLogger("kopf"), kopf.OperatorSettings()
    try:
        in_cluster = kopf.login_with_service_account(logger=logger, settings=settings)
        info = in_cluster or kopf.login_with_kubeconfig(logger=logger, settings=settings)
    except (OSError, LookupError, TypeError, kopf.LoginError) as error:
        raise NoCredentials(f"the kubeconfig cannot be used: {error}; set KUBECONFIG to one that can") from error
    if info is None:
        raise NoCredentials("there is neither a service account nor a kubeconfig: run in a cluster, or set KUBECONFIG")
    header = info.as_http_headers().get("Authorization")
    credentials = Credentials(token_file=_TOKEN) if in_cluster is not None else Credentials(header=header)
    tls = info.as_ssl_context() if info.server.startswith("https:") else None
    return Connection(info.server.rstrip("/"), tls, credentials)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.finalizer = "finetune.dev/unused"
    # A worker keeps its slot while it idles, so never limit their number; let them go soon instead.
    settings.queueing.worker_limit = None
    settings.queueing.idle_timeout = 0.5
    settings.queueing.exit_timeout = 1.0
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = 500
    settings.watching.reconnect_backoff = 0.1
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.enforce_retry_after = True
    settings.process.ultimate_exiting_timeout = 30
    settings.execution.max_workers = 1
    for resource in WATCHED:
        if resource.selector:
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = resource.selector
    return settings


def _registry(reach: Connection, controller: Controller) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        # One connection a watch, however many namespaces there are; kopf sends nothing else.
        return kopf.AiohttpSession(server=reach.server, aiohttp_session=reach.session(limit=0))

    for resource in WATCHED:

        def see(event: Any, kind: str = resource.kind, **_: Any) -> None:
            controller.event(kind, event["type"], event["object"])

        async def on_event(event: Any, see: Any = see, **_: Any) -> None:
            see(event)

        kopf.on.event(
            resource.group, resource.version, resource.plural, id=f"see-{resource.plural}", registry=registry
        )(on_event)
    return registry


async def watch(
    reach: Connection, controller: Controller, namespaces: tuple[str, ...], ready: asyncio.Event, stop: asyncio.Event
) -> None:
    """Watch until `stop`, or until a watch ends by an error that kopf cannot recover from: then the process should end too."""
    await kopf.operator(
        registry=_registry(reach, controller),
        settings=_settings(),
        clusterwide=not namespaces,
        namespaces=namespaces,
        # Else kopf asks for the user's name, which a pod's numeric user does not have.
        identity=cast(Any, socket.gethostname()),
        standalone=True,
        ready_flag=ready,
        stop_flag=stop,
    )
