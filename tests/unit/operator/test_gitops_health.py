"""Statuses as the operator writes them, seen by kstatus (Flux, Helm) and by Argo CD: the table of docs/gitops.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lupa
import pytest
from finetune_operator.domain.observed import Refusal

SCRIPT = Path(__file__).resolve().parents[3] / "charts" / "finetune-operator" / "files" / "argocd" / "health.lua"


def argocd(body: dict[str, Any]) -> str:
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    run = lua.eval(f"function(obj)\n{SCRIPT.read_text()}\nend")
    return str(run(lua.table_from(body, recursive=True))["status"])


def kstatus(body: dict[str, Any]) -> str:
    """The rules of sigs.k8s.io/cli-utils/pkg/kstatus for custom resources."""
    status = body.get("status", {})
    if status.get("observedGeneration", body["metadata"]["generation"]) != body["metadata"]["generation"]:
        return "InProgress"
    is_true = {c["type"]: c["status"] == "True" for c in status.get("conditions", [])}
    if is_true.get("Stalled"):
        return "Failed"
    if is_true.get("Reconciling") or is_true.get("Ready") is False:
        return "InProgress"
    return "Current"


def refused(world: Any, code: int, message: str) -> None:
    name = world.plan().create[0]["metadata"]["name"]
    world.refusals["Job", name] = Refusal("Job", name, code, message, due=False)
    world.step()


def without_a_node(world: Any, stage: str) -> None:
    world.pod(stage, unschedulable="0/3 nodes are available: 3 Insufficient cpu.", unschedulable_since=world.now)
    world.now += 3600
    world.settle()
    assert world.status["reason"] == "Unschedulable"


def suspended(world: Any) -> None:
    world.edit(suspend=True)
    world.settle()


def failed(world: Any) -> None:
    world.settle()
    world.end("prepare", 3)
    world.fail("prepare")
    world.now += 10
    world.settle()


def spent(world: Any) -> None:
    world.through("prepare")
    world.run("train")
    world.settle()
    world.now += 3600
    world.settle()
    world.end("train", 5)
    world.set("train", suspended_since=world.now)
    world.settle()


CASES: dict[str, tuple[dict[str, Any], Callable[[Any], Any], tuple[str, str]]] = {
    "checks its data": ({}, lambda w: w.settle(), ("InProgress", "Progressing")),
    "no node before the plan": ({}, lambda w: (w.settle(), without_a_node(w, "prepare")), ("InProgress", "Progressing")),
    "no quota before the plan": ({}, lambda w: refused(w, 403, "exceeded quota: x"), ("InProgress", "Progressing")),
    "a denied create": ({}, lambda w: refused(w, 403, "denied by policy"), ("Failed", "Degraded")),
    "accepted": ({}, lambda w: w.through("prepare"), ("Current", "Healthy")),
    "no node for the training": ({}, lambda w: (w.through("prepare"), without_a_node(w, "train")), ("Current", "Healthy")),
    "accepted, but to be completed": ({"readyWhen": "Completed"}, lambda w: w.through("prepare"), ("InProgress", "Progressing")),
    "waits for approval": ({"budget": {"approval": "Manual"}}, lambda w: w.through("prepare"), ("InProgress", "Suspended")),
    "planned": ({"mode": "Plan"}, lambda w: w.through("prepare"), ("Current", "Healthy")),
    "its budget is used up": ({"budget": {"maxDuration": "1h"}}, spent, ("Failed", "Degraded")),
    "suspended": ({}, suspended, ("Current", "Suspended")),
    "suspended, but to be completed": ({"readyWhen": "Completed"}, suspended, ("InProgress", "Suspended")),
    "completed": ({}, lambda w: w.through("prepare", "train", "publish"), ("Current", "Healthy")),
    "failed": ({}, failed, ("Failed", "Degraded")),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "story", "expected"), CASES.values(), ids=CASES)
def test_health(make_world: Any, spec: dict[str, Any], story: Callable[[Any], Any], expected: tuple[str, str]) -> None:
    world = make_world(**spec)
    story(world)
    assert (kstatus(world.body), argocd(world.body)) == expected, world.status


def test_no_image_is_stalled(make_world: Any) -> None:
    world = make_world()
    world.config.defaults.pods.image = None
    world.settle()
    assert (kstatus(world.body), argocd(world.body)) == ("Failed", "Degraded")
