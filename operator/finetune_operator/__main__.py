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
from finetune_operator.runtime.connection import Connection
from finetune_operator.runtime.controller import Controller
from finetune_operator.settings import Settings, SettingsError
from finetune_operator.telemetry import logs, metrics

logger = logging.getLogger("finetune_operator")

_GC_THRESHOLD = 20_000
_STOP_S = 6.0
"""For writes in flight; with kopf's own end the process is gone within 10 seconds of SIGTERM."""


async def run(settings: Settings) -> int:
    """The exit code: 0 after SIGTERM, 1 when the watches ended by themselves."""
    reach = kopf_app.connection()
    controller = Controller(
        reach,
        Config(defaults=settings.defaults, retry_delay=settings.retry_seconds),
        namespaces=settings.namespaces,
        workers=settings.workers,
        poll_seconds=settings.poll_seconds,
        sweep_seconds=settings.sweep_seconds,
        progress_port=settings.progress_port,
    )
    stop, stop_kopf, watching = asyncio.Event(), asyncio.Event(), asyncio.Event()
    _on_signals(stop)
    server = await http.serve(controller, settings.http_host, settings.http_port)
    life = asyncio.create_task(_live(settings, controller, reach, watching, stop_kopf, stop), name="life")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({life, stopping}, return_when=asyncio.FIRST_COMPLETED)
    code = 0 if stop.is_set() else 1
    if not stop.is_set():
        logger.error("the watches ended: %s", life.exception() if life.done() and not life.cancelled() else "")
    await controller.stop(_STOP_S)
    stop_kopf.set()
    if not watching.is_set():
        life.cancel()
    await asyncio.wait({life}, timeout=3)
    stopping.cancel()
    await server.cleanup()
    return code


async def _live(
    settings: Settings,
    controller: Controller,
    reach: Connection,
    watching: asyncio.Event,
    stop_kopf: asyncio.Event,
    stop: asyncio.Event,
) -> None:
    await controller.wait_for_kind()
    watch = asyncio.create_task(
        kopf_app.watch(reach, controller, settings.namespaces, watching, stop_kopf), name="kopf"
    )
    ready = asyncio.create_task(watching.wait())
    await asyncio.wait({watch, ready}, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    _on_signals(stop)  # kopf has put its own in their place
    start = asyncio.create_task(controller.start(), name="start")
    await asyncio.wait({watch, start}, return_when=asyncio.FIRST_COMPLETED)
    if not watch.done():
        await start
    await watch


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


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
            return runner.run(run(settings))
    except kopf_app.NoCredentials as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
