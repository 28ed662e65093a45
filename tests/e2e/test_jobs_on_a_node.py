"""Whole jobs on real pods: what the README promises, seen on a node."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PULLED = ROOT / "out" / "quickstart"
CLAIM = "finetune-quickstart"

pytestmark = [pytest.mark.node, pytest.mark.timeout(50 * 60)]

Manifest = Callable[..., dict[str, Any]]

# What a user with nothing but transformers and peft does with the adapter; it knows nothing of this project.
PLAIN_PEFT = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, samples = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
answers = []
for prompt in json.loads(samples):
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=40, do_sample=False)
    answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip())
print(json.dumps(answers))
"""


def conditions(job: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in job["status"].get("conditions", [])}


def metric(job: dict[str, Any], name: str) -> dict[str, float]:
    return next(row for row in job["status"]["evaluation"]["metrics"] if row["metric"] == name)


def claim_on_this_machine(cluster: Any, namespace: str) -> Path | None:
    volume = cluster.get(f"pvc/{CLAIM}", namespace)["spec"]["volumeName"]
    path = cluster.get(f"pv/{volume}", namespace)["spec"].get("hostPath", {}).get("path")
    return Path(path) if path else None


def test_the_quickstart_ends_with_an_adapter_that_plain_peft_loads(cluster: Any) -> None:
    job = cluster.job("quickstart", "default")
    assert job["status"]["phase"] == "Completed"
    assert conditions(job) | {
        "Complete": "True",
        "Ready": "True",
        "Published": "True",
        "DataValid": "True",
    } == conditions(job)
    assert "Stalled" not in conditions(job)
    assert job["status"]["evaluation"]["generatedRows"] >= 200
    exact = metric(job, "exact-match")
    assert exact["base"] <= 0.10
    assert exact["tuned"] >= 0.95
    assert metric(job, "loss")["tuned"] < metric(job, "loss")["base"]
    assert job["status"]["progress"]["step"] == job["status"]["plan"]["steps"]
    assert "exact-match" in cluster.quickstart_output
    assert "What to try next" in cluster.quickstart_output

    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=PULLED, check=True)
    report = (PULLED / "report.html").read_text()
    assert "exact-match" in report.lower() or "exact match" in report.lower()
    assert 'src="http' not in report
    base = claim_on_this_machine(cluster, "default")
    if base is None:
        pytest.skip("the base model lies on a claim of another machine")
    samples = json.loads((PULLED / "evaluation.json").read_text())["samples"]
    prompts = [sample["prompt"] for sample in samples]
    result = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_PEFT, str(base / "base"), str(PULLED), json.dumps(prompts)],
        text=True,
        capture_output=True,
        cwd="/",
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [sample["tuned"].strip() for sample in samples]


