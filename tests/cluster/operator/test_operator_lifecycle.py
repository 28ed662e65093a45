"""A job's life on a real API server with real controllers."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.control, pytest.mark.usefixtures("operator")]


def test_three_stages_one_after_the_other(jobs: Any, kubelet: Any) -> None:
    jobs.create(compute={"device": "cpu", "nodes": 2})
    status = jobs.wait("Completed")
    assert [(a["stage"], a["outcome"]) for a in status["attempts"]] == [
        ("prepare", "Succeeded"),
        ("train", "Succeeded"),
        ("publish", "Succeeded"),
    ]
