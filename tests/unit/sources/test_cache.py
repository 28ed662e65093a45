"""The cache on the workspace: never torn for who reads it, whatever happens to it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_trainer.errors import BadInput
from finetune_trainer.sources import cache

from tests.unit.sources.hub_server import Hub

ROWS = b'{"text": "hello"}\n' * 1000


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub({"rows.jsonl": ROWS})
    yield hub
    hub.close()


def test_without_locks_each_downloads_for_itself_and_the_first_wins(workspace, hub, monkeypatch):
    place = {"uri": "hf://datasets/acme/base", "endpoint": hub.url}

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(cache.fcntl, "flock", no_locks)
    download = cache.Cache._download

    def overtaken(self: Any, wanted: Any, snapshot: Any, remote: Any, partial: Any) -> None:
        monkeypatch.setattr(cache.Cache, "_download", download)
        workspace.fetch(place, run="second")
        inode = next(workspace.cache.glob("*/*/manifest.json")).stat().st_ino
        download(self, wanted, snapshot, remote, partial)
        assert next(workspace.cache.glob("*/[!.]*/manifest.json")).stat().st_ino == inode

    monkeypatch.setattr(cache.Cache, "_download", overtaken)
    first = workspace.fetch(place)
    assert first == workspace.local(place, run="second")
    assert (first / "rows.jsonl").read_bytes() == ROWS
    assert not list(workspace.cache.rglob("*partial*"))


def test_a_cache_that_was_cut_or_deleted(workspace, hub):
    place = {"uri": "hf://datasets/acme/base", "endpoint": hub.url}
    path = workspace.fetch(place)
    with (path / "rows.jsonl").open("r+b") as file:
        file.truncate(10)
    assert (workspace.fetch(place, run="second") / "rows.jsonl").read_bytes() == ROWS
    for folder in workspace.cache.iterdir():
        folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(BadInput, match="no longer in the cache of the workspace"):
        workspace.local(place)
    assert (workspace.fetch(place) / "rows.jsonl").read_bytes() == ROWS
