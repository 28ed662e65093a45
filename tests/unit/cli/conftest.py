"""Manifests and statuses to show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from finetune_api.finetunejob import FineTuneJob
from finetune_cli import view

BODY: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "bot", "namespace": "team-a", "uid": "u-1", "generation": 1},
    "spec": {
        "model": {"uri": "pvc://models/base"},
        "method": {"type": "lora"},
        "data": {"train": [{"uri": "pvc://datasets/bot.jsonl"}]},
        "compute": {"nodes": 2, "device": "cpu"},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://models/bot"},
    },
}


@pytest.fixture
def body() -> dict[str, Any]:
    """A FineTuneJob as the API server gives it, to be changed at will."""
    return copy.deepcopy(BODY)


Job = Callable[..., FineTuneJob]


@pytest.fixture
def job(body: dict[str, Any]) -> Job:
    """A job with these fields of status."""

    def make(**status: Any) -> FineTuneJob:
        return view.parse({**body, "status": {"observedGeneration": 1, **status}})

    return make
