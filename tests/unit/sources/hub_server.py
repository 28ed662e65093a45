"""A hub on loopback: a real HTTP server that speaks the part of the protocol that downloads need."""

from __future__ import annotations

import hashlib
import json

from tests.unit.sources.web_server import Page, Request, WebServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(WebServer):
    """`acme/base`, a model and a data set of the same files, at `commit` (main, v1); `acme/gated` wants the token hf_good."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self.files = files
        self.commit = COMMIT
        self.broken_after: int | None = None
        """Files that are still served before the hub fails."""
        self.answer = self._answer

    @property
    def tokens(self) -> set[str | None]:
        return {request.headers.get("authorization") for request in self.requests}

    def _answer(self, request: Request) -> Page:
        path = request.path.split("?")[0]
        if "/acme/gated" in path and request.headers.get("authorization") != "Bearer hf_good":
            return Page(b"{}", 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if "/acme/" not in path:
            return Page(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        if "/revision/" in path and path.rsplit("/", 1)[-1] not in ("main", "v1", self.commit):
            return Page(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/") and "/tree/" in path:
            return _json([self.entry(name, data) for name, data in self.files.items()])
        if path.startswith("/api/"):
            return _json({"id": "acme/base", "sha": self.commit, "private": False, "tags": [], "siblings": []})
        if self.broken_after is not None:
            if self.broken_after == 0:
                return Page(b"down", 500)
            self.broken_after -= 1
        return Page(self.files[path.split(f"/resolve/{self.commit}/", 1)[-1]])

    def entry(self, name: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}
        if name.endswith(".safetensors"):  # weights are kept outside of git, and are known by their sha256
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
        return entry


def blob_id(data: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _json(value: object) -> Page:
    return Page(json.dumps(value).encode(), headers={"Content-Type": "application/json"})
