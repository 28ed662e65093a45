"""A control plane shared by the tests of one run: a real API server, real controllers and a real scheduler, nodes that are
plain objects. FINETUNE_TEST_KUBECONFIG names one that runs already."""

from __future__ import annotations

import base64
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import urllib3
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FTJ = "/apis/finetune.dev/v1alpha1"
NODE = "test-node"
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


class Refused(Exception):
    """The API server's answer was an error."""

    def __init__(self, code: int, body: dict[str, Any]) -> None:
        super().__init__(f"{code}: {body.get('message')}")
        self.code, self.message, self.body = code, str(body.get("message")), body


class Api:
    """The API server as an administrator sees it, in plain JSON."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.server: str = cluster["server"]
        self.token: str = config["users"][0]["user"]["token"]
        self.ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.kubeconfig = kubeconfig
        self._pool = urllib3.PoolManager(maxsize=16, ca_cert_data=self.ca)

    def call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: str
    ) -> Any:
        answer = self._pool.request(
            method,
            self.server + path + ("?" + urlencode(query) if query else ""),
            body=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
            timeout=30,
        )
        found = json.loads(answer.data) if answer.data[:1] == b"{" else answer.data.decode()
        if answer.status >= 300:
            raise Refused(answer.status, found if isinstance(found, dict) else {"message": found})
        return found

    def get(self, path: str, **query: str) -> Any:
        return self.call("GET", path, **query)

    def find(self, path: str) -> Any:
        """None where there is nothing."""
        try:
            return self.get(path)
        except Refused as error:
            if error.code == 404:
                return None
            raise

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(path, **query)["items"]
        return found

    def post(self, path: str, body: Any, **query: str) -> Any:
        return self.call("POST", path, body, **query)

    def merge(self, path: str, body: Any) -> Any:
        return self.call("PATCH", path, body, MERGE)

    def delete(self, path: str, **options: Any) -> Any:
        return self.call("DELETE", path, {"propagationPolicy": "Background", **options})


def until(what: str, look: Callable[[], Any], seconds: float = 60, interval: float = 0.1) -> Any:
    """Look until there is something. A deadline costs nothing until something is wrong, so it leaves room for a busy machine."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(interval)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    return until


@pytest.fixture(scope="session")
def control_kubeconfig() -> Iterator[Path]:
    """A cluster of size control of this run alone."""
    given = os.environ.get("FINETUNE_TEST_KUBECONFIG")
    if given:
        yield Path(given)
        return
    name = f"t{uuid.uuid4().hex[:6]}"

    def localcluster(*arguments: str, check: bool = True) -> str:
        environment = {key: value for key, value in os.environ.items() if key not in ("CLUSTER", "KUBECONFIG")}
        done = subprocess.run(
            [sys.executable, "-m", "localcluster", *arguments, "--name", name],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=check,
        )
        return done.stdout.strip()

    localcluster("up", "--size", "control")
    try:
        yield Path(localcluster("kubeconfig"))
    finally:
        localcluster("down", check=False)


@pytest.fixture(scope="session")
def api(control_kubeconfig: Path) -> Api:
    """With the CRD established and one node that takes every pod."""
    api = Api(control_kubeconfig)
    crd = yaml.safe_load((REPOSITORY / "crds" / "finetunejobs.yaml").read_text())
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    api.call("PATCH", path, crd, APPLY, fieldManager="tests", force="true")
    until("the CRD is served", lambda: api.find(f"{FTJ}/finetunejobs"))
    if api.find(f"/api/v1/nodes/{NODE}") is None:
        api.post("/api/v1/nodes", {"metadata": {"name": NODE}})
    size = {"cpu": "1000", "memory": "1000Gi", "pods": "10000", "ephemeral-storage": "1000Gi", "nvidia.com/gpu": "64"}
    status = {
        "capacity": size,
        "allocatable": size,
        "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": ""}],
    }
    api.merge(f"/api/v1/nodes/{NODE}/status", {"status": status})
    return api


@pytest.fixture
def namespace(api: Api) -> Iterator[str]:
    """A namespace of this test alone. Nodes have no kubelet, so its pods have to be taken away by force.

    An empty namespace is left to a cluster that ends with this run: to delete one is a hundred requests.
    """
    name = f"t-{uuid.uuid4().hex[:8]}"
    api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    api.delete(f"{FTJ}/namespaces/{name}/finetunejobs")
    api.delete(f"/apis/batch/v1/namespaces/{name}/jobs")
    api.delete(f"/api/v1/namespaces/{name}/pods", gracePeriodSeconds=0)
    api.delete(f"/api/v1/namespaces/{name}/persistentvolumeclaims")
    if os.environ.get("FINETUNE_TEST_KUBECONFIG"):
        api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def tools() -> Path:
    """Folder with kubectl and helm, fetched if this machine has none."""
    found = subprocess.run(
        [sys.executable, "-m", "localcluster", "tools"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(found.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def kubectl(tools: Path) -> str:
    """Path of kubectl."""
    return str(tools / "kubectl")


IMAGE = "registry.example/trainer:1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Operator:
    """One operator process."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the operator ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
        try:
            return self.get("/readyz") == "ok"
        except OSError:
            return False

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples that carry these labels."""
        total = 0.0
        for line in self.get("/metrics").splitlines():
            if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 25) -> int:
        """Ended within the time that the chart gives it, 30 s."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


Start = Callable[..., Operator]


@pytest.fixture(scope="session")
def progress_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def start_operator(tmp_path_factory: pytest.TempPathFactory, progress_port: int) -> Iterator[Start]:
    """Start an operator process; whatever still runs at the end is ended."""
    folder = tmp_path_factory.mktemp("operator")
    defaults = folder / "defaults.json"
    defaults.write_text(json.dumps({"pods": {"image": IMAGE}}))
    started: list[Operator] = []
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(10_000):
        numbers.put(number)

    def start(
        kubeconfig: Path, *, wait: bool = True, program: tuple[str, ...] = ("-m", "finetune_operator"), **settings: str
    ) -> Operator:
        port, log = free_port(), folder / f"operator-{numbers.get()}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "KUBECONFIG": str(kubeconfig),
            "FINETUNE_DEFAULTS": str(defaults),
            "FINETUNE_HTTP": f"127.0.0.1:{port}",
            "FINETUNE_RETRY_SECONDS": "0.2",
            "FINETUNE_POLL_SECONDS": "0.3",
            "FINETUNE_PROGRESS_PORT": str(progress_port),
            **settings,
        }
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *program],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                cwd=folder,
            )
        operator = Operator(process, port, log)
        started.append(operator)
        if wait:
            end = time.monotonic() + 30
            while not operator.ready():
                assert time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.05)
        return operator

    yield start
    for operator in started:
        if operator.process.poll() is None:
            operator.kill()
