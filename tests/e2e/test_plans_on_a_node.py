"""What stands between data and GPUs, on real pods: the plan, its approval, its budget, and what was decided for the user."""

from __future__ import annotations

import html
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.node, pytest.mark.timeout(30 * 60)]

Manifest = Callable[..., dict[str, Any]]


def conditions(job: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in job["status"].get("conditions", [])}


def patch(cluster: Any, namespace: str, name: str, **spec: Any) -> None:
    cluster.kubectl("patch", "-n", namespace, f"ftj/{name}", "--type=merge", "-p", json.dumps({"spec": spec}))


def test_a_plan_is_made_approved_stopped_by_its_budget_and_ends_well(
    cluster: Any, team: str, manifest: Manifest, tmp_path: Path
) -> None:
    """One job with every hyperparameter left out, through all that stands between data and result: mode Plan, a manual
    approval, a budget that is used up in the middle, and a report that says why each value is what it is."""
    name = "left-out"
    some = "import pathlib; rows = pathlib.Path('data/train.jsonl').read_text().splitlines(True); pathlib.Path('data/some.jsonl').write_text(''.join(rows[:1000]))"
    cluster.in_claim(team, some)
    train = [{"uri": "pvc://finetune-quickstart/data/some.jsonl"}]
    body = manifest(name, mode="Plan", budget={"approval": "Manual", "gpuHourPrice": 2}, data={"train": train})
    body["spec"]["method"] = {"type": "lora"}
    del body["spec"]["training"]
    cluster.apply(body, team)
    job = cluster.until_phase(name, team, "Completed")
    assert job["status"]["reason"] == "Planned"
    assert conditions(job) | {"Complete": "True", "DataValid": "True"} == conditions(job)
    patch(cluster, team, name, mode="Run")

    job = cluster.until(
        "it waits for approval",
        lambda: (lambda j: j if j["status"].get("phase") == "AwaitingApproval" else None)(cluster.job(name, team)),
    )
    plan = job["status"]["plan"]
    assert conditions(job)["PlanAccepted"] == "False"
    assert plan["digest"] in job["status"]["message"]
    assert not cluster.get("jobs", team, "-l", f"finetune.dev/job={name},finetune.dev/stage=train")["items"]
    choices = {choice["field"]: choice for choice in plan["choices"]}
    for field in ("training.learningRate", "training.globalBatchSize", "training.epochs", "training.schedule"):
        group, leaf = field.split(".")
        shown = json.loads(job["status"]["state"])["effective"][group][leaf]
        assert choices[field]["why"], field
        assert choices[field]["value"] in (str(shown), f"{shown:g}" if isinstance(shown, float) else shown), field
    approved = cluster.run("ftj", "approve", name, "-n", team, "--plan", plan["digest"], "--yes")
    assert plan["digest"] in approved.stdout + approved.stderr

    with cluster.frozen(team, name):
        assert len(cluster.pods(team, name, "prepare")) == 1, "going on from the plan prepared the data again"
        patch(cluster, team, name, budget={"maxDuration": "5s"})
    job = cluster.until_phase(name, team, "Suspended", seconds=300)
    assert job["status"]["reason"] == "BudgetExhausted"
    assert conditions(job) | {"Stalled": "True", "Suspended": "True"} == conditions(job)
    kept = job["status"]["lastCheckpoint"]["step"]
    assert kept > 0
    assert f"step {kept}" in job["status"]["message"]
    assert "maxDuration" in job["status"]["message"]
    assert not [p for p in cluster.pods(team, name, "train") if p["status"]["phase"] in ("Running", "Pending")]

    patch(cluster, team, name, budget={"maxDuration": "100h"})
    job = cluster.until_phase(name, team, "Completed", seconds=600)
    assert job["status"]["reason"] == "Completed"
    assert max(a.get("resumedFromStep") or 0 for a in job["status"]["attempts"]) == kept
    assert job["status"]["plan"]["steps"] == job["status"]["progress"]["step"], "planned and actual steps differ"
    exact = next(row for row in job["status"]["evaluation"]["metrics"] if row["metric"] == "exact-match")
    assert exact["base"] <= 0.10
    assert exact["tuned"] >= 0.90, "the decided values do not teach what the quickstart's own do"

    folder = tmp_path / "pulled"
    cluster.run("ftj", "pull", name, str(folder), "-n", team)
    report = html.unescape((folder / "report.html").read_text())
    for field, choice in choices.items():
        assert field in report
        assert choice["why"] in report, f"the report does not say why of {field}"


def test_a_plan_beyond_its_budget_is_refused_with_one_sentence_everywhere(
    cluster: Any, team: str, manifest: Manifest, tmp_path: Path
) -> None:
    name = "too-dear"
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(manifest(name, budget={"maxDuration": "1s"})))
    result = cluster.run("ftj", "run", str(file), "-n", team, check=False)
    assert result.returncode == 3, result.stdout + result.stderr
    job = cluster.job(name, team)
    assert (job["status"]["phase"], job["status"]["failure"]["code"]) == ("Failed", "OverBudget")
    sentence = job["status"]["failure"]["message"]
    assert "maxDuration" in sentence
    assert conditions(job) | {"PlanAccepted": "False", "Failed": "True"} == conditions(job)
    said = " ".join((result.stdout + result.stderr).split())
    assert sentence in said
    events = " ".join(cluster.kubectl("describe", "-n", team, f"ftj/{name}").split())
    assert sentence in events
    assert sentence in job["status"]["message"]
    assert not cluster.get("jobs", team, "-l", f"finetune.dev/job={name},finetune.dev/stage=train")["items"]


def test_validate_and_plan_say_on_a_laptop_what_the_cluster_says(cluster: Any, team: str, tmp_path: Path) -> None:
    """The same data and model, by the claim's folder on this machine, without a kubeconfig."""
    volume = cluster.get("pvc/finetune-quickstart", team)["spec"]["volumeName"]
    path = cluster.get(f"pv/{volume}", team)["spec"].get("hostPath", {}).get("path")
    if path is None:
        pytest.skip("the claim lies on another machine")
    (tmp_path / "finetune-quickstart").symlink_to(path)
    env = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"} | {"HOME": str(tmp_path)}
    command = ["ftj", "plan", str(ROOT / "examples" / "quickstart.yaml"), "--claims", str(tmp_path), "-o", "json"]
    result = subprocess.run(command, env=env | {"PATH": cluster.env["PATH"]}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)["plan"]
    there = cluster.job("quickstart", "default")["status"]["plan"]
    assert (plan["steps"], plan["tokens"], plan["trainableParameters"]) == (
        there["steps"],
        there["tokens"],
        there["trainableParameters"],
    )
    command = ["ftj", "validate", str(ROOT / "examples" / "quickstart.yaml"), "--claims", str(tmp_path)]
    result = subprocess.run(command, env=env | {"PATH": cluster.env["PATH"]}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
