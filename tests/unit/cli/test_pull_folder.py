"""A pulled folder is whole and as it was published, or it is not there."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finetune_cli.errors import CliError
from finetune_cli.pull.folder import check_target, unpack
from finetune_cli.pull.pod import TAR
from hypothesis import given, settings
from hypothesis import strategies as st

FILES = {"adapter_model.safetensors": b"\x00\x01" * 4_000, "report.html": b"<html>", "sub/card.md": b"# Card\n"}


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def archive(files: dict[str, bytes]) -> bytes:
    """As the reading pod writes it: every name below `.`"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w|") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def chunks(data: bytes, size: int = 1000) -> Iterator[bytes]:
    return iter([data[at : at + size] for at in range(0, len(data), size)])


def published(files: dict[str, bytes]) -> tuple[bytes, str]:
    listed = {**files, "SHA256SUMS": sums(files)}
    return archive(listed), hashlib.sha256(listed["SHA256SUMS"]).hexdigest()


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 30_000))
def test_whatever_the_chunks_the_files_are_the_same(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    folder = tmp_path_factory.mktemp("pull") / "bot"
    data, digest = published(FILES)
    seen: list[int] = []
    fetched = unpack(chunks(data, size), folder, digest, seen.append)
    assert {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"
    } == FILES
    assert (fetched.files, sum(seen)) == (4, len(data))


def test_what_the_pod_sends_is_what_was_published(tmp_path: Path) -> None:
    """The program that runs in the pod, on a claim's root that holds more than the artifacts."""
    claim = tmp_path / "claim"
    for name, data in {
        **FILES,
        "SHA256SUMS": sums(FILES),
        "finetune.json": b"{}",
        "lost+found/x": b"",
        "other": b"x",
    }.items():
        (claim / name).parent.mkdir(parents=True, exist_ok=True)
        (claim / name).write_bytes(data)
    sent = subprocess.run([sys.executable, "-c", TAR, str(claim)], capture_output=True, check=True, timeout=60).stdout
    unpack(chunks(sent), tmp_path / "bot", None, lambda size: None)
    got = {str(path.relative_to(tmp_path / "bot")) for path in (tmp_path / "bot").rglob("*") if path.is_file()}
    assert got == FILES.keys() | {"SHA256SUMS", "finetune.json"}


def tampered(change: Callable[[dict[str, bytes]], None]) -> bytes:
    listed = {**FILES, "SHA256SUMS": sums(FILES)}
    change(listed)
    return archive(listed)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        pytest.param(published(FILES)[0][:5_000], "broke off", id="cut off"),
        pytest.param(b"no tar at all" * 100, "broke off", id="not an archive"),
        pytest.param(b"", "broke off", id="nothing"),
        pytest.param(tampered(lambda f: f.update({"report.html": b"<HTML>"})), "report.html does not match", id="changed"),
        pytest.param(tampered(lambda f: f.pop("report.html") and None), "report.html is listed", id="missing"),
        pytest.param(tampered(lambda f: f.update({"more": b""})), "more is among the artifacts but not listed", id="extra"),
        pytest.param(tampered(lambda f: f.pop("SHA256SUMS") and None), "no SHA256SUMS", id="no checksums"),
        pytest.param(published({"report.html": b"other"})[0], "not the one that was published", id="another publication"),
        pytest.param(tampered(lambda f: f.update({"../evil": b"x"})), "broke off", id="outside"),
    ],
)  # fmt: skip
def test_anything_else_leaves_nothing(tmp_path: Path, data: bytes, complaint: str) -> None:
    _, digest = published(FILES)
    with pytest.raises(CliError, match=complaint):
        unpack(chunks(data), tmp_path / "bot", digest, lambda size: None)
    assert list(tmp_path.iterdir()) == []


def test_a_sender_that_fails_after_the_last_file_leaves_nothing(tmp_path: Path) -> None:
    data, digest = published(FILES)

    def failing() -> Iterator[bytes]:
        yield data
        raise CliError("exit code 1")

    with pytest.raises(CliError, match="exit code 1"):
        unpack(failing(), tmp_path / "bot", digest, lambda size: None)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", 10)
    check_target(tmp_path / "new", 10)
    (tmp_path / "full" / "x").mkdir(parents=True)
    for folder, size, complaint in (
        (tmp_path / "full", 1, "already there"),
        (tmp_path / "no" / "bot", 1, "no such folder"),
        (tmp_path / "new", 10**18, "left, and the artifacts are"),
    ):
        with pytest.raises(CliError, match=complaint):
            check_target(folder, size)
