"""A run on a workspace in a temporary folder, and nothing of this machine's own credentials, proxies and waiting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import RunConfig
from finetune_api.effective import resolve
from finetune_api.location import Location
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer import sources
from finetune_trainer.sources import transfer

FIELD = "spec.data.train[0].uri"


class Workspace:
    """Claims `scratch` (the workspace) and `data`, and runs that share them."""

    def __init__(self, claims: Path) -> None:
        self.claims = claims
        for name in ("scratch", "data"):
            (claims / name).mkdir(parents=True)

    @property
    def cache(self) -> Path:
        return self.claims / "scratch" / "cache"

    def config(self, *train: dict[str, Any], run: str = "first", **groups: Any) -> RunConfig:
        spec = {
            "model": {"uri": "pvc://data/model"},
            "method": {"type": "lora"},
            "data": {"train": list(train) or [{"uri": "pvc://data/rows.jsonl"}]},
            "compute": {"device": "cpu"},
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://data/out"},
            **groups,
        }
        return RunConfig(
            job={"name": "job", "namespace": "team", "uid": "uid", "run": run},
            stage="prepare",
            attempt=1,
            spec=resolve(FineTuneJobSpec.model_validate(spec)),
            claims_root=str(self.claims),
        )

    def fetch(self, location: dict[str, Any], *, run: str = "first", files: Any = sources.DATA_FILES) -> Path:
        config = self.config(location, run=run)
        return sources.fetch(
            Location.model_validate(location), config, field=FIELD, files=files, subfolders=files == sources.DATA_FILES
        )

    def local(self, location: dict[str, Any], *, run: str = "first") -> Path:
        return sources.local(Location.model_validate(location), self.config(location, run=run), field=FIELD)

    def pinned(self, location: dict[str, Any], *, run: str = "first") -> list[str]:
        return [source.digest for source in sources.pinned(self.config(location, run=run))]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "claims")


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transfer, "PAUSE_S", 0.001)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name.startswith(("HF_", "AWS_", "GOOGLE_", "HTTPS_", "OCI_", "FTSECRET_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
