"""One node cluster for all tests here, brought up and filled by the quickstart, as a user would.

Needs root and a Debian-like machine, or CLUSTER=current with OPERATOR_IMAGE and TRAINER_IMAGE. A cluster that ran before
is used and left running; one that these tests started is stopped.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.contract import PROGRESS_PATH, PROGRESS_PORT

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = (
    yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    if (ROOT / "examples" / "quickstart.yaml").exists()
    else {}
)


# Run in a training pod: wait until rank 0 tells of something; send a signal to the ranks.
UNTIL_TOLD = f"""
import json, time, urllib.request
told = dict()
while told.get("stage") != "train" or not told.get("{{field}}"):
    time.sleep(0.1)
    try:
        told = json.load(urllib.request.urlopen("http://127.0.0.1:{PROGRESS_PORT}{PROGRESS_PATH}", timeout=1))
    except OSError:
        pass
"""
SIGNAL = """
import os, pathlib, signal
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if process.name != str(os.getpid()) and b"finetune_trainer.worker" in (process / "cmdline").read_bytes():
        os.kill(int(process.name), signal.{signal})
"""


@dataclass(frozen=True)
class Cluster:
    """kubectl, helm and ftj on the node cluster."""

    env: dict[str, str]
    quickstart_output: str

    def run(
        self, *command: str, stdin: str | None = None, check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            command, env=self.env, input=stdin, text=True, capture_output=True, cwd=ROOT, timeout=timeout
        )
        if check and result.returncode:
            raise AssertionError(
                f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
            )
        return result

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.run("kubectl", *arguments, **options).stdout

    def get(self, kind: str, namespace: str, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", kind, "-n", namespace, "-o", "json", *arguments))

    def job(self, name: str, namespace: str) -> dict[str, Any]:
        return self.get(f"ftj/{name}", namespace)  # type: ignore[no-any-return]

    def pods(self, namespace: str, job: str, stage: str) -> list[dict[str, Any]]:
        return self.get("pods", namespace, "-l", f"finetune.dev/job={job},finetune.dev/stage={stage}")["items"]  # type: ignore[no-any-return]

    def in_training(self, namespace: str, job: str, field: str, then: str = "") -> str:
        """Wait for what rank 0 tells in its progress, without the operator's pause between two readings; then run Python in
        its pod, which is returned."""

        def rank0() -> str | None:
            for pod in self.pods(namespace, job, "train"):
                index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
                if index == "0" and pod["status"]["phase"] == "Running":
                    return pod["metadata"]["name"]  # type: ignore[no-any-return]
            return None

        pod: str = self.until(f"{job} trains", rank0)
        self.in_pod(namespace, pod, UNTIL_TOLD.format(field=field) + then)
        return pod

    def in_pod(self, namespace: str, pod: str, code: str) -> None:
        self.kubectl("exec", "-n", namespace, pod, "--", "python", "-c", code, timeout=240)

    @contextlib.contextmanager
    def frozen(self, namespace: str, job: str) -> Iterator[None]:
        """A training that stands still in its middle until it is asked to stop: on a machine of any speed."""
        pod = self.in_training(namespace, job, "step", SIGNAL.format(signal="SIGSTOP"))
        try:
            yield
            asked = lambda: self.get(f"pod/{pod}", namespace)["metadata"].get("deletionTimestamp")  # noqa: E731
            self.until(f"{pod} is asked to stop", asked)
        finally:
            self.in_pod(namespace, pod, SIGNAL.format(signal="SIGCONT"))

    def in_claim(self, namespace: str, code: str) -> None:
        """Run Python in the folder of the quickstart's claim, by a pod of its own."""
        source = self.get("job/finetune-quickstart-data", namespace)["spec"]["template"]["spec"]
        container = source["containers"][0]
        container |= {"command": ["python", "-c", code], "workingDir": container["volumeMounts"][0]["mountPath"]}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "in-claim"}, "spec": source}, namespace)
        done = "--for=jsonpath={.status.phase}=Succeeded"
        self.kubectl("wait", "-n", namespace, done, "pod/in-claim", "--timeout=120s")
        self.kubectl("delete", "-n", namespace, "pod/in-claim", "--wait")

    def apply(self, body: dict[str, Any], namespace: str) -> None:
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(body))

    def until(self, what: str, look: Callable[[], Any], seconds: float = 240) -> Any:
        """Look once a second until there is something; the last thing seen is in the error."""
        end = time.monotonic() + seconds
        while not (seen := look()):
            if time.monotonic() > end:
                raise AssertionError(
                    f"{what}: not within {seconds:.0f} s\n{self.kubectl('get', 'ftj,jobs,pods', '-A', '-o', 'wide', check=False)}"
                )
            time.sleep(1)
        return seen

    def until_phase(self, name: str, namespace: str, *phases: str, seconds: float = 300) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            job = self.job(name, namespace)
            phase = job["status"].get("phase")
            assert phase not in {"Failed", "Completed"} - set(phases), json.dumps(job["status"], indent=1)
            return job if phase in phases else None

        return self.until(f"{namespace}/{name} is {' or '.join(phases)}", look, seconds)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    own = os.environ.get("CLUSTER") == "current"
    was_up = (
        own
        or subprocess.run(
            [sys.executable, "-m", "localcluster", "status", "--name", "node"], cwd=ROOT, capture_output=True
        ).returncode
        == 0
    )
    result = subprocess.run(
        [sys.executable, "-m", "examples.quickstart.run"], cwd=ROOT, text=True, capture_output=True, timeout=40 * 60
    )
    if result.returncode:
        pytest.fail(
            f"the quickstart ended with exit code {result.returncode}\n{result.stdout[-6000:]}\n{result.stderr[-6000:]}",
            pytrace=False,
        )
    env = dict(os.environ)
    if not own:
        tools, kubeconfig = (
            subprocess.run(
                [sys.executable, "-m", "localcluster", *verb], cwd=ROOT, text=True, capture_output=True, check=True
            ).stdout.split()[-1]
            for verb in (["tools"], ["kubeconfig", "--name", "node"])
        )
        env |= {"PATH": f"{Path(sys.executable).parent}:{tools}:{env['PATH']}", "KUBECONFIG": kubeconfig}
    yield Cluster(env, result.stdout)
    if not was_up:
        subprocess.run([sys.executable, "-m", "localcluster", "down", "--name", "node"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def team(cluster: Cluster) -> Iterator[str]:
    """A namespace of its own with the quickstart's base model and data, made by the documented command."""
    name = "e2e-team"
    cluster.run("make", "quickstart-data", f"NAMESPACE={name}")
    # Every pod from here on must satisfy the restricted standard, or the API server refuses it.
    cluster.kubectl("label", "--overwrite", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait", "--timeout=120s")


@pytest.fixture(scope="session")
def manifest() -> Callable[..., dict[str, Any]]:
    return variant


def variant(name: str, **groups: Any) -> dict[str, Any]:
    """The quickstart's manifest under another name, with groups of its spec laid over."""
    body = copy.deepcopy(QUICKSTART)
    body["metadata"]["name"] = name
    body["spec"]["output"] = {"uri": f"pvc://finetune-quickstart/models/{name}"}
    for group, value in groups.items():
        if isinstance(value, dict) and isinstance(body["spec"].get(group), dict):
            body["spec"][group] |= value
        else:
            body["spec"][group] = value
    return body
