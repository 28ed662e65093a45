"""Kubeflow Trainer and JobSet at their released versions and default limits, without webhooks: a real install pays for those too."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.operator.control import NAMESPACE, Api, Object, until
from benchmarks.operator.ours import free_port
from localcluster import toolchain
from localcluster.gobuild import Program, binary
from localcluster.spec import Spec

_SOURCES = Path(__file__).parent
TRAINER = Program(
    "trainer-controller-manager",
    "github.com/kubeflow/trainer/v2",
    "about 2 minutes",
    "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",
    _SOURCES,
)
JOBSET = Program("jobset", "sigs.k8s.io/jobset", "about 100 seconds", "sigs.k8s.io/jobset", _SOURCES)
NAME = f"Kubeflow Trainer {TRAINER.version} + JobSet {JOBSET.version}"
TRAINJOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
_RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                # What JobSet's defaulting webhook would add.
                "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                "successPolicy": {"operator": "All"},
                "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "completionMode": "Indexed",
                                "template": {
                                    "spec": {
                                        "restartPolicy": "Never",
                                        "containers": [
                                            {
                                                "name": "node",
                                                "image": "registry.example/trainer:1",
                                                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
                                            }
                                        ],
                                    }
                                },
                            },
                        },
                    }
                ],
            }
        },
    },
}


def manifest(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "runtimeRef": {
                "name": "torch-distributed",
                "kind": "ClusterTrainingRuntime",
                "apiGroup": "trainer.kubeflow.org",
            },
            # As the defaulting webhook sets it.
            "managedBy": "trainer.kubeflow.org/trainjob-controller",
            "suspend": False,
            "trainer": {"numNodes": 1, "args": ["--epochs=3", "--batch-size=16", "--learning-rate=0.0002"]},
            **spec,
        },
    }


def _module(program: Program) -> Path:
    """Where Go keeps the sources of the program's module, manifests included."""
    done = subprocess.run(
        [str(toolchain.go(program.needed_go)), "list", "-m", "-f", "{{.Dir}}", str(program.module)],
        cwd=program.sources, env=toolchain.environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return Path(done.stdout.strip())


async def install(api: Api) -> None:
    """CRDs and the runtime."""
    crds = [*(_module(TRAINER) / "manifests/base/crds").glob("trainer*.yaml")]
    crds += [*(_module(JOBSET) / "config/components/crd/bases").glob("*.yaml")]
    for file in crds:
        crd = yaml.safe_load(file.read_text())
        # Created, not applied: the field tree of an apply of 800 KB takes longer than all the rest.
        await api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    runtimes = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes"
    for path in (TRAINJOBS, runtimes, "/apis/jobset.x-k8s.io/v1alpha2/jobsets"):
        await until(f"{path} is served", partial(api.serves, path))
    await api.post(runtimes, _RUNTIME)


class Rival:
    """Both managers as processes."""

    def __init__(self, spec: Spec) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="finetune-rival-"))
        certificates = self.folder / "k8s-webhook-server" / "serving-certs"
        certificates.mkdir(parents=True)
        shutil.copy(spec.pki.serving.certificate, certificates / "tls.crt")
        shutil.copy(spec.pki.serving.key, certificates / "tls.key")
        self._health = {"trainer": free_port(), "jobset": free_port()}
        self.logs = {name: self.folder / f"{name}.log" for name in self._health}
        trainer = {
            **yaml.safe_load((_module(TRAINER) / "manifests/base/manager/controller_manager_config.yaml").read_text()),
            "certManagement": {"enable": False},
            "leaderElection": {"leaderElect": False},
            "metrics": {"bindAddress": "0"},
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health['trainer']}"},
            "webhook": {"port": free_port(), "host": "127.0.0.1"},
        }
        jobset = {
            **yaml.safe_load(
                (_module(JOBSET) / "config/components/manager/controller_manager_config.yaml").read_text()
            ),
            "internalCertManagement": {"enable": False},
            "leaderElection": {"leaderElect": False},
            "metrics": {"bindAddress": "0"},
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health['jobset']}"},
            "webhook": {"port": free_port(), "host": "127.0.0.1", "certDir": str(certificates)},
        }
        self.processes = {
            "trainer": self._start(spec, "trainer", TRAINER, trainer),
            "jobset": self._start(spec, "jobset", JOBSET, jobset),
        }

    def _start(self, spec: Spec, name: str, program: Program, config: Object) -> subprocess.Popen[bytes]:
        file = self.folder / f"{name}.yaml"
        file.write_text(json.dumps(config))
        environment = {
            "KUBECONFIG": str(spec.paths.kubeconfig),
            "TMPDIR": str(self.folder),
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
        }
        with self.logs[name].open("w") as output:
            return subprocess.Popen(
                [str(binary(program)), f"--config={file}"], env=environment, stdout=output, stderr=output
            )

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes.values()]

    async def ready(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        for name, port in self._health.items():
            while not await asyncio.to_thread(_healthy, port):
                if self.processes[name].poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{name} is not ready:\n{self.logs[name].read_text()[-2000:]}")
                await asyncio.sleep(0.1)

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
