"""`python -m finetune_operator`: reads settings, connects, watches, until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from typing import Literal, cast

import finetune_api
import uvloop

from finetune_operator.domain.plan_builder import Config
from finetune_operator.handlers import http, kopf_app
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.controller import Controller
from finetune_operator.runtime.leader import Elector
from finetune_operator.settings import Settings, SettingsError
from finetune_operator.telemetry import logs, metrics

logger = logging.getLogger("finetune_operator")

_GC_THRESHOLD = 20_000
_STOP_S = 6.0
"""For writes in flight; the process is gone within 10 seconds of SIGTERM."""


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT: whatever happens to the API server, a namespace or an object is not a reason to exit."""
    connection = kopf_app.connection()
    watch, close_watches = kopf_app.watcher(connection)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    elector = None
    if settings.leader_election:
        client = Client(connection, timeout=5)
        elector = Elector(client, settings.lease_namespace, settings.lease_name, settings.identity)
    controller = Controller(
        connection,
        watch,
        Config(defaults=settings.defaults, retry_delay=settings.retry_seconds),
        namespaces=settings.namespaces,
        workers=settings.workers,
        poll_seconds=settings.poll_seconds,
        resync_seconds=settings.resync_seconds,
        progress_port=settings.progress_port,
        elector=elector,
    )
    server = await http.serve(controller, settings.http_host, settings.http_port)
    controller.start()
    await stop.wait()
    await controller.stop(_STOP_S)
    await close_watches()
    await server.cleanup()


def main() -> int:
    try:
        settings = Settings.read()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log_level, cast(Literal["json", "text"], settings.log_format))
    metrics.prepare(settings.workers, finetune_api.__version__)
    if settings.defaults.pods.image is None:
        logger.warning("FINETUNE_DEFAULTS names no trainer image: jobs have to name one in spec.pods")
    # What is imported stays: the collector need not look at it again with each burst of events.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 50)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except kopf_app.NoCredentials as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"FINETUNE_HTTP: cannot listen on port {settings.http_port}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
