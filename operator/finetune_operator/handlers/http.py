"""/healthz, /readyz and /metrics, on the operator's own event loop, so that a loop that hangs fails the probe."""

from __future__ import annotations

import socket

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from finetune_operator.runtime.controller import Controller
from finetune_operator.telemetry import metrics


def application(controller: Controller) -> web.Application:
    """The three answers."""

    async def healthz(_: web.Request) -> web.Response:
        problem = controller.unhealthy()
        return web.Response(text=problem or "ok", status=500 if problem else 200)

    async def readyz(_: web.Request) -> web.Response:
        if controller.ready:
            return web.Response(text="ok")
        return web.Response(text="the cache is not complete yet", status=503)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    return app


async def serve(controller: Controller, host: str, port: int) -> web.AppRunner:
    """Listen; `cleanup()` of what is returned ends it."""
    runner = web.AppRunner(application(controller), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listen(host, port)).start()
    return runner


def listen(host: str, port: int) -> socket.socket:
    """No host: every address, of IPv6 and IPv4 where the machine has both."""
    if host:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):
        return socket.create_server(("", port))
