"""`ftj pull` from a real claim: hundreds of megabytes through exec, checked, and never a pod left behind.

The job is one that another controller manages, so that the test can publish what it likes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.node, pytest.mark.timeout(50 * 60)]

NAME, CLAIM = "published", "pull-test"
MEGABYTES = 200
WRITE = f"""
import hashlib, os, pathlib
folder = pathlib.Path("/out/models/bot")
(folder / "sub").mkdir(parents=True)
(folder / "model.safetensors").write_bytes(os.urandom({MEGABYTES} << 20))
(folder / "sub/report.html").write_text("<html>")
sums = "".join(f"{{hashlib.sha256(p.read_bytes()).hexdigest()}}  {{p.relative_to(folder)}}\\n" for p in sorted(folder.rglob("*")) if p.is_file())
(folder / "SHA256SUMS").write_text(sums)
(folder / "finetune.json").write_text("{{}}")
print(hashlib.sha256(sums.encode()).hexdigest())
"""


def pod(name: str, image: str, code: str) -> dict[str, Any]:
    """Runs Python with the claim at /out, as unprivileged as the namespace asks."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": ["python", "-c", code],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "out", "mountPath": "/out"}],
                }
            ],
            "volumes": [{"name": "out", "persistentVolumeClaim": {"claimName": CLAIM}}],
        },
    }


def run_pod(cluster: Any, namespace: str, name: str, image: str, code: str) -> str:
    cluster.apply(pod(name, image, code), namespace)
    cluster.kubectl(
        "wait", f"pod/{name}", "-n", namespace, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=180s"
    )
    return cluster.kubectl("logs", name, "-n", namespace).strip()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def image(cluster: Any) -> str:
    pods = cluster.get("pods", "default", "-l", "finetune.dev/stage=publish")["items"]
    return pods[0]["spec"]["containers"][0]["image"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def published(cluster: Any, team: str, image: str) -> Iterator[str]:
    """The namespace, with a job that has published to a claim."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    cluster.apply(claim, team)
    digest = run_pod(cluster, team, "writer", image, WRITE)
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": NAME},
        "spec": {
            "managedBy": "example.com/somebody-else",
            "model": {"uri": f"pvc://{CLAIM}/base"},
            "method": {"type": "lora"},
            "data": {"train": [{"uri": f"pvc://{CLAIM}/rows.jsonl"}]},
            "compute": {"device": "cpu"},
            "pods": {"common": {"image": image}},
            "workspace": {"uri": f"pvc://{CLAIM}/work"},
            "output": {"uri": f"pvc://{CLAIM}/models/bot"},
        },
    }
    cluster.apply(job, team)
    artifacts = {"uri": f"pvc://{CLAIM}/models/bot", "files": 4, "bytes": MEGABYTES << 20, "digest": digest}
    status = {"status": {"observedGeneration": 1, "phase": "Completed", "artifacts": artifacts}}
    patch = ("patch", "ftj", NAME, "-n", team, "--subresource=status", "--type=merge", "-p", json.dumps(status))
    cluster.kubectl(*patch)
    yield team
    cluster.kubectl("delete", "ftj", NAME, "-n", team)


def readers(cluster: Any, namespace: str) -> list[str]:
    names = cluster.kubectl("get", "pods", "-n", namespace, "-l", "app.kubernetes.io/managed-by=ftj", "-o", "name")
    return [name for name in names.split() if name]


def test_artifacts_arrive_whole(cluster: Any, published: str, tmp_path: Path) -> None:
    result = cluster.run("ftj", "pull", NAME, str(tmp_path / "bot"), "-n", published, "-o", "json")
    assert json.loads(result.stdout)["files"] == 4
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "bot", check=True)
    assert (tmp_path / "bot" / "model.safetensors").stat().st_size == MEGABYTES << 20
    cluster.until("no pod is left", lambda: not readers(cluster, published), 120)
    again = cluster.run("ftj", "pull", NAME, str(tmp_path / "bot"), "-n", published, check=False)
    assert again.returncode == 3
    assert "already there" in again.stderr


def test_an_interrupted_pull_leaves_no_pod_and_no_folder(cluster: Any, published: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune_cli", "pull", NAME, str(tmp_path / "bot"), "-n", published]
    process = subprocess.Popen(command, env={**os.environ, **cluster.env})
    cluster.until("the pod", lambda: readers(cluster, published), 120)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    cluster.until("no pod is left", lambda: not readers(cluster, published), 120)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_was_changed_since_is_refused(cluster: Any, published: str, image: str, tmp_path: Path) -> None:
    run_pod(cluster, published, "changer", image, "open('/out/models/bot/sub/report.html', 'w').write('<p>')")
    result = cluster.run("ftj", "pull", NAME, str(tmp_path / "bot"), "-n", published, check=False)
    assert result.returncode == 3
    assert "sub/report.html does not match its checksum" in result.stderr
    assert list(tmp_path.iterdir()) == []
