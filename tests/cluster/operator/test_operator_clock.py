"""A node whose wall clock is set to another time: the operator notices nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.control

HOUR, DAY = 3600, 86400

JUMPING = """
import os, pathlib, sys, time
offset, wall = pathlib.Path(os.environ["CLOCK_OFFSET"]), time.time
time.time = lambda: wall() + float(offset.read_text() or 0)
from finetune_operator.__main__ import main
sys.exit(main())
"""


def test_wall_clock_jumps_change_no_decision(
    api: Any,
    jobs: Any,
    kubelet: Any,
    acts: Any,
    namespace: str,
    start_operator: Any,
    tmp_path: Path,
    eventually: Callable[..., Any],
) -> None:
    """With a running training, a retry that waits, a suspended and a finished job; also across a restart."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    settings = {"FINETUNE_NAMESPACES": namespace, "CLOCK_OFFSET": str(offset), "FINETUNE_RETRY_SECONDS": "300"}
    start = lambda: start_operator(api.kubeconfig, program=("-c", JUMPING), **settings)  # noqa: E731
    operator = start()

    def script(pod: Any) -> Any:
        if pod["metadata"]["labels"]["finetune.dev/job"] == "retrying":
            return acts.Act(1, "RuntimeError: no")
        return (acts.hold_training if pod["metadata"]["labels"]["finetune.dev/job"] == "running" else acts.succeed)(pod)

    kubelet.script = script
    began = time.monotonic()
    names = ("running", "retrying", "suspended", "finished")
    jobs.create("running", compute={"nodes": 2, "gpusPerNode": 4}, budget={"maxGpuHours": 2, "maxDuration": "1h"})
    jobs.create("retrying")
    jobs.create("suspended", suspend=True)
    jobs.create("finished", ttlSecondsAfterFinished=HOUR // 2)
    jobs.until("it runs", lambda: jobs.status("running").get("message") == "Training on 2 nodes")
    jobs.until("it waits", lambda: "starts again in" in jobs.status("retrying").get("message", ""))
    jobs.wait("Suspended", "suspended")
    jobs.wait("Completed", "finished")

    def state() -> dict[str, Any]:
        found = {
            (name, field): value for name in names for field, value in jobs.status(name).items() if field != "message"
        }
        for name in names:  # a message may count down
            found[name, "conditions"] = [{**c, "message": ""} for c in found[name, "conditions"]]
        return {**found, "children": [child["metadata"]["uid"] for child in jobs.children()]}

    def changes() -> dict[str, Any]:
        after = state()
        return {str(k): (before.get(k), after.get(k)) for k in before | after if before.get(k) != after.get(k)}

    def reconcile_all(number: int) -> None:
        before = operator.metric("controller_runtime_reconcile_total")
        for name in names:
            api.merge(f"{jobs.path}/{name}", {"metadata": {"annotations": {"touched": str(number)}}})
        eventually("reconciled", lambda: operator.metric("controller_runtime_reconcile_total") >= before + len(names))

    before = state()
    for number, jump in enumerate((HOUR, -HOUR, DAY, -DAY, 0)):
        offset.write_text(str(jump))
        reconcile_all(number)
        time.sleep(0.3)
        assert changes() == {}, f"after a jump of {jump} s"
    offset.write_text(str(DAY))
    assert operator.terminate() == 0
    operator = start()
    reconcile_all(9)
    assert changes() == {}, "after a start with a wrong clock"
    kubelet.script = acts.succeed
    status = jobs.wait("Completed", "running")
    assert "usage" in status, status
    assert status["usage"]["trainSeconds"] <= time.monotonic() - began + 2
    assert status["usage"]["gpuSeconds"] <= 8 * (time.monotonic() - began + 2)
    assert (
        abs(time.time() - time.mktime(time.strptime(status["completionTime"], "%Y-%m-%dT%H:%M:%SZ")) + time.timezone)
        < 60
    )
    assert operator.terminate() == 0
