"""A proxy between the operator and the real API server, which does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
import yaml
from aiohttp import web


@dataclass(frozen=True)
class Fault:
    """`answer`: instead of asking the API server. `lose`: ask it, and lose its answer. `slow`: seconds before asking.
    `drop`: end the connection without an answer. `mute`: a watch that stays open and delivers nothing."""

    kind: Literal["answer", "lose", "slow", "drop", "mute"]
    code: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0


@dataclass
class Proxy:
    """Plain HTTP in front of the API server. `rule(method, path)` decides on each request (method WATCH for a watch); None: let it pass."""

    api: Any
    kubeconfig: Path
    rule: Callable[[str, str], Fault | None] = lambda method, path: None
    after_write: Callable[[str, int], None] = lambda path, code: None
    """Called when the API server has done a write and nobody has heard of it yet."""
    writes: list[tuple[str, str, int]] = field(default_factory=list)
    watches: list[Any] = field(default_factory=list)
    one_write_at_a_time: bool = False
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def start(self) -> None:
        started = threading.Event()

        async def serve() -> None:
            context = ssl.create_default_context(cadata=self.api.ca)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=context))
            app = web.Application(client_max_size=2**24)
            app.router.add_route("*", "/{path:.*}", self._handle)
            self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            user = {"name": "u", "user": {"token": self.api.token}}
            cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
            context_ = {"name": "x", "context": {"cluster": "c", "user": "u"}}
            config = {"apiVersion": "v1", "kind": "Config", "current-context": "x"}
            config |= {"users": [user], "clusters": [cluster], "contexts": [context_]}
            self.kubeconfig.write_text(yaml.safe_dump(config))
            started.set()

        self._loop.create_task(serve())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        assert started.wait(10)

    def stop(self) -> None:
        async def close() -> None:
            await self._runner.cleanup()
            await self._session.close()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def cut_watches(self) -> None:
        """End every watch, as a load balancer does."""

        def close() -> None:
            for transport in self.watches:
                transport.close()
            self.watches.clear()

        self._loop.call_soon_threadsafe(close)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET" or not self.one_write_at_a_time:
            return await self._pass(request)
        async with self._writing:
            return await self._pass(request)

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        method, path = request.method, request.path
        watches = "watch=true" in request.query_string
        fault = self.rule("WATCH" if watches else method, path)
        body = await request.read()
        if fault is not None and fault.kind == "answer":
            status = {"kind": "Status", "code": fault.code, "reason": "Injected", "message": "injected by the test"}
            return web.json_response(status, status=fault.code, headers=fault.headers)
        if fault is not None and fault.kind == "drop":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if fault is not None and fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
        headers = {k: v for k, v in request.headers.items() if k in ("Authorization", "Accept", "Content-Type")}
        async with self._session.request(
            method, self.api.server + request.path_qs, data=body or None, headers=headers
        ) as answer:
            if method != "GET":
                self.writes.append((method, path, answer.status))
                await asyncio.to_thread(self.after_write, path, answer.status)
            if fault is not None and fault.kind == "lose":
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            streamed = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await streamed.prepare(request)
            if watches:
                self.watches.append(request.transport)
            with contextlib.suppress(ConnectionError):  # a watcher may go at any time
                async for chunk in answer.content.iter_any():
                    if fault is None or fault.kind != "mute":
                        await streamed.write(chunk)
            return streamed
