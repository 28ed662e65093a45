"""Every rule of the API twice: the real API server's schema and CEL, and the Python models. Same objects, same verdict."""

from __future__ import annotations

import copy
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.combinations import COMBINATIONS, Combination
from finetune_api.finetunejob import FineTuneJob
from pydantic import ValidationError

pytestmark = pytest.mark.control

GOOD: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "job"},
    "spec": {
        "model": {"uri": "hf://org/model", "revision": "main", "secretRef": {"name": "hub"}},
        "method": {"type": "lora"},
        "data": {
            "train": [{"uri": "pvc://data/train.jsonl"}],
            "validation": [{"uri": "hf://datasets/org/set/v.jsonl"}],
        },
        "compute": {"nodes": 2, "gpusPerNode": 8},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://models/out"},
        # Left alone by any operator that watches this cluster.
        "managedBy": "tests.example/nobody",
    },
}
NVME = {"compute.offload.nvmePath": "/nvme"}
NAMESPACE = f"api-rules-{uuid.uuid4().hex[:6]}"
MISSING = object()


def laid_over(changes: dict[str, Any]) -> dict[str, Any]:
    """GOOD with values set at dotted paths."""
    body = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        at: Any = body
        for part in parents:
            at = at[int(part)] if part.isdigit() else at.setdefault(part, {})
        if value is MISSING:
            del at[last]
        elif last.isdigit():
            at[int(last)] = value
        else:
            at[last] = value
    return body


