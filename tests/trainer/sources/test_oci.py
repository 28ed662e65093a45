"""oci://: the distribution project's registry on loopback, filled and asked by the real client."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import secret_prefix
from finetune_trainer import sources
from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.sources import transfer

from localcluster.errors import ClusterError
from localcluster.gobuild import REGISTRY, binary
from tests.unit.sources.web_server import Page, Request, WebServer

WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        program = binary(REGISTRY)
    except (ClusterError, OSError) as error:
        pytest.skip(f"the registry cannot be built here: {error}")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
        "http": {"addr": host},
    }
    (folder / "registry.yaml").write_text(json.dumps(config))
    quiet = os.environ | {"OTEL_TRACES_EXPORTER": "none"}
    process = subprocess.Popen([program, "serve", folder / "registry.yaml"], stderr=subprocess.DEVNULL, env=quiet)
    try:
        _wait(f"http://{host}/v2/")
        yield f"http://{host}"
    finally:
        process.kill()
        process.wait()


def _wait(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"no registry answers at {url}")


class Gate(WebServer):
    """In front of the registry: asks for a password (by Basic), if there is one, and cuts blobs, if it is told."""

    def __init__(self, registry: str, password: str | None = None) -> None:
        super().__init__()
        self._registry, self._password = registry, password
        self.cut: int | None = None
        self.answer = self._forward

    def _forward(self, request: Request) -> Page:
        if self._password and request.headers.get("authorization") != f"Basic {_basic('me', self._password)}":
            return Page(status=401, headers={"Www-Authenticate": 'Basic realm="team"'})
        asked = urllib.request.Request(
            self._registry + request.path, headers={"Accept": request.headers.get("accept", "*/*")}
        )
        with urllib.request.urlopen(asked) as answer:
            body, kind = answer.read(), answer.headers["Content-Type"]
        return Page(body, headers={"Content-Type": kind}, cut=self.cut if "/blobs/" in request.path else None)


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def push(registry, tmp_path) -> Callable[..., str]:
    """push("name:tag", {"file": bytes}) -> digest of the manifest."""
    import oras.client

    def act(name: str, files: dict[str, bytes]) -> str:
        folder = tmp_path / name.replace(":", "-")
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        client = oras.client.OrasClient(insecure=True)
        target = f"{registry.removeprefix('http://')}/team/{name}"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            response = client.push(target, files=sorted({file.partition("/")[0] for file in files}))
        return response.headers["Docker-Content-Digest"]

    return act


def at(url: str, name: str, **more: Any) -> dict[str, Any]:
    return {"uri": f"oci://registry.example/team/{name}", "endpoint": url, **more}


def test_an_artifact_is_pinned_to_its_manifest_and_a_tag_may_move(workspace, registry, push):
    digest = push("base:v1", {"config.json": b"{}", "model.safetensors": WEIGHTS, "pytorch_model.bin": b"pickle"})
    model = at(registry, "base:v1")
    folder = workspace.fetch(model, files=sources.MODEL_FILES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
    }
    assert workspace.pinned(model) == [digest]
    moved = push("base:v1", {"config.json": b'{"a": 1}'})
    assert workspace.fetch(model, files=sources.MODEL_FILES) == workspace.local(model) == folder
    assert workspace.pinned(model) == [digest]
    new = workspace.fetch(model, run="second", files=sources.MODEL_FILES)
    assert (new / "config.json").read_bytes() == b'{"a": 1}'
    assert workspace.pinned(model, run="second") == [moved]
    by_digest = model | {"revision": digest}
    assert workspace.fetch(by_digest, run="third", files=sources.MODEL_FILES) == folder
    in_uri = at("http://127.0.0.1:9", f"base@{digest}")
    with pytest.raises(StageError, match="could not be downloaded"):
        workspace.fetch(in_uri, run="fourth", files=sources.MODEL_FILES)


def test_a_packed_folder_is_unpacked_and_its_name_does_not_count(workspace, registry, push):
    push("folder:v1", {"base/config.json": b"{}", "base/model.safetensors": WEIGHTS, "base/x.bin": b"pickle"})
    folder = workspace.fetch(at(registry, "folder:v1"), files=sources.MODEL_FILES)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_blob_goes_on_where_it_was_cut(workspace, registry, push, monkeypatch):
    push("cut:v1", {"rows.jsonl": WEIGHTS})
    monkeypatch.setattr(transfer, "TRIES", 1)
    monkeypatch.setattr(transfer, "ENOUGH_BYTES", 1 << 30)
    front = Gate(registry)
    front.cut = 300_000
    with pytest.raises(StageError, match="could not be downloaded"):
        workspace.fetch(at(front.url, "cut:v1"))
    front.cut = None
    folder = workspace.fetch(at(front.url, "cut:v1"))
    assert (folder / "rows.jsonl").read_bytes() == WEIGHTS
    assert front.requests[-1].headers["range"] == "bytes=300000-"
    front.close()


def test_a_password_comes_from_the_secret_alone(workspace, registry, push, monkeypatch, tmp_path, capfd):
    push("closed:v1", {"rows.jsonl": b"x"})
    gate = Gate(registry, "s3cret-pass")
    place, host = at(gate.url, "closed:v1"), gate.host
    (tmp_path / "home" / ".docker").mkdir(parents=True)
    auth = {"auths": {host: {"auth": _basic("me", "s3cret-pass")}}}
    (tmp_path / "home" / ".docker" / "config.json").write_text(json.dumps(auth))
    monkeypatch.setenv("ORAS_USER", "me")
    monkeypatch.setenv("ORAS_PASS", "s3cret-pass")
    with pytest.raises(BadInput, match="may not be read without credentials"):
        workspace.fetch(place)
    named = place | {"secretRef": {"name": "registry"}}
    monkeypatch.setenv(f"{secret_prefix('registry')}OCI_USERNAME", "me")
    monkeypatch.setenv(f"{secret_prefix('registry')}OCI_PASSWORD", "s3cret-wrong")
    with pytest.raises(BadInput, match="may not be read with the credentials in Secret registry") as caught:
        workspace.fetch(named)
    monkeypatch.setenv(f"{secret_prefix('registry')}OCI_PASSWORD", "s3cret-pass")
    workspace.fetch(named)
    gate.close()
    assert "s3cret" not in f"{caught.value.cause}{''.join(capfd.readouterr())}"


def test_a_token_service(workspace, monkeypatch):
    """As Docker Hub and others do: the registry sends us for a token, which a later request finds expired."""
    rows = b'{"text": "hello"}\n'
    digest = f"sha256:{hashlib.sha256(rows).hexdigest()}"
    layer = {"digest": digest, "size": len(rows), "annotations": {"org.opencontainers.image.title": "rows.jsonl"}}
    front, valid = WebServer(), ["one", "two", "three"]

    def answer(request: Request) -> Page:
        if request.path.startswith("/token"):
            given = request.headers.get("authorization") == f"Basic {_basic('me', 'pass')}"
            return Page(json.dumps({"token": valid[0]}).encode()) if given else Page(status=401)
        if request.headers.get("authorization") != f"Bearer {valid[0]}":
            challenge = f'Bearer realm="{front.url}/token",service="registry",scope="repository:team/x:pull"'
            return Page(status=401, headers={"Www-Authenticate": challenge})
        valid.pop(0)
        return Page(rows if "/blobs/" in request.path else json.dumps({"layers": [layer]}).encode())

    front.answer = answer
    place = at(front.url, "x:v1", secretRef={"name": "registry"})
    monkeypatch.setenv(f"{secret_prefix('registry')}OCI_USERNAME", "me")
    monkeypatch.setenv(f"{secret_prefix('registry')}OCI_PASSWORD", "wrong")
    with pytest.raises(BadInput, match="may not be read with the credentials"):
        workspace.fetch(place)
    monkeypatch.setenv(f"{secret_prefix('registry')}OCI_PASSWORD", "pass")
    assert (workspace.fetch(place) / "rows.jsonl").read_bytes() == rows
    front.close()


def _manifest(*layers: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "layers": list(layers), **more}).encode()


def _layer(title: str | None, digest: str = f"sha256:{0:064}") -> dict[str, Any]:
    return {"digest": digest, "size": 3, "annotations": {"org.opencontainers.image.title": title} if title else None}


REFUSED = {
    "no tag": (Page(status=404), {}, r"does not exist: http\S+ has no team/x with v1"),
    "an image": (Page(_manifest(_layer(None))), {}, r"is a container image, or an artifact whose layers name no files"),
    "an index": (Page(_manifest(manifests=[_layer(None), _layer(None)])), {}, r"is an index of 2 manifests"),
    "climbs": (Page(_manifest(_layer("../../up.jsonl"))), {}, r"holds \.\./\.\./up.jsonl, a name that leads out"),
    "absolute": (Page(_manifest(_layer("/etc/up.jsonl"))), {}, r"holds /etc/up.jsonl, a name that leads out"),
    "no such files": (Page(_manifest(_layer("a.bin"))), {}, r"holds no file that can be used .*it holds a.bin"),
    "no manifest": (Page(b"<html>"), {}, r"has a manifest that is none of OCI or Docker"),
    "odd layers": (Page(b'{"layers": [1]}'), {}, r"has a manifest that is none of OCI or Docker"),
    "another manifest": (Page(_manifest(_layer("a.jsonl"))), {"revision": f"sha256:{1:064}"}, r"gives another manifest for sha256:0"),
    "a digest of another kind": (Page(_manifest(_layer("a.jsonl", "md5:00"))), {}, r"a.jsonl has a digest of an unknown kind"),
    "metadata": (Page(status=307, headers={"Location": "http://169.254.169.254/v2"}), {}, r"leads to 169\.254\.169\.254"),
    "circle": (Page(status=307, headers={"Location": "/v2/team/x/manifests/v1"}), {}, r"is redirected to an address that cannot be followed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_said_in_one_sentence(workspace, name):
    page, more, words = REFUSED[name]
    server = WebServer()
    server.answer = lambda request: page
    with pytest.raises(BadInput, match=words) as caught:
        workspace.fetch(at(server.url, "x:v1", **more))
    assert "\n" not in str(caught.value)
    server.close()


def test_a_packed_folder_that_climbs_out(workspace, registry, tmp_path, monkeypatch):
    import oras.client

    (tmp_path / "evil").write_bytes(b"{}")
    with tarfile.open(tmp_path / "folder.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "evil", arcname="../../up.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.json").write_text(json.dumps({"folder.tar.gz": {"io.deis.oras.content.unpack": "true"}}))
    target = f"{registry.removeprefix('http://')}/team/evil:v1"
    oras.client.OrasClient(insecure=True).push(target, files=["folder.tar.gz"], annotation_file="notes.json")
    with pytest.raises(BadInput, match=r"holds \.\./\.\./up.json, a name that leads out"):
        workspace.fetch(at(registry, "evil:v1"), files=sources.MODEL_FILES)
    assert not list(Path(workspace.claims).rglob("up.json"))
