"""prepare on a model and data that are downloaded: every later stage reads what it left."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from finetune_trainer import sources

from tests.unit.sources.hub_server import COMMIT, Hub


@pytest.fixture
def hub(job, monkeypatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    rows = "".join(json.dumps({"prompt": f"hello {n}", "completion": "fox"}) + "\n" for n in range(20)).encode()
    hub = Hub({path.name: path.read_bytes() for path in job.model.iterdir()} | {"data/train.jsonl": rows})
    yield hub
    hub.close()


def test_prepare_downloads_once_and_nobody_asks_again(job, hub):
    places = {
        "model": {"uri": "hf://acme/base", "revision": "v1", "endpoint": hub.url},
        "data": {"train": [{"uri": "hf://datasets/acme/base/data", "endpoint": hub.url}]},
    }
    data, _, shards = job.prepare(**places)
    assert data.rows == 20
    assert shards.manifest["sources"] == ["hf://datasets/acme/base/data/train.jsonl"]
    asked = len(hub.requests)
    job.prepare(**places)
    config = job.config(**places)
    assert (sources.local(config.spec.model, config, field="spec.model.uri") / "model.safetensors").is_file()
    assert len(hub.requests) == asked
    assert [source.digest for source in sources.pinned(config)] == [COMMIT, COMMIT]
