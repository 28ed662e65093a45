"""The cache under processes of their own: kill -9 in the middle of a download, and two jobs that want the same at once."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.sources.hub_server import Hub
from tests.unit.sources.web_server import Page, Request

ROWS = b'{"text": "hello"}\n' * 200_000
FETCH = """
import sys
from finetune_api.contract import RunConfig
from finetune_trainer import sources
config = RunConfig.read(sys.argv[1])
location = config.spec.data.train[0]
print(sources.fetch(location, config, field="spec.data.train[0].uri", files=sources.DATA_FILES, subfolders=True))
"""


class Slow(Hub):
    """A hub that holds back the second half of a file until it is told, and counts what it sent."""

    def __init__(self) -> None:
        super().__init__({"rows.jsonl": ROWS})
        self.hold = True
        self.answer = self.halves

    def halves(self, request: Request) -> Page:
        page = self._answer(request)
        if "/resolve/" in request.path and self.hold and request.method == "GET":
            page.cut = len(ROWS) // 2
        return page

    def bodies(self) -> list[Request]:
        return [request for request in self.requests if "/resolve/" in request.path]


@pytest.fixture
def hub() -> Iterator[Slow]:
    hub = Slow()
    yield hub
    hub.close()


def start(workspace: Any, hub: Slow, run: str, *, before: str = "") -> subprocess.Popen[str]:
    config = workspace.config({"uri": "hf://datasets/acme/base", "endpoint": hub.url}, run=run)
    path = workspace.claims / f"{run}.json"
    path.write_text(config.encode())
    return subprocess.Popen(
        [sys.executable, "-c", before + FETCH, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_after_kill_9_the_next_attempt_goes_on_and_another_job_waits_its_turn(workspace, hub):
    patient = "from finetune_trainer.sources import transfer; transfer.PAUSE_S = 60.0\n"
    first = start(workspace, hub, "first", before=patient)  # gets one half, and pauses
    while not hub.bodies() or not any(
        path.stat().st_size == len(ROWS) // 2 for path in workspace.cache.rglob("rows.jsonl")
    ):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    second = start(workspace, hub, "second")  # waits for the first, and goes on where that was killed
    time.sleep(1.5)
    assert (second.poll(), len(hub.bodies())) == (None, 1)
    hub.hold = False
    os.kill(first.pid, signal.SIGKILL)
    out, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    first.communicate()
    assert [request.headers.get("range") for request in hub.bodies()] == [None, f"bytes={len(ROWS) // 2}-"]
    again = workspace.fetch({"uri": "hf://datasets/acme/base", "endpoint": hub.url})
    assert (str(again), hashlib.sha256((again / "rows.jsonl").read_bytes()).digest()) == (
        out.strip(),
        hashlib.sha256(ROWS).digest(),
    )
    assert len(hub.bodies()) == 2