# What is refused, with words of the message; None: taken.
SAME_VERDICT: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"metadata.name": "a"}, None),
    ({"metadata.name": "a" * 40}, None),
    ({"metadata.name": "a" * 41}, "metadata.name"),
    ({"metadata.name": "1job"}, "metadata.name"),
    ({"metadata.name": "a.b"}, "metadata.name"),
    ({"spec.model.uri": "s3://bucket/model", "spec.model.region": "eu-1"}, None),
    ({"spec.model.uri": "s3://bucket"}, "s3://BUCKET/KEY"),
    ({"spec.model.uri": "gs://bucket/a/../b"}, "no '.' or '..'"),
    ({"spec.model.uri": "https://files.example/a/b.tar.gz", "spec.model.caBundleRef": {"name": "ca"}}, None),
    ({"spec.model.uri": "https://files.example/a?token=x"}, "https://HOST/PATH"),
    ({"spec.model.uri": "oci://registry.example:5000/team/model:v1"}, None),
    ({"spec.model.uri": "oci://registry.example/Team/model"}, "oci://REGISTRY/NAME"),
    ({"spec.model.region": "eu-1"}, "region to s3://"),
    ({"spec.compute.gpuType": "H100"}, "gpuType"),
    ({"spec.compute.gpuMemory": "80GB"}, "gpuMemory"),
    ({"spec.budget": {"maxDuration": "90"}}, "maxDuration"),
    ({"spec.budget": {"maxDuration": "1h30m", "maxCost": 10, "approval": "Manual"}}, None),
    ({"spec.budget": {"maxGpuHours": 0}}, "maxGpuHours"),
    ({"spec.data.fixes": ["DropDuplicates", "RedactPii"]}, None),
    ({"spec.data.fixes": ["Guess"]}, "fixes"),
    ({"spec.data.checks": {"leakage": 0.1, "fail": ["Pii"]}}, None),
    ({"spec.model.uri": "hf://model"}, "hf://OWNER/NAME"),
    ({"spec.model.uri": "pvc://Models/base", "spec.model.revision": MISSING, "spec.model.secretRef": MISSING}, "pvc://CLAIM"),
    ({"spec.model": {"uri": "pvc://models/../secret"}}, "pvc://CLAIM"),
    ({"spec.model": {"uri": "pvc://models/a/./b"}}, "pvc://CLAIM"),
    ({"spec.model": {"uri": "pvc://models/..a/b..c/"}}, None),
    ({"spec.model.uri": "pvc://models/base"}, "belong to what is downloaded"),
    ({"spec.model": {"uri": "pvc://models/base", "endpoint": "https://hub"}}, "belong to what is downloaded"),
    ({"spec.model.endpoint": "ftp://hub"}, "endpoint"),
    ({"spec.output.uri": "hf://org/model"}, "PersistentVolumeClaim"),
    ({"spec.workspace.uri": "pvc:///path"}, "PersistentVolumeClaim"),
    ({"spec.workspace.revision": "main"}, "revision"),
    ({"spec.data.train": []}, "train"),
    ({"spec.data.train": MISSING}, "train"),
    ({"spec.data.train.0.uri": "/data"}, "uri must be"),
    ({"spec.data.split": {"train": 0.5, "validation": 0.1, "test": 0.1}}, "add up to 1"),
    ({"spec.data.split": {"train": 0.5, "validation": 0.25, "test": 0.25}}, None),
    ({"spec.data.split": {"train": 0, "validation": 0.5, "test": 0.5}}, "train"),
    ({"spec.data.format": "text", "spec.data.lossOn": "assistant"}, "data.lossOn"),
    ({"spec.data.format": "text", "spec.data.lossOn": "all"}, None),
    ({"spec.data.format": "csv"}, "format"),
    ({"spec.data.maxLength": 7}, "maxLength"),
    ({"spec.data.templateArguments": {"enable_thinking": False, "reasoning_effort": "low", "budget": 1.5}}, None),
    ({"spec.data.templateArguments": {f"a{n}": n for n in range(33)}}, "templateArguments"),
    ({"spec.data.templateArguments": [True]}, "templateArguments"),
    ({"spec.method.type": "prefixes"}, "type"),
    ({"spec.method": {"type": "full", "lora": {"rank": 8}}}, "method.lora"),
    ({"spec.method.lora": {"rank": 0}}, "rank"),
    ({"spec.method.lora": {"dropout": 1}}, "dropout"),
    ({"spec.method.lora": {"rank": 8, "alpha": 0.5, "dropout": 0.1, "targetModules": ["q_proj"]}}, None),
    ({"spec.method": {"type": "dora", "lora": {"rank": 8, "rslora": True, "plusRatio": 16}}}, None),
    ({"spec.method": {"type": "prefix", "lora": {"rank": 8}}}, "belongs to method.type lora, qlora or dora"),
    ({"spec.method": {"type": "lora", "quantization": {"bits": 4}}}, "method.quantization belongs"),
    ({"spec.method": {"type": "qlora", "quantization": {"bits": 8, "type": "nf4"}}}, "belong to bits 4"),
    ({"spec.method": {"type": "qlora", "quantization": {"bits": 4, "type": "fp4", "doubleQuant": False}}}, None),
    ({"spec.method": {"type": "qlora", "quantization": {"bits": 3}}}, "bits"),
    ({"spec.method": {"type": "prompt", "promptTuning": {"virtualTokens": 8, "initText": "Answer:"}}}, None),
    ({"spec.method": {"type": "prefix", "promptTuning": {"initText": "Answer:"}}}, "initText belongs"),
    ({"spec.method": {"type": "full", "freeze": {"allButLast": 2}}}, None),
    ({"spec.method": {"type": "full", "freeze": {"allButLast": 2, "layers": [0]}}}, "either layers or allButLast"),
    ({"spec.method": {"type": "full", "freeze": {}}}, "either layers or allButLast"),
    ({"spec.method": {"type": "lora", "freeze": {"layers": [0]}}}, "method.freeze belongs"),
    ({"spec.method": {"type": "lora", "initFrom": {"uri": "pvc://models/adapter"}}}, None),
    ({"spec.method": {"type": "full", "initFrom": {"uri": "pvc://models/adapter"}}}, "name the model in spec.model"),
    ({"spec.method": {"type": "lora", "initFrom": {"uri": "pvc://models/adapter"}, "lora": {"rank": 8}}}, "brings the adapter's own"),
    ({"spec.data.format": "classification", "spec.data.lossOn": "all"}, "no meaning"),
    ({"spec.training": {"decayRatio": 0.1}}, "belongs to training.schedule wsd"),
    ({"spec.training": {"decayRatio": 0.1, "schedule": "wsd", "earlyStopping": {"metric": "loss", "patience": 3}}}, None),
    ({"spec.training": {"ema": 1}}, "ema"),
    ({"spec.compute": {"offload": {"optimizer": "nvme"}}}, "nvmePath and nvme go together"),
    ({"spec.compute": {"offload": {"nvmePath": "/nvme"}}}, "nvmePath and nvme go together"),
    ({"spec.compute": {"strategy": "zero3", "offload": {"parameters": "nvme", "nvmePath": "/nvme"}}}, None),
    ({"spec.training": {"epochs": 1, "maxSteps": 5}}, "training.epochs and training.maxSteps"),
    ({"spec.training": {"learningRate": 0}}, "learningRate"),
    ({"spec.training": {"learningRate": 2e-4, "maxSteps": 1, "seed": 0}}, None),
    ({"spec.training": {"precision": "fp16"}}, "precision"),
    ({"spec.compute": {"device": "cpu", "gpusPerNode": 1}}, "compute.gpusPerNode"),
    ({"spec.compute": {"device": "cuda", "gpusPerNode": 0}}, "device: cpu"),
    ({"spec.compute": {"gpusPerNode": 2, "processesPerNode": 3}}, "compute.processesPerNode"),
    ({"spec.compute": {"gpusPerNode": 0, "processesPerNode": 3}}, None),
    ({"spec.compute": {"processesPerNode": 3}}, "compute.processesPerNode"),
    ({"spec.compute": {"device": "cpu", "processesPerNode": 3}}, None),
    ({"spec.compute": {"nodes": 0}}, "nodes"),
    ({"spec.compute": {"gpuResource": "gpu"}}, "gpuResource"),
    ({"spec.compute": {"strategy": "zero9"}}, "strategy"),
    ({"spec.checkpoint": {"keep": 0}}, "keep"),
    ({"spec.evaluation": {"metrics": ["beauty"]}}, "metrics"),
    ({"spec.evaluation": {"metrics": ["accuracy", "f1"]}, "spec.model.task": "sequence-classification"}, None),
    ({"spec.retry": {"infra": -1}}, "infra"),
    ({"spec.readyWhen": "Never"}, "readyWhen"),
    ({"spec.ttlSecondsAfterFinished": -1}, "ttlSecondsAfterFinished"),
    ({"spec.pods": {"common": {"env": [{"name": "A", "value": "b"}], "resources": {"limits": {"cpu": 2, "memory": "1Gi"}}}}}, None),
    ({"spec.pods": {"train": {"imagePullPolicy": "Sometimes"}}}, "imagePullPolicy"),
    ({"spec.pods": {"common": {"image": ""}}}, "image"),
    ({"spec.output": MISSING}, "output"),
]  # fmt: skip


