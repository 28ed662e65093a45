"""A cluster of size control for a measurement alone, an asynchronous client of it, and what its processes use."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from localcluster import cluster as lifecycle
from localcluster.spec import Spec, load

Object = dict[str, Any]
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
USER_AGENT = "finetune-bench"
NAMESPACE = "bench"
DEFAULT_LIMITS = {"kube-controller-manager": ["--kube-api-qps=20", "--kube-api-burst=30"]}
"""What Kubernetes ships; localcluster's own are ten times as much."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Refused(Exception):
    """The API server answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Api:
    """The API server as its administrator sees it."""

    def __init__(self, kubeconfig: Path, connections: int = 32, server: str | None = None) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.server: str = server or cluster["server"]
        trust = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0 if connections == 0 else connections, ssl=trust),
            headers={"User-Agent": USER_AGENT, "Authorization": f"Bearer {config['users'][0]['user']['token']}"},
            timeout=aiohttp.ClientTimeout(total=60),
        )

    async def close(self) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str) -> Any:
        async with self._session.request(
            method,
            self.server + path,
            params=query or None,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": kind},
        ) as answer:
            content = await answer.read()
        found = json.loads(content) if content[:1] == b"{" else content.decode(errors="replace")
        if answer.status >= 300:
            raise Refused(answer.status, str(found.get("message") if isinstance(found, dict) else found))
        return found

    async def get(self, path: str, **query: str) -> Any:
        return await self.call("GET", path, **query)

    async def find(self, path: str) -> Any:
        """None where there is nothing."""
        try:
            return await self.get(path)
        except Refused as error:
            if error.code == 404:
                return None
            raise

    async def serves(self, path: str) -> bool:
        """Whether a list is answered: shortly after its CRD was created it is not."""
        try:
            await self.get(path, limit="1")
        except Refused:
            return False
        return True

    async def post(self, path: str, body: Object) -> Any:
        return await self.call("POST", path, body)

    async def merge(self, path: str, change: Object) -> Any:
        return await self.call("PATCH", path, change, MERGE)

    async def apply(self, path: str, wanted: Object) -> Any:
        return await self.call("PATCH", path, wanted, APPLY, fieldManager="bench", force="true")

    async def delete(self, path: str, **options: Any) -> None:
        with contextlib.suppress(Refused):
            await self.call("DELETE", path, {"propagationPolicy": "Background", **options})

    async def items(self, path: str, **query: str) -> list[Object]:
        found: list[Object] = []
        query = {"limit": "500", **query}
        while True:
            page = await self.get(path, **query)
            found += page["items"] or []
            if not page["metadata"].get("continue"):
                return found
            query["continue"] = page["metadata"]["continue"]

    async def watch(self, path: str, accept: str = METADATA, **query: str) -> AsyncIterator[Object]:
        """Events from now on, for as long as the caller reads; ends when the server ends the watch."""
        start = await self.get(path, limit="1")
        query = {"watch": "1", "resourceVersion": start["metadata"]["resourceVersion"], **query}
        no_limit = aiohttp.ClientTimeout(total=None, sock_read=None)
        async with self._session.get(
            self.server + path, params=query, headers={"Accept": accept}, timeout=no_limit, read_bufsize=2**22
        ) as stream:
            async for line in stream.content:
                yield json.loads(line)

    async def namespace(self, name: str = NAMESPACE) -> None:
        """Create a namespace with the service account that pods need."""
        await self.apply(
            f"/api/v1/namespaces/{name}", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )

        async def account() -> bool:
            return await self.find(f"/api/v1/namespaces/{name}/serviceaccounts/default") is not None

        await until(f"service account of namespace {name}", account)


async def until(what: str, holds: Callable[[], Awaitable[Any]], seconds: float = 120, interval: float = 0.1) -> None:
    """Ask until it holds."""
    end = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(interval)


@contextlib.contextmanager
def cluster(
    name: str, size: str = "control", kwok: int = 0, flags: dict[str, list[str]] | None = None
) -> Iterator[Spec]:
    """A fresh cluster: what a measurement before it left could slow this one."""
    if load(name) is not None:
        lifecycle.down(name)
    try:
        yield lifecycle.up(lifecycle.Request(name, size, None, flags or {}, kwok))
    finally:
        lifecycle.down(name)


def pid_of(spec: Spec, component: str) -> int:
    process = lifecycle.records(spec).get(component)
    if process is None:
        raise RuntimeError(f"{component} of cluster {spec.name} does not run.")
    return process.pid


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    """Megabytes (10^6 bytes); field VmHWM: the most that it ever was."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024 / 1e6


async def settled(pid: int, seconds: float = 90) -> float:
    """Wait until a process uses less than 3% of a core over 3 s, or for so long; what it used."""
    end, before = time.monotonic() + seconds, cpu_seconds(pid)
    while True:
        used = cpu_seconds(pid)
        await asyncio.sleep(3)
        if cpu_seconds(pid) - used < 0.09 or time.monotonic() > end:
            return cpu_seconds(pid) - before


async def at_once(count: int, work: Callable[[int], Awaitable[Any]], lanes: int = 32) -> None:
    """Do WORK for 0 to COUNT - 1, LANES at a time."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
