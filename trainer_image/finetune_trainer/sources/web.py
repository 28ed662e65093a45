"""GET over HTTP, as both the https scheme and the hub's files need it: redirects by hand, bodies from any byte on."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import urllib3

from finetune_trainer.sources import addresses, network
from finetune_trainer.sources.refusals import Misled

MOST_REDIRECTS = 5
PIECE_BYTES = 1 << 20
_REDIRECTS = (301, 302, 303, 307, 308)


class Status(Exception):
    """The server answers with an error's status."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        super().__init__(f"{plain(url)} answers with status {response.status} {response.reason or ''}".rstrip())
        self.status = response.status
        self.headers = response.headers


class Web:
    """A client that trusts `authorities` (a PEM file) and sends `headers` to the origin of a request alone."""

    def __init__(self, authorities: str, headers: Mapping[str, str] | None = None) -> None:
        self._trusted = network.context(authorities)
        self._headers = dict(headers or {})
        self._pools: dict[str | None, urllib3.PoolManager] = {}

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> urllib3.BaseHTTPResponse:
        """The answer, its body not read yet. Raises Status, Misled, Forbidden and urllib3's errors."""
        origin = _origin(url)
        for _ in range(MOST_REDIRECTS + 1):
            response = self._ask(url, {**(self._headers if _origin(url) == origin else {}), **(headers or {})})
            if response.status not in _REDIRECTS:
                if response.status >= 400 and response.status != 416:
                    response.close()
                    raise Status(response, url)
                return response
            response.close()
            target = urllib.parse.urljoin(url, response.headers.get("Location") or "")
            scheme = urllib.parse.urlsplit(target).scheme
            if scheme not in ("http", "https"):
                raise Misled(f"{plain(url)} redirects to {scheme or 'nowhere'}, which is not followed")
            if scheme == "http" and url.startswith("https:"):
                raise Misled(f"{plain(url)} redirects from https to http, which is not followed")
            url = target
        raise Misled(f"more than {MOST_REDIRECTS} redirects, the last to {plain(url)}")

    def _ask(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        proxy = network.proxy_for(url)
        if proxy is not None:
            addresses.check_host(urllib.parse.urlsplit(url).hostname or "")
        return self._pool(proxy).request(
            "GET",
            url,
            headers={"Accept-Encoding": "identity", "User-Agent": "finetune-operator", **headers},
            preload_content=False,
            decode_content=False,
            redirect=False,
            retries=False,
        )

    def _pool(self, proxy: str | None) -> urllib3.PoolManager:
        if proxy not in self._pools:
            timeout = urllib3.Timeout(connect=network.CONNECT_S, read=network.READ_S)
            if proxy is None:
                self._pools[proxy] = urllib3.PoolManager(ssl_context=self._trusted, timeout=timeout, maxsize=8)
            else:
                user = urllib.parse.unquote(urllib.parse.urlsplit(proxy).netloc.rpartition("@")[0])
                self._pools[proxy] = urllib3.ProxyManager(
                    proxy,
                    proxy_headers=urllib3.make_headers(proxy_basic_auth=user) if user else None,
                    ssl_context=self._trusted,
                    timeout=timeout,
                    maxsize=8,
                )
        return self._pools[proxy]

    def read(self, url: str, offset: int, *, unchanged: str | None = None) -> tuple[int, Iterator[bytes]]:
        """Bytes from `offset` on, and where they really begin. `unchanged`: an ETag without which there is no going on."""
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if unchanged and not unchanged.startswith("W/"):
                headers["If-Range"] = unchanged
        response = self.get(url, headers)
        if response.status == 416:  # nothing is left, or the file is another one by now
            response.close()
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            return (offset, iter(())) if total == str(offset) else self.read(url, 0)
        if response.status == 206 and begin_of(response) == offset:
            return offset, pieces(response)
        if response.status == 206:
            response.close()
            return self.read(url, 0)
        return 0, pieces(response)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()


def pieces(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The body as it was sent. Raises urllib3's errors where it is cut."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding not in ("", "identity"):
        response.close()
        raise Misled(f"the server compresses its answer ({encoding}) though it was asked not to")
    try:
        while piece := response.read1(PIECE_BYTES):
            yield piece
    finally:
        response.close()


def total_size(response: urllib3.BaseHTTPResponse) -> int | None:
    """Bytes of the whole file, whether the server gave a part of it or all."""
    if response.status in (206, 416):
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdigit() else None


def plain(url: str) -> str:
    """A URL without what may be secret in it."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def begin_of(response: Any) -> int | None:
    """The byte at which a part of a file begins, by any client's response."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"https": 443, "http": 80}.get(parts.scheme)
