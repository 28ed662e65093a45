"""The few calls that bringing a cluster up needs. Tests and users have kubectl and the official client."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from localcluster.pki import Pki

Object = dict[str, Any]


class Api:
    """The API server as the administrator sees it."""

    def __init__(self, server: str, pki: Pki) -> None:
        self._server = server
        self._token = pki.token("admin")
        self._context = ssl.create_default_context(cafile=str(pki.ca.certificate))

    def ready(self) -> bool:
        """Whether the server says that it is ready."""
        return self._ok(lambda: self._request("GET", "/readyz", None, {}))

    def get(self, path: str) -> Object | None:
        """The object at PATH, or None where there is none."""
        try:
            found = json.loads(self._request("GET", path, None, {}))
        except urllib.error.HTTPError as error:
            if error.code == http.client.NOT_FOUND:
                return None
            raise
        return found if isinstance(found, dict) else None

    def apply(self, path: str, wanted: Object) -> None:
        """Server-side apply: creates what is missing, and sets right what somebody changed."""
        headers = {"Content-Type": "application/apply-patch+yaml"}
        self._request("PATCH", f"{path}?fieldManager=localcluster&force=true", wanted, headers)

    def merge(self, path: str, change: Object) -> None:
        """Merge CHANGE into the object at PATH."""
        self._request("PATCH", path, change, {"Content-Type": "application/merge-patch+json"})

    def delete(self, path: str) -> None:
        """Delete the object at PATH."""
        self._request("DELETE", path, None, {})

    def _ok(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _request(self, verb: str, path: str, body: Object | None, headers: dict[str, str]) -> str:
        request = urllib.request.Request(
            self._server + path,
            method=verb,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", **headers},
        )
        opener = urllib.request.build_opener(
            # A proxy in the environment is for the world outside, never for this machine.
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=self._context),
        )
        with opener.open(request, timeout=10) as response:
            content: bytes = response.read()
        return content.decode()


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Ask CONDITION until it holds, for at most SECONDS."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True
