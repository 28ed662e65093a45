"""gs://: the few calls of the JSON API that downloads need, answered by a small server of ours; the real client asks it."""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.parse
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from finetune_api.contract import secret_prefix
from finetune_trainer.errors import BadInput
from finetune_trainer.sources import objects

from tests.unit.sources.web_server import Page, Request, WebServer

ROWS = b'{"text": "hello"}\n' * 30_000
NOT_FOUND = Page(json.dumps({"error": {"code": 404, "message": "Not Found"}}).encode(), 404)


class Store(WebServer):
    """Bucket `team`; `private` wants the access token that the token service at /token gives for a signed assertion."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.generation = 1
        self.answer = self._answer

    def _answer(self, request: Request) -> Page | None:
        parts = urllib.parse.urlsplit(request.path)
        if "/b/moved" in parts.path:
            return Page(status=302, headers={"Location": "/elsewhere"})
        if "/b/private/" in parts.path and request.headers.get("authorization") != "Bearer ya29.good":
            return Page(json.dumps({"error": {"code": 401, "message": "Anonymous caller"}}).encode(), 401)
        if "/b/team" not in parts.path and "/b/private" not in parts.path:
            return NOT_FOUND
        name = urllib.parse.unquote(parts.path.partition("/o/")[2])
        if not name:
            query = dict(urllib.parse.parse_qsl(parts.query))
            prefix, mark = query.get("prefix", ""), query.get("delimiter")
            found = [key for key in self.objects if key.startswith(prefix)]
            inner = {key for key in found if mark and mark in key[len(prefix) :]}
            folders = {prefix + key[len(prefix) :].partition(mark or "/")[0] + "/" for key in inner}
            return _json(
                {"items": [self._about(key) for key in found if key not in inner], "prefixes": sorted(folders)}
            )
        if name not in self.objects:
            return NOT_FOUND
        return Page(self.objects[name]) if "alt=media" in parts.query else _json(self._about(name))

    def _about(self, name: str) -> dict[str, str]:
        data = self.objects[name]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        return {
            "name": name,
            "bucket": "team",
            "size": str(len(data)),
            "md5Hash": md5,
            "generation": str(self.generation),
        }


def _json(value: object) -> Page:
    return Page(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.close()


def test_an_object_and_a_prefix(workspace, store, monkeypatch):
    monkeypatch.setattr(objects, "PIECE_BYTES", 100_000)
    store.objects = {"rows.jsonl": ROWS, "set/a.jsonl": b"a", "set/deep/b.parquet": b"b", "set/notes.md": b"c"}
    one = {"uri": "gs://team/rows.jsonl", "endpoint": store.url}
    path = workspace.fetch(one)
    assert path.read_bytes() == ROWS
    assert workspace.pinned(one) == [f"sha256:{hashlib.sha256(ROWS).hexdigest()}"]
    store.objects["rows.jsonl"], store.generation = b"new", 2
    assert workspace.fetch(one) == path
    assert workspace.fetch(one, run="second").read_bytes() == b"new"
    folder = workspace.fetch({"uri": "gs://team/set", "endpoint": store.url})
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {"a.jsonl", "deep/b.parquet"}


REFUSED = {
    "no bucket": ("gs://nobody/rows.jsonl", r"does not exist", "NotFound"),
    "no key": ("gs://team/rows.jsonl", r"does not exist", "NotFound"),
    "metadata": ("gs://team/rows.jsonl", r"leads to 169\.254\.169\.254", "InvalidSpec"),
    "redirect": ("gs://moved/rows.jsonl", r"the store redirects, which it has no reason to", "NotFound"),
    "private": ("gs://private/rows.jsonl", r"may not be read without credentials", "MissingCredential"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_said_in_one_sentence(workspace, store, name):
    uri, words, code = REFUSED[name]
    with pytest.raises(BadInput, match=words) as caught:
        workspace.fetch({"uri": uri, "endpoint": "http://169.254.169.254" if name == "metadata" else store.url})
    assert caught.value.cause.code == code


def test_a_service_account_from_the_secret(workspace, store, monkeypatch):
    tokens = WebServer()
    tokens.answer = lambda request: _json({"access_token": "ya29.good", "expires_in": 3600, "token_type": "Bearer"})
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "client_email": "me@team",
        "private_key": key.decode(),
        "token_uri": f"{tokens.url}/token",
    }
    store.objects = {"rows.jsonl": ROWS}
    place = {"uri": "gs://private/rows.jsonl", "endpoint": store.url, "secretRef": {"name": "google"}}
    variable = f"{secret_prefix('google')}GOOGLE_CREDENTIALS"
    for bad, words in (
        ("nonsense", "is not the JSON key"),
        (json.dumps(account | {"private_key": "x"}), "is not the whole JSON key"),
    ):
        monkeypatch.setenv(variable, bad)
        with pytest.raises(BadInput, match=words):
            workspace.fetch(place)
    monkeypatch.setenv(variable, json.dumps(account))
    assert workspace.fetch(place).read_bytes() == ROWS
    tokens.close()
