"""Nothing that a pod says can keep the status from being written."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from finetune_operator.domain.diagnosis.termination_message import parse_termination_message, progress
from hypothesis import given
from hypothesis import strategies as st

BASE = {"stage": "train", "outcome": "succeeded", "exitCode": 0}


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ({"data": {"rows": 10**30, "tokens": 5}}, {"data": {"tokens": 5}}),
        ({"metrics": {"loss": math.nan, "eval_loss": 0.5, "x": math.inf}}, {"metrics": {"eval_loss": 0.5}}),
        (
            {"evaluation": {"metrics": [{"metric": "loss", "base": math.nan, "tuned": 1.0}]}},
            {"evaluation": {"metrics": [{"metric": "loss", "tuned": 1.0}]}},
        ),
        *(
            ({"lastCheckpoint": {"step": 3, "time": time}}, {"lastCheckpoint": {"step": 3}})
            for time in ("yesterday", "20260131T120000Z", "2026-01-31T12Z", "2026-01-31 12:00:00Z", "2026-01-31T12:00:00")
        ),
        (
            {"lastCheckpoint": {"step": 3, "time": "2026-01-31T12:00:00Z"}},
            {"lastCheckpoint": {"step": 3, "time": "2026-01-31T12:00:00Z"}},
        ),
        ({"artifacts": {"uri": "u" * 9000}}, {"artifacts": {"uri": "u" * 4096}}),
        ({"evaluation": {"metrics": [{"metric": str(n)} for n in range(99)]}}, {"evaluation": {"metrics": [{"metric": str(n)} for n in range(16)]}}),
    ],
)  # fmt: skip
def test_what_is_unfit_is_left_out(said: dict[str, Any], left: dict[str, Any]) -> None:
    message = parse_termination_message(json.dumps({**BASE, **said}))
    assert message is not None
    assert {name: message.wire()[name] for name in left} == left


def test_secrets_are_removed() -> None:
    cause = {"code": "Unknown", "message": "https://me:pw1@hub.example.org failed", "remedy": "password=pw2"}
    message = parse_termination_message(json.dumps({**BASE, "cause": cause, "artifacts": {"uri": "s3://b?sig=pw3"}}))
    assert message is not None
    shown = json.dumps(message.wire())
    assert "[removed]" in shown
    assert not [secret for secret in ("pw1", "pw2", "pw3") if secret in shown]
    read = progress(json.dumps({"stage": "train", "lastCheckpoint": {"step": 1, "path": "token=pw4"}}).encode())
    assert "pw4" not in str(read)


@pytest.mark.parametrize("text", ["", "Traceback", "[]", "7", "{}", '{"stage":"cook"}', "[" * 100_000, '{"a":' * 5000])
def test_what_is_no_message_is_none(text: str) -> None:
    assert parse_termination_message(text) is None
    assert progress(text.encode()) is None


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "time", "loss", "rows"]), inner)
    ),
    max_leaves=8,
)


@given(data=JSON, metrics=JSON, checkpoint=JSON, percent=JSON, content=st.binary(max_size=50))
def test_whatever_is_said_is_fit_or_nothing(
    data: Any, metrics: Any, checkpoint: Any, percent: Any, content: bytes
) -> None:
    said = {**BASE, "data": data, "metrics": metrics, "lastCheckpoint": checkpoint}
    message = parse_termination_message(json.dumps(said))
    if message is not None:
        json.dumps(message.wire(), allow_nan=False)
    told = progress(json.dumps({"stage": "train", "percent": percent, "lastCheckpoint": checkpoint}).encode())
    assert told is None or 0 <= told.percent <= 100
    progress(content)


@pytest.mark.parametrize(
    "model",
    [{"layers": 2**53}, {"encoderLayers": 2**53}, {"hiddenSize": 2**53, "intermediateSize": 2**53}],
    ids=["layers", "encoder layers", "sizes"],
)
def test_facts_that_nobody_believes_make_no_plan(make_world: Any, prepared: Any, model: dict[str, Any]) -> None:
    """Neither the operator's memory nor a status holds what would come of them, and there is nothing to approve."""
    world = make_world(budget={"approval": "Manual"})
    world.settle()
    world.run("prepare")
    prepared["facts"]["model"] |= model
    world.finish("prepare", **prepared)
    world.now += 10
    world.settle()
    assert "digest" not in world.status.get("plan", {})
    assert world.status["phase"] == "AwaitingApproval"
    assert "reported none" in world.status["message"]


def test_a_plan_that_can_no_longer_be_made_is_not_the_approved_one(
    make_world: Any, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(budget={"approval": "Manual"})
    world.settle()
    world.run("prepare")
    world.finish("prepare", **prepared)
    world.settle()

    def none(*_: Any, **__: Any) -> None:
        raise OverflowError

    monkeypatch.setattr("finetune_operator.domain.admission.plan_admission.draw", none)
    world.edit(
        compute={"device": "cpu", "processesPerNode": 2},
        budget={"approval": "Manual", "approvedPlan": world.status["plan"]["digest"]},
    )
    world.settle()
    assert world.status["phase"] == "AwaitingApproval"
    assert "digest" not in world.status["plan"]
