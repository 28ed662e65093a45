"""Downloads from a hub: a real HTTP server on loopback speaks its protocol, the real client asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from finetune_api.contract import secret_prefix
from finetune_trainer import sealed, sources
from finetune_trainer.errors import BadInput, StageError

from tests.unit.sources.hub_server import COMMIT, Hub

ROWS = b"".join(json.dumps({"prompt": f"hello {n}", "completion": "fox"}).encode() + b"\n" for n in range(20))
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 5000,
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": b"x",
    "data/train.jsonl": ROWS,
    "data/deep/more.jsonl": ROWS,
    "data/notes.md": b"# notes",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(dict(FILES))
    yield hub
    hub.close()


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_downloaded_once_at_one_commit(workspace, hub):
    model = {"uri": "hf://acme/base", "revision": "v1", "endpoint": hub.url}
    folder = workspace.fetch(model, files=sources.MODEL_FILES)
    assert names(folder) == {"config.json", "model.safetensors"}, "only what is needed"
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert workspace.pinned(model) == [COMMIT]
    sealed.verify(folder.parent)
    asked = len(hub.requests)
    assert workspace.fetch(model, files=sources.MODEL_FILES) == workspace.local(model) == folder
    assert len(hub.requests) == asked, "a second attempt, and every later stage, asks nobody"
    assert hub.tokens == {None}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://datasets/acme/base/data", {"train.jsonl", "deep/more.jsonl"}),
        ("hf://datasets/acme/base/data/train.jsonl", None),
        ("hf://datasets/acme/base", {"config.json", "data/train.jsonl", "data/deep/more.jsonl"}),
    ],
)
def test_data_is_a_file_or_a_folder_with_its_subfolders(workspace, hub, uri, expected):
    path = workspace.fetch({"uri": uri, "endpoint": hub.url})
    assert path.read_bytes() == ROWS if expected is None else names(path) == expected


def test_a_run_stays_at_its_commit_and_the_next_sees_what_is_new(workspace, hub):
    data = {"uri": "hf://datasets/acme/base/data/train.jsonl", "endpoint": hub.url}
    workspace.fetch(data)
    hub.commit, hub.files = "f" * 40, FILES | {"data/train.jsonl": b'{"text": "new"}\n'}
    assert workspace.fetch(data).read_bytes() == ROWS
    assert workspace.fetch(data, run="second").read_bytes() == b'{"text": "new"}\n'
    assert (workspace.pinned(data), workspace.pinned(data, run="second")) == ([COMMIT], ["f" * 40])


def test_jobs_share_what_is_the_same_and_a_known_commit_needs_no_hub(workspace, hub):
    first = workspace.fetch({"uri": "hf://acme/base", "endpoint": hub.url}, files=sources.MODEL_FILES)
    served = sum("/resolve/" in request.path for request in hub.requests)
    other = {"uri": "hf://acme/base", "endpoint": hub.url, "revision": "v1"}
    assert workspace.fetch(other, run="second", files=sources.MODEL_FILES) == first
    assert sum("/resolve/" in request.path for request in hub.requests) == served
    hub.close()
    known = other | {"revision": COMMIT}
    assert workspace.fetch(known, run="third", files=sources.MODEL_FILES) == first


REFUSED = {
    "no repository": ("hf://nobody/nothing", {}, r"knows no model nobody/nothing, or it is private", "NotFound"),
    "no revision": ("hf://acme/base", {"revision": "v9"}, r"acme/base has no revision 'v9'", "NotFound"),
    "gated": ("hf://acme/gated", {}, r"acme/gated .* asks for an approved account, and no HF_TOKEN was given", "MissingCredential"),
    "no folder": ("hf://acme/base/weights", {}, r"does not exist in that repository; it holds config.json, data/, ", "NotFound"),
    "no such files": ("hf://acme/base/original", {}, r"holds no file that can be used .*; it holds model.safetensors", "NotFound"),
    "metadata": ("hf://acme/base", {"endpoint": "http://169.254.169.254"}, r"leads to 169\.254\.169\.254, an address of cloud metadata", "InvalidSpec"),
    "no secret": ("hf://acme/base", {"secretRef": {"name": "hub"}}, r"Secret hub gives no HF_TOKEN", "MissingCredential"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_refuses_is_said_in_one_sentence(workspace, hub, name):
    uri, more, words, code = REFUSED[name]
    with pytest.raises(BadInput, match=rf"spec\.data\.train\[0\]\.uri: .*{words}") as caught:
        workspace.fetch({"uri": uri, "endpoint": hub.url, **more}, files=("*.jsonl",))
    assert caught.value.cause.code == code
    assert "\n" not in str(caught.value)


def test_a_token_comes_from_the_secret_alone_and_is_never_shown(workspace, hub, monkeypatch):
    model = {"uri": "hf://acme/gated", "endpoint": hub.url}
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with pytest.raises(BadInput, match="no HF_TOKEN was given"):
        workspace.fetch(model, files=sources.MODEL_FILES)
    named = model | {"secretRef": {"name": "hub"}}
    monkeypatch.setenv(f"{secret_prefix('hub')}HF_TOKEN", "hf_wrong_secret\n")
    with pytest.raises(BadInput, match="the given HF_TOKEN has no access") as caught:
        workspace.fetch(named, files=sources.MODEL_FILES)
    assert "hf_wrong_secret" not in str(caught.value.cause)
    assert hub.tokens == {None, "Bearer hf_wrong_secret"}
    monkeypatch.delenv(f"{secret_prefix('hub')}HF_TOKEN")
    workspace.fetch(named, files=sources.MODEL_FILES)  # a local run
    assert not any(b"hf_good" in path.read_bytes() for path in workspace.claims.rglob("*.json"))


def test_a_hub_that_breaks_down_is_retriable_and_what_came_is_kept(workspace, hub):
    model = {"uri": "hf://acme/base", "endpoint": hub.url}
    hub.broken_after = 1
    with pytest.raises(StageError, match="could not be downloaded from") as caught:
        workspace.fetch(model, files=sources.MODEL_FILES)
    assert not isinstance(caught.value, BadInput)
    assert caught.value.cause.code == sources.HUB_UNREACHABLE
    assert not [path for path in workspace.cache.glob("*/*") if not path.name.startswith(".")]
    with pytest.raises(StageError, match="was not downloaded by the prepare stage"):
        workspace.local(model)
    hub.broken_after, served = None, [request.path for request in hub.requests]
    workspace.fetch(model, files=sources.MODEL_FILES)
    again = [request.path for request in hub.requests][len(served) :]
    assert sum("/resolve/" in path for path in again) == 1, "the file that was whole does not come again"


def test_a_file_that_is_not_what_the_hub_says_is_refused(workspace, hub):
    hub.entry = lambda name, data: Hub.entry(hub, name, data[::-1])
    with pytest.raises(StageError, match="another checksum"):
        workspace.fetch({"uri": "hf://acme/base", "endpoint": hub.url}, files=sources.MODEL_FILES)


def test_a_name_that_climbs_out_is_refused(workspace, hub):
    hub.files["data/../../../up.jsonl"] = ROWS
    with pytest.raises(BadInput, match=r"holds data/../../../up.jsonl, a name that leads out of the download folder"):
        workspace.fetch({"uri": "hf://datasets/acme/base", "endpoint": hub.url})
    assert not list(workspace.claims.rglob("up.jsonl"))


def test_a_hub_that_is_not_there(workspace, hub):
    hub.close()
    with pytest.raises(StageError, match=r"could not be downloaded from http://127\.0\.0\.1") as caught:
        workspace.fetch({"uri": "hf://acme/base", "endpoint": hub.url}, files=sources.MODEL_FILES)
    assert "network policy" in caught.value.cause.remedy