def _cell(combination: Combination) -> dict[str, Any]:
    """The first of each row's values."""
    chosen = {one.path: one.values[0] for one in combination.when}
    if "nvme" in chosen.values():
        chosen |= NVME
    lists = ("evaluation.metrics",)
    return {f"spec.{path}": [value] if path in lists else value for path, value in chosen.items()} | {
        "spec.compute.gpusPerNode": MISSING if chosen.get("compute.device") == "cpu" else 8
    }


SAME_VERDICT += [(_cell(combination), combination.why) for combination in COMBINATIONS]


@pytest.fixture(scope="module")
def path(api: Any) -> Iterator[str]:
    api.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    yield f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"
    api.delete(f"/api/v1/namespaces/{NAMESPACE}")


def refusal(api: Any, path: str, body: dict[str, Any]) -> str | None:
    """What the API server says against it; nothing is kept."""
    try:
        api.post(path, body, dryRun="All", fieldValidation="Strict")
    except Exception as error:
        if getattr(error, "code", None) not in (400, 422):
            raise
        return str(error)
    return None


def python_refusal(body: dict[str, Any]) -> str | None:
    try:
        FineTuneJob.parse(body)
    except ValidationError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("changes", "words"), SAME_VERDICT, ids=[json.dumps(list(c)) + str(n) for n, (c, _) in enumerate(SAME_VERDICT)]
)
def test_same_verdict_from_the_api_server_and_from_python(
    api: Any, path: str, changes: dict[str, Any], words: str | None
) -> None:
    body = laid_over(changes)
    there, here = refusal(api, path, body), python_refusal(body)
    if words is None:
        assert (there, here) == (None, None)
    else:
        assert there is not None, "the API server takes it"
        assert here is not None, "Python takes it"
        assert words in there


