"""A thin client of the API server: one request a call, no retries. Who retries is the work queue.

A namespace whose requests are answered with 429 or 503 pauses: these answers also come from webhooks and API services that one
tenant has installed. All requests pause only for what no tenant can cause.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from finetune_operator.runtime.connection import Connection
from finetune_operator.runtime.errors import ApiError, Unreachable
from finetune_operator.runtime.resources import Resource
from finetune_operator.telemetry import metrics

Object = dict[str, Any]

FIELD_MANAGER = "finetune-operator"
MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_IN_FLIGHT = 128
PAGE = 200
"""Objects of a list that are asked for at once. Three kinds are listed at the same time: by 500, what is read and not yet packed
made a sixth of the memory of an operator of 1,000 running jobs."""
_LONGEST_PAUSE_S = 60.0


class Client:
    """`timeout`: seconds a request may take."""

    def __init__(self, connection: Connection, *, timeout: float = 30.0) -> None:
        self._connection = connection
        self._session = connection.session(_IN_FLIGHT)
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=5)
        self._paused_until: dict[str | None, float] = {}  # by namespace; None: everything

    async def close(self) -> None:
        await self._session.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return await self._request("GET", resource.path(namespace, name), namespace)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def pages(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        metadata_only: bool = False,
        query: dict[str, str] | None = None,
    ) -> AsyncIterator[list[Object]]:
        """Every object of a kind that concerns us, a page at a time."""
        parameters = {"limit": str(PAGE), **(query or {})}
        selectors = [resource.selector, parameters.get("labelSelector", "")]
        if any(selectors):
            parameters["labelSelector"] = ",".join(filter(None, selectors))
        accept = METADATA_ONLY if metadata_only else "application/json"
        while True:
            page = await self._request("GET", resource.path(namespace), namespace, query=parameters, accept=accept)
            items = page.get("items") or []
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise ApiError(200, "Malformed", f"the list of {resource.plural} has no list of items")
            yield items
            following = (page.get("metadata") or {}).get("continue")
            if not following:
                return
            parameters["continue"] = following

    async def create(self, resource: Resource, body: Object) -> Object:
        """Fields that the API server does not know are an error, not dropped: users' own settings are among them."""
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        namespace = body["metadata"]["namespace"]
        return await self._request("POST", resource.path(namespace), namespace, body, query=query)

    async def replace(self, resource: Resource, body: Object) -> Object:
        """Over the version in metadata.resourceVersion; any other one is a 409."""
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("PUT", resource.path(namespace, name), namespace, body, query=query)

    async def merge(
        self, resource: Resource, namespace: str, name: str, change: Object, subresource: str = ""
    ) -> Object:
        path = resource.path(namespace, name, subresource)
        return await self._request(
            "PATCH", path, namespace, change, query={"fieldManager": FIELD_MANAGER}, content_type=MERGE_PATCH
        )

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> Object | None:
        """None when it was gone already, or is another one by now. Without a policy a Job would leave its pods behind."""
        options: Object = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            return await self._request("DELETE", resource.path(namespace, name), namespace, options)
        except ApiError as error:
            if error.code == 404:
                return None
            if (
                error.code == 409 and uid is not None
            ):  # most likely another one has the name; a conflict may be anything
                there = await self.get(resource, namespace, name)
                if there is None or there["metadata"]["uid"] != uid:
                    return None
            raise

    async def _request(
        self,
        method: str,
        path: str,
        namespace: str | None,
        body: Object | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        loop = asyncio.get_running_loop()
        if (pause := self._pause(namespace)) > 0:
            await asyncio.sleep(pause)
        began, code = loop.time(), "<error>"
        headers = {"Accept": accept} | ({"Content-Type": content_type} if body is not None else {})
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        try:
            async with self._session.request(
                method,
                self._connection.server + path,
                params=query,
                data=data,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                code = str(response.status)
                content = await response.read()
                if response.status >= 300:
                    raise self._error(response, content, method, namespace)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{method} {path}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            metrics.requests.labels(code, method, self._connection.host).inc()
            metrics.request_seconds.labels(method, self._connection.host).observe(loop.time() - began)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ApiError(int(code), "Malformed", f"{method} {path}: the answer is not a JSON object")
        return found

    def _pause(self, namespace: str | None) -> float:
        """Seconds until requests for this namespace may be sent."""
        now, until = asyncio.get_running_loop().time(), self._paused_until
        for paused in [paused for paused, end in until.items() if end <= now]:
            del until[paused]
        return max(until.get(namespace, 0.0), until.get(None, 0.0)) - now

    def _error(self, response: aiohttp.ClientResponse, content: bytes, method: str, namespace: str | None) -> ApiError:
        try:
            status = json.loads(content)
            reason, message = str(status.get("reason", "")), str(status.get("message", ""))
        except (ValueError, AttributeError):
            reason, message = response.reason or "", content[:200].decode(errors="replace")
        seconds = response.headers.get("Retry-After", "")
        wait = float(seconds) if seconds.isdigit() else None
        if response.status in (429, 503):
            pause = min(wait if wait is not None else 1.0, _LONGEST_PAUSE_S)
            everything = namespace is None or (response.status == 429 and method == "GET")
            paused = None if everything else namespace
            until = asyncio.get_running_loop().time() + pause
            self._paused_until[paused] = max(self._paused_until.get(paused, 0.0), until)
        return ApiError(response.status, reason, message, wait)
