"""https://: a real server with TLS, which redirects, cuts, refuses, lies and changes."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_api.contract import secret_prefix
from finetune_trainer import sources
from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.sources import network, room, transfer, web

from tests.unit.sources.web_server import Page, WebServer, write_certificate

ROWS = b'{"text": "hello"}\n' * 100_000
BUNDLE = {"caBundleRef": {"name": "company"}}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    write_certificate(path)
    return path


@pytest.fixture
def server(certificate, tmp_path, monkeypatch) -> Iterator[WebServer]:
    (tmp_path / "ca" / "company").mkdir(parents=True)
    (tmp_path / "ca" / "company" / "ca.crt").write_bytes(
        certificate.read_bytes().partition(b"-----BEGIN CERT")[2].join([b"-----BEGIN CERT", b""])
    )
    monkeypatch.setattr(network, "CA_BUNDLES", str(tmp_path / "ca"))
    server = WebServer(certificate)
    server.pages["/rows.jsonl"] = Page(ROWS)
    yield server
    server.close()


def at(server: WebServer, path: str = "/rows.jsonl", **more: object) -> dict[str, object]:
    return {"uri": f"{server.url}{path}", **BUNDLE, **more}


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_file_is_downloaded_once_and_pinned_to_its_content(workspace, server):
    place = at(server)
    path = workspace.fetch(place)
    assert (path.name, path.read_bytes()) == ("rows.jsonl", ROWS)
    assert workspace.pinned(place) == [sha(ROWS)]
    server.pages["/rows.jsonl"] = Page(b'{"text": "new"}\n')
    asked = len(server.requests)
    assert workspace.fetch(place).read_bytes() == ROWS, "this run has seen the old content"
    assert len(server.requests) == asked
    assert workspace.fetch(place, run="second").read_bytes() == b'{"text": "new"}\n'


def test_a_run_whose_content_is_gone_for_good_is_told_so(workspace, server):
    workspace.fetch(at(server))
    workspace.cache.rename(workspace.cache.with_name("elsewhere"))
    server.pages["/rows.jsonl"] = Page(b"{}")
    with pytest.raises(BadInput, match=rf"was {sha(ROWS)} when this run saw it first, and is {sha(b'{}')} now"):
        workspace.fetch(at(server))


def test_jobs_share_a_file_that_has_not_changed(workspace, server):
    assert workspace.fetch(at(server)) == workspace.fetch(at(server), run="second")
    bodies = [request for request in server.asked("/rows.jsonl") if "range" not in request.headers]
    assert len(bodies) == 1


def test_without_a_sign_of_change_nothing_is_shared(workspace, server):
    server.pages["/rows.jsonl"] = Page(ROWS, tagged=False)
    assert workspace.fetch(at(server)) != workspace.fetch(at(server), run="second")


def test_the_revision_is_the_digest_of_the_content(workspace, server):
    workspace.fetch(at(server, revision=sha(ROWS)))
    server.close()
    workspace.fetch(at(server, revision=sha(ROWS)), run="second")  # known content needs no server


CUTS = {
    "goes on": Page(ROWS, cut=600_000),
    "goes on from the beginning where there are no ranges": Page(ROWS, cut=None, ranges=False),
    "without a tag": Page(ROWS, cut=600_000, tagged=False),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_body_that_is_cut_goes_on(workspace, server, name):
    server.pages["/rows.jsonl"] = CUTS[name]
    assert workspace.fetch(at(server)).read_bytes() == ROWS


def test_a_part_that_was_left_goes_on_in_the_next_attempt(workspace, server, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    monkeypatch.setattr(transfer, "ENOUGH_BYTES", 1 << 30)
    server.pages["/rows.jsonl"] = Page(ROWS, cut=600_000)
    with pytest.raises(
        StageError, match=r"could not be downloaded from 127.* after 600000 of 1800000 bytes|Incomplete"
    ):
        workspace.fetch(at(server))
    server.pages["/rows.jsonl"].cut = None
    assert workspace.fetch(at(server)).read_bytes() == ROWS
    assert server.requests[-2].headers["range"] == "bytes=600000-"


def test_a_file_that_changes_while_it_is_read_is_read_again_whole(workspace, server):
    new = ROWS.replace(b"hello", b"howdy")

    def answer(request):
        if (
            len([r for r in server.requests if "range" not in r.headers]) == 1
            and server.pages["/rows.jsonl"].body == ROWS
        ):
            server.pages["/rows.jsonl"] = Page(new)
            return Page(ROWS, cut=600_000)
        return None

    server.answer = answer
    assert workspace.fetch(at(server)).read_bytes() == new


def test_a_server_that_gives_next_to_nothing_is_given_up(workspace, server, monkeypatch):
    server.pages["/rows.jsonl"] = Page(ROWS, cut=10)
    with pytest.raises(StageError, match="could not be downloaded from") as caught:
        workspace.fetch(at(server))
    assert (type(caught.value), caught.value.cause.code) == (StageError, sources.SOURCE_UNREACHABLE)
    assert len(server.requests) < 10
    monkeypatch.setattr(transfer, "SLOW_S", 0.0)
    monkeypatch.setattr(transfer, "SLOWEST", 1 << 60)
    monkeypatch.setattr(transfer, "TRIES", 1)
    monkeypatch.setattr(transfer, "ENOUGH_BYTES", 1 << 30)
    server.pages["/rows.jsonl"] = Page(ROWS * 2)
    with pytest.raises(StageError, match=r"only \d+ bytes came"):
        workspace.fetch(at(server))


def test_a_server_that_does_not_answer_is_given_up(workspace, server, monkeypatch):
    monkeypatch.setattr(network, "READ_S", 0.05)
    monkeypatch.setattr(transfer, "TRIES", 2)
    server.answer = lambda request: time.sleep(0.3)
    with pytest.raises(StageError, match="timed out"):
        workspace.fetch(at(server))


REFUSED = {
    "absent": (Page(status=404), r"does not exist", "NotFound"),
    "gone": (Page(status=410), r"does not exist", "NotFound"),
    "unauthorised": (Page(status=401), r"may not be read without credentials", "MissingCredential"),
    "forbidden": (Page(status=403), r"may not be read without credentials", "MissingCredential"),
    "teapot": (Page(status=418), r"answers with status 418", "NotFound"),
    "metadata": (Page(status=302, headers={"Location": "http://169.254.169.254/latest"}), r"from https to http", "NotFound"),
    "metadata by TLS": (Page(status=302, headers={"Location": "https://169.254.169.254/latest"}), r"leads to 169\.254\.169\.254, an address of cloud metadata", "InvalidSpec"),
    "unspecified": (Page(status=302, headers={"Location": "https://0.0.0.0/x"}), r"leads to 0\.0\.0\.0, no address of a server", "InvalidSpec"),
    "multicast": (Page(status=307, headers={"Location": "https://[ff02::1]/x"}), r"leads to ff02::1, a multicast address", "InvalidSpec"),
    "file": (Page(status=302, headers={"Location": "file:///etc/passwd"}), r"redirects to file, which is not followed", "NotFound"),
    "circle": (Page(status=302, headers={"Location": "/rows.jsonl"}), r"more than 5 redirects", "NotFound"),
    "packed": (Page(ROWS, headers={"Content-Encoding": "gzip"}, ranges=False), r"compresses its answer \(gzip\)", "NotFound"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_server_answers_is_refused_in_one_sentence(workspace, server, name):
    page, words, code = REFUSED[name]
    server.pages["/rows.jsonl"] = page
    with pytest.raises(BadInput, match=rf"spec\.data\.train\[0\]\.uri: .*{words}") as caught:
        workspace.fetch(at(server))
    assert caught.value.cause.code == code
    assert "\n" not in str(caught.value)


MANIFESTS = {
    "another revision": ("/rows.jsonl", {"revision": f"sha256:{0:064}"}, rf"is {sha(ROWS)}, and not the revision sha256:000"),
    "a branch": ("/rows.jsonl", {"revision": "main"}, r"revision: 'main' is none for https://, which takes sha256:HEX"),
    "an endpoint": ("/rows.jsonl", {"endpoint": "https://mirror"}, r"endpoint is no use for https://"),
    "another kind of file": ("/weights.bin", {}, r"holds no file that can be used .*it holds weights.bin"),
    "a name that climbs": ("/%2e%2e%2fup.jsonl", {}, r"holds \.\./up.jsonl, a name that leads out"),
    "no secret": ("/rows.jsonl", {"secretRef": {"name": "web"}}, r"Secret web gives no HTTPS_TOKEN, or HTTPS_USERNAME and HTTPS_PASSWORD"),
    "no bundle": ("/rows.jsonl", {"caBundleRef": {"name": "other"}}, r"ConfigMap other of its caBundleRef is not mounted here"),
    "no key": ("/rows.jsonl", {"caBundleRef": {"name": "company", "key": "x"}}, r"has no readable key x"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_a_manifest_says_is_refused_in_one_sentence(workspace, server, name):
    path, more, words = MANIFESTS[name]
    server.pages[path] = Page(ROWS)
    with pytest.raises(BadInput, match=words):
        workspace.fetch(at(server, path, **more))


def test_certificates(workspace, server, tmp_path):
    with pytest.raises(BadInput, match=r"certificate of 127\.0\.0\.1:\d+ is not trusted here \(self-signed") as caught:
        workspace.fetch({"uri": f"{server.url}/rows.jsonl"})
    assert "caBundleRef" in caught.value.cause.remedy
    write_certificate(tmp_path / "old.pem", days=-1)
    (tmp_path / "ca" / "company" / "ca.crt").write_bytes((tmp_path / "old.pem").read_bytes())
    old = WebServer(tmp_path / "old.pem")
    with pytest.raises(BadInput, match=r"not trusted here \(certificate has expired\)"):
        workspace.fetch(at(old))
    old.close()
    (tmp_path / "ca" / "company" / "ca.crt").write_text("no PEM")
    with pytest.raises(BadInput, match="holds no certificates"):
        workspace.fetch(at(server))


def test_credentials_stay_with_their_server_and_out_of_every_message(workspace, server, certificate, monkeypatch):
    other = WebServer(certificate)
    other.pages["/rows.jsonl"] = Page(status=500)
    server.pages["/rows.jsonl"] = Page(
        status=302, headers={"Location": f"{other.url}/rows.jsonl?signature=s3cret-sign"}
    )
    monkeypatch.setattr(transfer, "TRIES", 1)
    for keys, sent in (
        ({"HTTPS_TOKEN": "s3cret-token"}, "Bearer s3cret-token"),
        ({"HTTPS_USERNAME": "me", "HTTPS_PASSWORD": "s3cret-pass"}, "Basic bWU6czNjcmV0LXBhc3M="),
    ):
        for key, value in keys.items():
            monkeypatch.setenv(secret_prefix("web") + key, value)
        with pytest.raises(StageError) as caught:
            workspace.fetch(at(server, secretRef={"name": "web"}))
        assert server.requests[-1].headers["authorization"] == sent
        assert "authorization" not in other.requests[-1].headers
        assert "s3cret" not in f"{caught.value}{caught.value.cause}"
        assert caught.value.__suppress_context__
        for key in keys:
            monkeypatch.delenv(secret_prefix("web") + key)
    other.close()


def test_no_room(workspace, server, monkeypatch):
    monkeypatch.setattr(room, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(
        BadInput, match=r"pvc://scratch has 0\.0 MiB free for downloads, but https.* needs 1\.7 MiB"
    ) as caught:
        workspace.fetch(at(server))
    assert caught.value.cause.code == "StorageFull"


def packed(**members: bytes | str) -> bytes:
    """A tar.gz; text is the target of a symbolic link."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return raw.getvalue()


