"""kopf logs in, lists, watches and recovers from expired versions. The only module that imports it.

kopf's watch layer is used without its event processing: `kopf.operator()` cannot run more than once in an event loop (when one
ends it cancels every task of the loop and arms a SIGKILL), and its processing costs 0.3 ms of CPU for each event and keeps a
record of each object, for handlers that only fill a cache.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import aiohttp
import kopf
from kopf._cogs.clients import auth, errors, watching
from kopf._cogs.structs import credentials, references

from finetune_operator.runtime.client import PAGE
from finetune_operator.runtime.connection import Connection, Credentials
from finetune_operator.runtime.decoding import ListResponse
from finetune_operator.runtime.errors import ApiError, Unreachable
from finetune_operator.runtime.informer import Receiver, Watch
from finetune_operator.runtime.resources import Resource

_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_STREAM_BACKOFFS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between attempts to continue a watch: shorter than listing everything again."""


class NoCredentials(Exception):
    """Neither a service account nor a kubeconfig."""


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
    found = Credentials(token_file=_TOKEN) if in_cluster is not None else Credentials(header=header)
    tls = info.as_ssl_context() if info.server.startswith("https:") else None
    return Connection(info.server.rstrip("/"), tls, found)


class _Session:
    """The part of kopf's credential vault that a watch uses. Our session renews its token itself, so a 401 is an error."""

    def __init__(self, connection: Connection) -> None:
        # One connection for each watch, however many there are; kopf sends nothing else.
        session = connection.session(limit=0, response=ListResponse)
        self.info = kopf.AiohttpSession(server=connection.server, aiohttp_session=session)
        self._context: Any = None

    async def extended(self, factory: Callable[[Any], Any], purpose: str | None = None) -> AsyncIterator[Any]:
        if self._context is None:
            self._context = factory(self.info)
        yield "session", self.info, self._context

    async def invalidate(self, key: str, info: Any, *, exc: Exception) -> None:
        raise exc

    async def close(self) -> None:
        await self.info.aiohttp_session.close()


def watcher(connection: Connection) -> tuple[Watch, Callable[[], Any]]:
    """Returns `watch(resource, namespace, receiver)`, which runs until it cannot continue, and what closes its session."""
    session = _Session(connection)

    async def watch(resource: Resource, namespace: str | None, receiver: Receiver) -> None:
        auth.vault_var.set(cast(credentials.Vault, session))
        settings = _settings(resource)
        stream = watching.infinite_watch(
            settings=settings,
            resource=references.Resource(resource.group, resource.version, resource.plural, namespaced=True),
            namespace=cast(Any, namespace),
        )
        try:
            async for event in stream:
                if event is watching.Bookmark.LISTED:
                    settings.networking.error_backoffs = _STREAM_BACKOFFS
                    receiver.listed()
                elif not isinstance(event, watching.Bookmark) and event["type"] != "BOOKMARK":
                    receiver.event(event["type"], cast("dict[str, Any]", event["object"]))
        except errors.APIError as error:
            raise ApiError(error.status, str(type(error).__name__), error.message or "") from error
        except watching.WatchingError as error:
            raise ApiError(500, "WatchFailed", str(error)) from error
        except (aiohttp.ClientError, errors.APISessionClosed, TimeoutError, OSError) as error:
            raise Unreachable(f"{type(error).__name__} {error}".rstrip()) from error

    return watch, session.close


def _settings(resource: Resource) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = PAGE
    settings.watching.reconnect_backoff = 0.1
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.enforce_retry_after = True
    settings.networking.error_backoffs = ()  # the informer waits, and knows whom to tell
    if resource.selector:
        settings.watching.label_selectors[resource.group, resource.version, resource.plural] = resource.selector
    return settings
