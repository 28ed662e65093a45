"""s3://: a real S3 server (moto's) on loopback, asked by the real client."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_api.contract import secret_prefix
from finetune_trainer import sources
from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.sources import objects, transfer

ROWS = b'{"text": "hello"}\n' * 60_000


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server) -> Any:
    """Bucket `team`, whose objects all may read; `private`, whose objects the accounts of the store alone may."""
    import boto3

    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).close()
    client = boto3.client(
        "s3", endpoint_url=server, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    for name in ("team", "private"):
        client.create_bucket(Bucket=name)

    def put(key: str, body: bytes, bucket: str = "team") -> None:
        client.put_object(Bucket=bucket, Key=key, Body=body, ACL="public-read" if bucket == "team" else "private")

    return SimpleNamespace(url=server, put=put, client=client)


def at(bucket: Any, key: str, **more: Any) -> dict[str, Any]:
    return {"uri": f"s3://{key}", "endpoint": bucket.url, **more}


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_an_object_is_pinned_to_its_content_and_shared_while_it_stays(workspace, bucket, monkeypatch):
    monkeypatch.setattr(objects, "PIECE_BYTES", 100_000)
    bucket.put("rows.jsonl", ROWS)
    place = at(bucket, "team/rows.jsonl")
    path = workspace.fetch(place)
    assert (path.name, path.read_bytes()) == ("rows.jsonl", ROWS)
    assert workspace.pinned(place) == [sha(ROWS)]
    assert workspace.fetch(place, run="second") == path
    bucket.put("rows.jsonl", b'{"text": "new"}\n')
    assert workspace.fetch(place) == workspace.local(place) == path, "this run has seen the old content"
    assert workspace.fetch(place, run="third").read_bytes() == b'{"text": "new"}\n'
    known = place | {"revision": sha(ROWS)}
    assert workspace.fetch(known, run="fourth") == path


def test_a_prefix_is_a_folder(workspace, bucket):
    for key in ("set/a.jsonl", "set/deep/b.jsonl.gz", "set/notes.md", "set2/c.jsonl"):
        bucket.put(key, key.encode())
    bucket.put("set/", b"")
    folder = workspace.fetch(at(bucket, "team/set"))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {"a.jsonl", "deep/b.jsonl.gz"}
    lines = "".join(
        f"{hashlib.sha256(f'set/{name}'.encode()).hexdigest()}  {name}\n" for name in ("a.jsonl", "deep/b.jsonl.gz")
    )
    assert workspace.pinned(at(bucket, "team/set")) == [sha(lines.encode())]


def test_a_models_folder_needs_no_subfolders(workspace, bucket):
    for key in ("base/config.json", "base/model.safetensors", "base/original/model.safetensors"):
        bucket.put(key, key.encode())
    folder = workspace.fetch(at(bucket, "team/base/"), files=sources.MODEL_FILES)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_what_came_before_a_crash_does_not_come_again(workspace, bucket, monkeypatch):
    monkeypatch.setattr(objects, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(objects, "AHEAD", 1)
    monkeypatch.setattr(transfer, "TRIES", 1)
    monkeypatch.setattr(transfer, "ENOUGH_BYTES", 1 << 30)
    bucket.put("rows.jsonl", ROWS)
    piece, starts, last = objects.Objects._piece, [], 500_000

    def cut(self, path, start, end):
        starts.append(start)
        if start >= last:
            raise ConnectionResetError("cut")
        return piece(self, path, start, end)

    monkeypatch.setattr(objects.Objects, "_piece", cut)
    with pytest.raises(StageError, match=r"could not be downloaded from http.*: cut"):
        workspace.fetch(at(bucket, "team/rows.jsonl"))
    last, begun = 1 << 30, len(starts)
    assert workspace.fetch(at(bucket, "team/rows.jsonl")).read_bytes() == ROWS
    assert starts[begun] == 500_000


def test_an_object_that_changes_while_it_is_read_is_read_again_whole(workspace, bucket, monkeypatch):
    monkeypatch.setattr(objects, "PIECE_BYTES", 400_000)
    bucket.put("rows.jsonl", ROWS)
    new = ROWS.replace(b"hello", b"howdy")
    piece, asked = objects.Objects._piece, []

    def change(self, path, start, end):
        if start and not asked:
            asked.append(start)
            bucket.put("rows.jsonl", new)
        return piece(self, path, start, end)

    monkeypatch.setattr(objects.Objects, "_piece", change)
    assert workspace.fetch(at(bucket, "team/rows.jsonl")).read_bytes() == new


REFUSED = {
    "no bucket": ("nobody/rows.jsonl", {}, r"does not exist: there is no bucket nobody on http", "NotFound"),
    "no key": ("team/rows.jsonl", {}, r"does not exist: bucket team has no such key on http", "NotFound"),
    "private": ("private/rows.jsonl", {}, r"may not be read without credentials.*", "MissingCredential"),
    "no such files": ("team/set", {}, r"holds no file that can be used .*it holds notes.md", "NotFound"),
    "climbs": ("team/evil", {}, r"holds \.\./\.\./up.jsonl, a name that leads out", "InvalidData"),
    "file and folder": ("team/both", {}, r"holds a.jsonl twice", "InvalidData"),
    "another revision": ("team/one.jsonl", {"revision": f"sha256:{0:064}"}, r"is sha256:\w+, and not the revision sha256:0", "NotFound"),
    "half a secret": ("team/one.jsonl", {"secretRef": {"name": "half"}}, r"Secret half gives no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "MissingCredential"),
    "metadata": ("team/one.jsonl", {"endpoint": "http://169.254.169.254"}, r"leads to 169\.254\.169\.254", "InvalidSpec"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_said_in_one_sentence(workspace, bucket, name, monkeypatch):
    key, more, words, code = REFUSED[name]
    monkeypatch.setenv(f"{secret_prefix('half')}AWS_ACCESS_KEY_ID", "a")
    for there in ("set/notes.md", "evil/../../up.jsonl", "both/a.jsonl", "both/a.jsonl/b.jsonl", "one.jsonl"):
        bucket.put(there, b"x")
    bucket.put("rows.jsonl", b"x", "private")
    with pytest.raises(BadInput, match=rf"spec\.data\.train\[0\]\.uri: s?3?.*{words}") as caught:
        workspace.fetch(at(bucket, key, **more))
    assert caught.value.cause.code == code
    assert "\n" not in str(caught.value)
    assert not list(workspace.claims.rglob("up.jsonl"))


def test_credentials_come_from_the_secret_alone(workspace, bucket, monkeypatch, tmp_path, caplog):
    caplog.set_level("DEBUG")
    bucket.put("rows.jsonl", ROWS, "private")
    (tmp_path / "home" / ".aws").mkdir(parents=True)
    (tmp_path / "home" / ".aws" / "credentials").write_text("[default]\naws_access_key_id=x\naws_secret_access_key=y\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="without credentials"):
        workspace.fetch(at(bucket, "private/rows.jsonl"))
    prefix = secret_prefix("store")
    secret = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "s3cret-key",
        "AWS_SESSION_TOKEN": "s3cret-session",
    }
    for key, value in secret.items():
        monkeypatch.setenv(prefix + key, value)
    place = at(bucket, "private/rows.jsonl", secretRef={"name": "store"})
    assert workspace.fetch(place).read_bytes() == ROWS
    for key in secret:
        monkeypatch.delenv(prefix + key)
    assert workspace.local(place).read_bytes() == ROWS
    assert "s3cret-key" not in caplog.text