def test_an_archive_is_a_models_folder(workspace, server):
    body = packed(**{"base/config.json": b"{}", "base/pytorch_model.bin": b"pickle", "base/deep/x.json": b"{}"})
    server.pages["/base.tar.gz"] = Page(body)
    place = at(server, "/base.tar.gz")
    folder = workspace.fetch(place, files=sources.MODEL_FILES)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert workspace.pinned(place) == [sha(body)]


ARCHIVES = {
    "climbs": (packed(**{"../up.json": b"{}"}), r"holds \.\./up.json, a name that leads out"),
    "absolute": (packed(**{"/etc/up.json": b"{}"}), r"holds /etc/up.json, a name that leads out"),
    "link": (packed(**{"up.json": "../../../secret"}), r"holds up.json, which is a link to ../../../secret"),
    "cut": (packed(**{"a.json": bytes(100_000)})[:60], r"is not a whole tar archive"),
    "none": (b"hello", r"is not a whole tar archive"),
    "nothing in it": (packed(**{"a.bin": b"x"}), r"holds no file that can be used .*it holds a.bin"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_refused(workspace, server, name):
    body, words = ARCHIVES[name]
    server.pages["/base.tar.gz"] = Page(body)
    with pytest.raises(BadInput, match=words):
        workspace.fetch(at(server, "/base.tar.gz"), files=sources.MODEL_FILES)
    assert not list(workspace.claims.rglob("up.json"))


def test_an_archive_that_is_endless_when_it_is_unpacked(workspace, server, monkeypatch):
    server.pages["/base.tar.gz"] = Page(packed(**{"a.bin": bytes(40 << 20), "config.json": b"{}"}))
    free = 30 << 20
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free + room.MARGIN_BYTES}))
    with pytest.raises(BadInput, match=r"has 30\.0 MiB free for downloads, but .* needs 40\.0 MiB more"):
        workspace.fetch(at(server, "/base.tar.gz"), files=sources.MODEL_FILES)


def test_through_a_proxy_the_name_is_checked_as_well_as_it_can_be(workspace, server, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"leads to 169\.254\.169\.254"):
        workspace.fetch({"uri": "https://169.254.169.254/rows.jsonl"})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert workspace.fetch(at(server)).read_bytes() == ROWS
    assert web.plain("https://me:pass@host/a?b=c") == "https://host/a"
