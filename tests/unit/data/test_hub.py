"""Downloads from a hub: a real HTTP server on loopback speaks its protocol, the real client asks it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from finetune_trainer import sealed, source
from finetune_trainer.errors import BadInput, StageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One model `acme/base` (and a data set of the same name) at one commit; `acme/gated` wants a token."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.broken_after: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = self.path.split("?")[0]
                hub.requests.append(f"{self.command} {path}")
                hub.tokens.add(self.headers.get("Authorization"))
                if "/acme/gated" in path and self.headers.get("Authorization") != "Bearer hf_good":
                    return self.send(
                        403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, body
                    )
                if "/acme/" not in path:
                    return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
                if "/revision/" in path and path.rsplit("/", 1)[-1] not in ("main", "v1", COMMIT):
                    return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
                if path.startswith("/api/") and "/tree/" in path:
                    tree = [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in hub.files.items()
                    ]
                    return self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
                if path.startswith("/api/"):
                    info = {
                        "id": "acme/base",
                        "modelId": "acme/base",
                        "sha": COMMIT,
                        "private": False,
                        "tags": [],
                        "downloads": 0,
                        "likes": 0,
                        "siblings": [],
                    }
                    return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
                name = path.split(f"/resolve/{COMMIT}/", 1)[-1]
                if hub.broken_after is not None and self.command == "GET":
                    if hub.broken_after == 0:
                        return self.send(500, b"down", {}, body)
                    hub.broken_after -= 1
                data = hub.files[name]
                return self.send(
                    200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, body
                )

            def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(job, monkeypatch, tmp_path) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files = {path.name: path.read_bytes() for path in job.model.iterdir()}
    rows = "".join(json.dumps({"prompt": f"hello {n}", "completion": "fox"}) + "\n" for n in range(20)).encode()
    hub = Hub(
        {
            **files,
            "pytorch_model.bin": b"pickle",
            "original/model.safetensors": b"x",
            "data/train.jsonl": rows,
            "data/notes.md": b"# notes",
        }
    )
    yield hub
    hub.close()


def test_model_and_data_are_downloaded_once_at_one_commit(job, hub):
    places = {
        "model": {"uri": "hf://acme/base", "revision": "v1", "endpoint": hub.endpoint},
        "data": {"train": [{"uri": "hf://datasets/acme/base/data", "endpoint": hub.endpoint}]},
    }
    config = job.config(**places)
    data, _, shards = job.prepare(**places)
    assert data.rows == 20
    assert shards.manifest["sources"] == ["hf://datasets/acme/base/data/train.jsonl"]
    folder = source.local(config.spec.model, config, field="spec.model.uri")
    manifest = sealed.verify(folder)
    assert (manifest["commit"], manifest["revision"]) == (COMMIT, "v1")
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names
    assert not names & {"pytorch_model.bin", "original", "data", ".cache"}, "only what is needed"
    asked = len(hub.requests)
    job.prepare(**places)
    assert len(hub.requests) == asked, "a second run, and every later stage, asks nobody"
    assert hub.tokens == {None}


REFUSED = {
    "no repository": ("hf://nobody/nothing", None, r"knows no model nobody/nothing, or it is private", "NotFound"),
    "no revision": ("hf://acme/base", "v9", r"acme/base has no revision 'v9'", "NotFound"),
    "gated": ("hf://acme/gated", None, r"acme/gated .* asks for an approved account, and no HF_TOKEN was given", "MissingCredential"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_refuses_is_said_in_one_sentence(job, hub, name):
    uri, revision, words, code = REFUSED[name]
    model = {"uri": uri, "endpoint": hub.endpoint, **({"revision": revision} if revision else {})}
    with pytest.raises(BadInput, match=rf"spec\.model\.uri: .*{words}") as caught:
        job.prepare(job.write("rows.jsonl", [{"text": "a"}]), model=model)
    assert caught.value.cause.code == code
    assert "\n" not in str(caught.value)


def test_a_token_is_sent_and_never_shown(job, hub, monkeypatch):
    uri = job.write("rows.jsonl", [{"text": f"hello {n}"} for n in range(9)])
    model = {"uri": "hf://acme/gated", "endpoint": hub.endpoint}
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_secret")
    with pytest.raises(BadInput, match="the given HF_TOKEN has no access") as caught:
        job.prepare(uri, model=model)
    assert "hf_wrong_secret" not in str(caught.value.cause)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    job.prepare(uri, model=model)
    assert "hf_good" not in (job.config(uri).layout.prepared / "manifest.json").read_text()


def test_a_hub_that_breaks_down_is_retriable_and_leaves_nothing_half(job, hub):
    uri = job.write("rows.jsonl", [{"text": f"hello {n}"} for n in range(9)])
    model = {"uri": "hf://acme/base", "endpoint": hub.endpoint}
    hub.broken_after = 1
    with pytest.raises(StageError, match="could not be downloaded from") as caught:
        job.prepare(uri, model=model)
    assert not isinstance(caught.value, BadInput)
    assert caught.value.cause.code == source.HUB_UNREACHABLE
    config = job.config(uri, model=model)
    assert not [path for path in (config.layout.root / "downloads").iterdir() if not path.name.startswith(".")]
    with pytest.raises(StageError, match="was not downloaded by the prepare stage"):
        source.local(config.spec.model, config, field="spec.model.uri")
    hub.broken_after = None
    job.prepare(uri, model=model)


def test_a_hub_that_is_not_there(job, hub):
    hub.close()
    with pytest.raises(StageError, match=r"could not be downloaded from http://127\.0\.0\.1") as caught:
        job.prepare(job.write("rows.jsonl", [{"text": "a"}]), model={"uri": "hf://acme/base", "endpoint": hub.endpoint})
    assert "network policy" in caught.value.cause.remedy
