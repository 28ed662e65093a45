"""A proxy in front of the API server that fails as networks and API servers do, and counts the operator's writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from benchmarks.operator.ours import free_port
from localcluster.spec import LOOPBACK, Spec

Mode = Literal["normal", "refuse", "unavailable", "error", "hang"]
_REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_DROPPED = {"host", "connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive"}
_EXPIRED_EVENT = {
    "type": "ERROR",
    "object": {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": "Expired",
        "code": 410,
        "message": "too old",
    },
}


@dataclass
class Proxy:
    """What it does at the moment may be changed at any time."""

    spec: Spec
    rng: random.Random
    mode: Mode = "normal"
    error_rate: float = 0.0
    """Share of requests that fail, lose their answer or are late."""
    port: int = field(default_factory=free_port)
    injected: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    recent: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=100_000))
    """(time, what) of the writes that reached the API server, without leases."""
    _streams: set[asyncio.Task[None]] = field(default_factory=set)
    _expired: bool = False

    def kubeconfig(self, file: Path) -> Path:
        """The administrator's, through this proxy."""
        config = yaml.safe_load(self.spec.paths.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://{LOOPBACK}:{self.port}"
        file.write_text(yaml.safe_dump(config))
        return file

    def writes_since(self, start: float) -> Counter[str]:
        return Counter(what for at, what in self.recent if at >= start)

    def cut_watches(self, expired: bool) -> None:
        """End every watch, with an event that says that its version is too old, or without a word."""
        self._expired = expired
        for stream in list(self._streams):
            stream.cancel()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        trust = ssl.create_default_context(cafile=str(self.spec.pki.ca.certificate))
        identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        identity.load_cert_chain(self.spec.pki.serving.certificate, self.spec.pki.serving.key)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trust), timeout=timeout, auto_decompress=False
        ) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                return await self._handle(request, session)

            application = web.Application(client_max_size=2**26)
            application.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
            await runner.setup()
            await web.TCPSite(runner, LOOPBACK, self.port, ssl_context=identity).start()
            try:
                yield
            finally:
                await runner.cleanup()

    async def _handle(self, request: web.Request, session: aiohttp.ClientSession) -> web.StreamResponse:
        watch = request.query.get("watch") in ("1", "true")
        fault = self._fault(watch)
        if fault is not None:
            self.injected[fault] += 1
        if fault == "refuse":
            return self._cut(request)
        if fault == "hang":
            await asyncio.sleep(self.rng.uniform(1, 12))
            return self._cut(request)
        if fault is not None and fault.isdigit():
            return _status(int(fault), self.rng)
        if fault == "late":
            await asyncio.sleep(self.rng.uniform(0.2, 3))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROPPED}
        url = f"{self.spec.server}{request.raw_path}"
        body = await request.read()
        try:
            async with session.request(
                request.method, URL(url, encoded=True), data=body or None, headers=headers
            ) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _DROPPED}
                if watch and answer.status == 200:
                    return await self._stream(request, answer, kept)
                content = await answer.read()
        except (aiohttp.ClientError, OSError):
            return self._cut(request)
        if request.method in _WRITES and answer.status < 300 and "/leases" not in request.path:
            what = f"{request.method} {_resource(request.path)}"
            self.written[what] += 1
            self.recent.append((time.monotonic(), what))
        if fault == "lost answer":
            return self._cut(request)
        encoding = answer.headers.get("Content-Encoding")
        if encoding:
            kept["Content-Encoding"] = encoding
        return web.Response(status=answer.status, headers=kept, body=content)

    def _fault(self, watch: bool) -> str | None:
        if self.mode == "refuse":
            return "refuse"
        if self.mode == "unavailable":
            return "503"
        if self.mode == "error":
            return self.rng.choice(["500", "503", "429"])
        if self.mode == "hang":
            return "hang"
        if self.rng.random() >= self.error_rate:
            return None
        if watch:
            return self.rng.choice(["410", "500", "refuse"])
        return self.rng.choice(["409", "429", "500", "503", "refuse", "lost answer", "late", "late"])

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        stream = web.StreamResponse(status=200, headers=headers)
        await stream.prepare(request)
        pump = asyncio.create_task(_pump(answer, stream))
        self._streams.add(pump)
        try:
            await asyncio.wait({pump})
            if pump.cancelled():
                if self._expired:
                    await stream.write(json.dumps(_EXPIRED_EVENT).encode() + b"\n")
                else:
                    return self._cut(request)
        except (ConnectionError, OSError):
            pass
        finally:
            self._streams.discard(pump)
            pump.cancel()
        with contextlib.suppress(ConnectionError, OSError):
            await stream.write_eof()
        return stream

    def _cut(self, request: web.Request) -> web.Response:
        """End the connection without an answer."""
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)


async def _pump(answer: aiohttp.ClientResponse, stream: web.StreamResponse) -> None:
    with contextlib.suppress(aiohttp.ClientError, ConnectionError, OSError):
        async for chunk in answer.content.iter_any():
            await stream.write(chunk)


def _status(code: int, rng: random.Random) -> web.Response:
    body = {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": _REASONS[code], "message": f"injected: {_REASONS[code]}",
    }  # fmt: skip
    headers = {"Retry-After": str(rng.choice([1, 2]))} if code in (429, 503) and rng.random() < 0.7 else {}
    return web.json_response(body, status=code, headers=headers)


def _resource(path: str) -> str:
    """The plural, with the subresource: `finetunejobs/status`."""
    parts = path.strip("/").split("/")
    rest = parts[parts.index("namespaces") + 2 :] if "namespaces" in parts else parts[-1:]
    return "/".join(rest[:1] + rest[2:3])