def test_the_gang_was_two_unprivileged_pods_under_deepspeed(cluster: Any) -> None:
    pods = cluster.pods("default", "quickstart", "train")
    assert len(pods) == 2
    for pod in pods:
        security = pod["spec"]["securityContext"] | pod["spec"]["containers"][0]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["readOnlyRootFilesystem"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
    logs = cluster.run("ftj", "logs", "quickstart", "--stage", "train").stdout
    assert "DeepSpeedEngine over 2 ranks: strategy zero2" in logs
    cluster.in_claim("default", "import ctypes; ctypes.CDLL('libibverbs.so.1')")  # NCCL opens it for RDMA
    described = cluster.kubectl("describe", "ftj", "quickstart")
    for reason in ("Completed", "Published"):
        assert reason in described, described[-3000:]


def test_a_job_goes_on_through_eviction_upgrade_and_reinstall(cluster: Any, team: str, manifest: Manifest) -> None:
    name = "survivor"
    # Half a core each: slow enough for what happens to it meanwhile, on a fast machine too.
    limits = {"limits": {"cpu": "500m", "memory": "4Gi"}, "requests": {"cpu": "250m", "memory": "512Mi"}}
    body = manifest(
        name,
        training={"epochs": 1, "globalBatchSize": 16},
        checkpoint={"everySteps": 5},
        compute={"strategy": "zero3"},
        pods={"train": {"resources": limits}},
    )
    cluster.apply(body, team)
    cluster.in_training(team, name, "lastCheckpoint")
    before = {pod["metadata"]["uid"] for pod in cluster.pods(team, name, "train")}

    chart = str(ROOT / "charts" / "finetune-operator")
    cluster.run(
        "helm",
        "upgrade",
        "finetune-operator",
        chart,
        "-n",
        "finetune-system",
        "--reuse-values",
        "--set",
        "podAnnotations.upgraded=yes",
        "--wait",
    )
    job = cluster.job(name, team)
    assert job["status"]["phase"] == "Training", job["status"]
    assert {pod["metadata"]["uid"] for pod in cluster.pods(team, name, "train")} == before, (
        "an upgrade of the operator touched running pods"
    )

    victim = next(
        p
        for p in cluster.pods(team, name, "train")
        if p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "1"
    )
    cluster.kubectl("delete", "pod", "-n", team, victim["metadata"]["name"], "--wait=false")

    def resumed() -> dict[str, Any] | None:
        job = cluster.job(name, team)
        assert job["status"]["phase"] not in ("Failed", "Completed"), job["status"]
        return job if any((a.get("resumedFromStep") or 0) > 0 for a in job["status"].get("attempts", [])) else None

    job = cluster.until("training goes on from a checkpoint", resumed)
    assert "infraFailures" not in json.loads(job["status"]["state"]), "an eviction was counted as an error"

    values = cluster.run("helm", "get", "values", "finetune-operator", "-n", "finetune-system", "-o", "json").stdout
    cluster.run("helm", "uninstall", "finetune-operator", "-n", "finetune-system", "--wait")
    assert cluster.job(name, team)["metadata"]["uid"] == job["metadata"]["uid"], "uninstalling deleted a user's job"
    cluster.run(
        "helm", "install", "finetune-operator", chart, "-n", "finetune-system", "--values", "-", "--wait", stdin=values
    )

    cluster.kubectl("wait", "-n", team, "--for=condition=Complete", f"ftj/{name}", "--timeout=600s")
    job = cluster.job(name, team)
    assert job["status"]["progress"]["step"] == job["status"]["plan"]["steps"]
    assert metric(job, "exact-match")["tuned"] >= 0.95

    cluster.kubectl("delete", "-n", team, "ftj", name, "--wait")
    cluster.apply(manifest(name), team)
    again = cluster.until_phase(name, team, "Preparing", "Training")
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    assert [a["stage"] for a in again["status"].get("attempts", [])].count("train") <= 1
    assert not again["status"].get("evaluation")
    cluster.kubectl("delete", "-n", team, "ftj", name, "--wait")
    cluster.until(
        "its children are gone",
        lambda: not cluster.get("jobs,pods,services", team, "-l", f"finetune.dev/job={name}")["items"],
        180,
    )


def test_full_fine_tuning_with_two_processes_in_a_pod_is_suspended_and_goes_on(
    cluster: Any, team: str, manifest: Manifest
) -> None:
    name = "all-weights"
    body = manifest(
        name,
        training={"maxSteps": 40, "learningRate": 0.0005},
        compute={"nodes": 1, "processesPerNode": 2, "strategy": "fsdp2"},
        checkpoint={"everySteps": 5},
        evaluation={"metrics": ["loss", "perplexity"]},
    )
    body["spec"]["method"] = {"type": "full"}
    body["spec"]["training"].pop("epochs", None)
    cluster.apply(body, team)
    with cluster.frozen(team, name):
        cluster.kubectl("patch", "-n", team, f"ftj/{name}", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    job = cluster.until_phase(name, team, "Suspended", seconds=300)
    cluster.until(
        "its pods are gone",
        lambda: not [p for p in cluster.pods(team, name, "train") if p["status"]["phase"] in ("Running", "Pending")],
    )
    assert conditions(job)["Suspended"] == "True"
    cluster.kubectl("patch", "-n", team, f"ftj/{name}", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    job = cluster.until_phase(name, team, "Completed")
    assert job["status"]["progress"]["step"] == 40
    assert "over 2 ranks: strategy fsdp2" in cluster.run("ftj", "logs", name, "-n", team, "--stage", "train").stdout
    assert metric(job, "loss")["tuned"] < metric(job, "loss")["base"]


def test_bad_data_fails_at_once_with_file_and_line_and_trains_nothing(
    cluster: Any, team: str, manifest: Manifest, tmp_path: Path
) -> None:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(20)]
    del rows[6]["completion"]
    text = "\n".join(json.dumps(row) for row in rows)
    cluster.in_claim(team, f"import pathlib; pathlib.Path('data/bad.jsonl').write_text({text!r})")
    file = tmp_path / "bad.yaml"
    file.write_text(json.dumps(manifest("bad-data", data={"train": [{"uri": f"pvc://{CLAIM}/data/bad.jsonl"}]})))
    result = cluster.run("ftj", "run", str(file), "-n", team, check=False)
    assert result.returncode == 3, result.stdout + result.stderr
    job = cluster.job("bad-data", team)
    assert job["status"]["phase"] == "Failed"
    assert job["status"]["failure"]["code"] == "InvalidData"
    assert "bad.jsonl" in job["status"]["failure"]["message"]
    assert "7" in job["status"]["failure"]["message"]
    sentence = job["status"]["failure"]["message"]
    events = cluster.get("events", team, "--field-selector", "involvedObject.name=bad-data")["items"]
    places = {
        "ftj": result.stdout + result.stderr,
        "kubectl get": job["status"]["message"],
        "event": " ".join(event["message"] for event in events),
    }
    if (claim := claim_on_this_machine(cluster, team)) is not None:
        run = claim / "work" / job["metadata"]["uid"] / job["status"]["run"]
        places["report"] = html.unescape((run / "data-report.html").read_text())
    for place, text in places.items():
        assert " ".join(sentence.split()) in " ".join(text.split()), f"{place} says it otherwise"
    assert job["status"]["data"]["findings"][0]["code"] == "MissingField"
    assert conditions(job) | {"Failed": "True", "Stalled": "True", "Ready": "False"} == conditions(job)
    assert not cluster.pods(team, "bad-data", "train")
    assert len(cluster.pods(team, "bad-data", "prepare")) == 1, "bad input was tried again"


def test_what_a_first_user_meets_is_said_within_half_a_minute(cluster: Any, team: str, manifest: Manifest) -> None:
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "never-bound"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "no-such-class",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
        team,
    )
    troubles = {
        "no-image": ({"pods": {"common": {"image": "localhost:1/no-such-image:1"}}}, "ImagePull", "no-such-image"),
        "no-secret": (
            {
                "pods": {
                    "common": {
                        "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "no-such-secret", "key": "x"}}}]
                    }
                }
            },
            "Secret",
            "no-such-secret",
        ),
        "no-claim": ({"data": {"train": [{"uri": "pvc://no-such-claim/x.jsonl"}]}}, "Claim", "no-such-claim"),
        "unbound": ({"data": {"train": [{"uri": "pvc://never-bound/x.jsonl"}]}}, "Claim", "never-bound"),
        "no-node": ({"pods": {"common": {"nodeSelector": {"no-such": "node"}}}}, "Unschedulable", "affinity/selector"),
    }
    for name, (groups, _, _) in troubles.items():
        cluster.apply(manifest(name, **groups), team)
    start = time.monotonic()
    missing = dict(troubles)
    seen = {}
    while missing and time.monotonic() - start < 30:
        for name, (_, reason, text) in list(missing.items()):
            status = cluster.job(name, team)["status"]
            seen[name] = (status.get("reason"), status.get("message"))
            if reason in (status.get("reason") or "") and text in (status.get("message") or ""):
                del missing[name]
        time.sleep(0.5)
    assert not missing, f"not said within 30 s: { {name: seen[name] for name in missing} }"
    for name in troubles:
        assert cluster.job(name, team)["status"]["phase"] != "Failed", "the user can still mend it"
        cluster.kubectl("delete", "-n", team, "ftj", name, "--wait=false")
