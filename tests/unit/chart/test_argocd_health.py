"""Argo CD's health script against the statuses that the operator writes."""

from __future__ import annotations

from typing import Any

import lupa
import pytest

from .conftest import CHART


def health(status: dict[str, Any] | None, generation: int = 1) -> tuple[str, str]:
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    job: dict[str, Any] = {"metadata": {"generation": generation}}
    if status is not None:
        job["status"] = status
    run = lua.eval(f"function(obj)\n{(CHART / 'files' / 'argocd' / 'health.lua').read_text()}\nend")
    result = run(lua.table_from(job, recursive=True))
    return result["status"], result["message"]


def status(*conditions: tuple[str, str], observed: int = 1, **fields: Any) -> dict[str, Any]:
    listed = [{"type": kind, "status": value, "reason": kind, "message": f"about {kind}"} for kind, value in conditions]
    return {"observedGeneration": observed, "conditions": listed, **fields}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(None, "Progressing", id="no status yet"),
        pytest.param({"observedGeneration": -1}, "Progressing", id="not reconciled yet"),
        pytest.param(status(("Complete", "True"), observed=0), "Progressing", id="spec changed since"),
        pytest.param(status(("Ready", "False"), ("Reconciling", "True")), "Progressing", id="starting"),
        pytest.param(status(("Ready", "True")), "Healthy", id="accepted is enough"),
        pytest.param(
            status(("Ready", "False"), ("Running", "True"), ("Reconciling", "True")),
            "Progressing",
            id="completion asked for",
        ),
        pytest.param(status(("Suspended", "True")), "Suspended", id="suspended"),
        pytest.param(status(("Suspended", "False"), ("Ready", "True")), "Healthy", id="resumed"),
        pytest.param(status(("Complete", "True"), ("Ready", "True")), "Healthy", id="complete"),
        pytest.param(status(("Failed", "True"), ("Stalled", "True"), ("Ready", "False")), "Degraded", id="failed"),
        pytest.param(status(("Stalled", "True"), ("Ready", "False")), "Degraded", id="stalled"),
    ],
)
def test_health(given: dict[str, Any] | None, expected: str) -> None:
    assert health(given)[0] == expected


WAITING = {"type": "PlanAccepted", "status": "False", "reason": "AwaitingApproval", "message": "approve it"}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param(
            [("Ready", "False"), ("Reconciling", "True")], ("Suspended", "approve it"), id="waits for approval"
        ),
        pytest.param([("Ready", "True"), ("Complete", "True")], ("Healthy", "about Complete"), id="planned"),
        pytest.param([("Suspended", "True")], ("Suspended", "about Suspended"), id="suspended before it"),
        pytest.param(
            [("Suspended", "True"), ("Stalled", "True")], ("Degraded", "about Stalled"), id="its budget is spent"
        ),
    ],
)
def test_a_plan_that_waits_for_approval(conditions: list[tuple[str, str]], expected: tuple[str, str]) -> None:
    given = status(*conditions)
    given["conditions"].append(WAITING)
    assert health(given) == expected


def test_a_plan_beyond_its_budget_waits_for_nobody() -> None:
    given = status(("Failed", "True"), ("Stalled", "True"), ("Ready", "False"))
    given["conditions"].append(WAITING | {"reason": "OverBudget"})
    assert health(given)[0] == "Degraded"


def test_the_message_is_the_conditions() -> None:
    assert health(status(("Failed", "True"), ("Stalled", "True"))) == ("Degraded", "about Failed")
    waiting = status(("Ready", "False"), ("Reconciling", "True"), phase="Preparing", message="0/3 nodes are available")
    assert health(waiting) == ("Progressing", "0/3 nodes are available")