FIXED: list[tuple[str, dict[str, Any]]] = [
    ("spec.model", {"model": {"uri": "hf://org/other"}}),
    ("spec.model", {"model": {"revision": "v2"}}),
    ("spec.model", {"model": {"revision": None}}),
    ("spec.method", {"method": {"type": "full"}}),
    ("spec.method", {"method": {"lora": {"rank": 8}}}),
    ("spec.data", {"data": {"train": [{"uri": "pvc://data/other.jsonl"}]}}),
    ("spec.data", {"data": {"validation": None}}),
    ("spec.data", {"data": {"test": [{"uri": "pvc://data/test.jsonl"}]}}),
    ("spec.data", {"data": {"split": {"seed": 1}}}),
    ("spec.data", {"data": {"format": "messages"}}),
    ("spec.data", {"data": {"maxLength": 512}}),
    ("spec.data", {"data": {"packing": True}}),
    ("spec.data", {"data": {"template": "{{ messages }}"}}),
    ("spec.data", {"data": {"templateArguments": {"enable_thinking": False}}}),
    ("spec.model", {"model": {"task": "causal-lm"}}),
    ("spec.model", {"model": {"trustRemoteCode": True}}),
    ("spec.data", {"data": {"checks": {"minExamples": 5}}}),
    ("spec.training", {"training": {"epochs": 2}}),
    ("spec.evaluation", {"evaluation": {"baseline": False}}),
    ("spec.workspace", {"workspace": {"uri": "pvc://other"}}),
    ("spec.output", {"output": {"uri": "pvc://models/other"}}),
    ("spec.managedBy", {"managedBy": "finetune.dev/operator"}),
]
MAY_CHANGE: list[dict[str, Any]] = [
    {"model": {"secretRef": {"name": "rotated"}}},
    {"model": {"endpoint": "https://mirror"}},
    {"compute": {"nodes": 4}},
    {"pods": {"common": {"image": "x"}}},
    {"retry": {"infra": 9}},
    {"checkpoint": {"keep": 9}},
    {"scheduling": {"priorityClass": "high"}},
    {"suspend": True},
    {"readyWhen": "Completed"},
    {"ttlSecondsAfterFinished": 5},
    {"runToken": "2"},
]


@pytest.fixture(scope="module")
def stored(api: Any, path: str) -> str:
    api.post(path, GOOD)
    return f"{path}/job"


@pytest.mark.parametrize(("field", "change"), FIXED, ids=[json.dumps(c) for _, c in FIXED])
def test_what_is_fixed_once_the_job_exists(api: Any, stored: str, field: str, change: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=f"{field} cannot change once the job exists: copy the manifest"):
        api.call("PATCH", stored, {"spec": change}, "application/merge-patch+json", dryRun="All")


@pytest.mark.parametrize("change", MAY_CHANGE, ids=json.dumps)
def test_what_may_change(api: Any, stored: str, change: dict[str, Any]) -> None:
    api.call("PATCH", stored, {"spec": change}, "application/merge-patch+json", dryRun="All")


def test_nothing_is_green_before_it_was_looked_at(api: Any, stored: str) -> None:
    assert api.get(stored)["status"] == {"observedGeneration": -1}


def test_little_is_written_into_a_job_by_default(api: Any, stored: str) -> None:
    """Each default would be read, compared and stored with every later write, and fill the screen of `kubectl describe`."""
    added = {"mode": "Run", "suspend": False, "readyWhen": "Accepted", "training": {}, "evaluation": {}}
    assert api.get(stored)["spec"] == GOOD["spec"] | added


def test_the_status_is_no_part_of_the_spec(api: Any, path: str) -> None:
    body = laid_over({"status": {"phase": "Completed"}})
    assert api.post(path, {**body, "metadata": {"name": "with-status"}}, dryRun="All")["status"] == {
        "observedGeneration": -1
    }


@pytest.mark.parametrize("how", ["--server-side", "--validate=strict"])
def test_unknown_fields_are_refused_by_kubectl(api: Any, path: str, tmp_path: Path, kubectl: str, how: str) -> None:
    file = tmp_path / "job.json"
    file.write_text(
        json.dumps(
            laid_over({"spec.training": {"learningRat": 1}, "metadata.namespace": NAMESPACE, "metadata.name": "typo"})
        )
    )
    done = subprocess.run(
        [kubectl, "--kubeconfig", str(api.kubeconfig), "apply", how, "-f", str(file)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "learningRat" in done.stderr
    assert api.find(f"{path}/typo") is None


def test_kubectl_get_reads_well(api: Any, stored: str, kubectl: str) -> None:
    status = {
        "phase": "Training",
        "reason": "Training",
        "gpus": 16,
        "progress": {"summary": "42% 120/288", "step": 120, "loss": 1.5, "eta": "3m12s"},
    }
    api.merge(f"{stored}/status", {"status": status})
    command = [kubectl, "--kubeconfig", str(api.kubeconfig), "get", "ftj", "-n", NAMESPACE, "job"]
    header, row = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "LOSS", "ETA", "GPUS", "AGE"]
    assert row.split()[:7] == ["job", "Training", "42%", "120/288", "1.5", "3m12s", "16"]
    wide = subprocess.run([*command, "-o", "wide"], capture_output=True, text=True, check=True).stdout
    assert "hf://org/model" in wide
