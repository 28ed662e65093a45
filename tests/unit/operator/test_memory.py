"""A stage that runs out of memory takes one notch down the ladder for each attempt."""

from __future__ import annotations

import json
from typing import Any

import pytest


def out_of_memory(world: Any, words: Any, reason: str = "Error") -> None:
    world.run("train")
    world.settle()
    cause = {"code": "OutOfMemory", "message": "The GPU ran out of memory in the backward pass"}
    text = words("train", "failed", 4, cause=cause, step=9, lastCheckpoint={"step": 8}) if reason == "Error" else ""
    world.end("train", 4 if reason == "Error" else 137, text=text, reason=reason)
    world.fail("train")
    drawn = world.settle()
    if drawn.requeue_after is not None:
        world.now += drawn.requeue_after
        world.settle()


def config_of(world: Any) -> dict[str, Any]:
    return json.loads(world.run_config("train"))["spec"]  # type: ignore[no-any-return]


def asked(world: Any) -> dict[str, Any]:
    manifest = world.manifests["Job", world.job("train").name]
    return manifest["spec"]["template"]["spec"]["containers"][0]["resources"]  # type: ignore[no-any-return]


@pytest.fixture
def training(make_world: Any, prepared: Any) -> Any:
    prepared["facts"]["model"] |= {
        "hiddenSize": 4096, "layers": 32, "heads": 32, "kvHeads": 8, "headDim": 128,
        "intermediateSize": 14336, "vocabSize": 128256, "parameters": 8_000_000_000,
    }  # fmt: skip
    world = make_world(compute={"gpusPerNode": 1, "gpuType": "nvidia-h100-80gb"}, retry={"oom": 2})
    world.prepare(**prepared)
    return world


def test_each_attempt_needs_less_memory_until_the_retries_are_used(training: Any, words: Any) -> None:
    world = training
    seen = [config_of(world)]
    for _ in range(2):
        out_of_memory(world, words)
        seen.append(config_of(world))
    assert world.book[-3:] == [("train", 1, "Failed"), ("train", 2, "Failed"), ("train", 3, "Running")]
    assert seen[0] != seen[1] != seen[2]
    assert len({spec["training"]["globalBatchSize"] for spec in seen if "globalBatchSize" in spec["training"]}) <= 1
    assert "infraFailures" not in world.state
    notch = world.state["notches"][0]
    assert notch["sentence"] in world.status["attempts"][1]["message"]
    assert any(event.reason == "MemoryReduced" and "resumes from step 8" in event.text for event in world.events)
    out_of_memory(world, words)
    failure = world.status["failure"]
    assert (world.status["phase"], failure["code"]) == ("Failed", "OutOfMemory")
    assert "spec.retry.oom 2 is used up" in failure["remedy"]


def test_a_killed_container_gets_more_host_memory(training: Any, words: Any) -> None:
    world = training
    before = asked(world)
    out_of_memory(world, words, "OOMKilled")
    assert asked(world)["requests"]["memory"] != before["requests"]["memory"]
    assert world.state["notches"][0]["kind"] == "host"
    assert config_of(world).get("training") is not None


@pytest.mark.parametrize(("most", "raised"), [(None, "8526Mi"), ("7Gi", "7Gi"), ("5Gi", None)])
def test_host_memory_is_raised_to_what_the_largest_node_can_allocate(
    training: Any, words: Any, most: str | None, raised: str | None
) -> None:
    world = training
    world.edit(retry={"oom": 1})
    if most is not None:
        state = json.loads(world.body["status"]["state"])
        state["defaults"]["maxPodMemory"] = most
        world.body["status"]["state"] = json.dumps(state)
    assert asked(world)["requests"]["memory"] == "5684Mi", "what the plan says"
    assert world.status["plan"]["hostMemoryPerPod"] == "5.6Gi"
    out_of_memory(world, words, "OOMKilled")
    if raised is None:
        assert (world.status["phase"], "the most that the platform allows" in world.status["failure"]["remedy"]) == (
            "Failed",
            True,
        )
    else:
        assert asked(world)["requests"]["memory"] == raised


def test_healing_can_be_turned_off(make_world: Any, prepared: Any, words: Any) -> None:
    world = make_world(retry={"oom": 0})
    world.prepare(**prepared)
    out_of_memory(world, words)
    assert (world.status["phase"], world.status["failure"]["code"]) == ("Failed", "OutOfMemory")
    assert "spec.retry.oom is 0" in world.status["failure"]["remedy"]
