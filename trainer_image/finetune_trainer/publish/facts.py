"""Everything that a card and a report say, gathered from the sealed folders and the histories of all attempts."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.contract import DATA_REPORT, Layout, RunConfig
from finetune_api.effective import shown
from finetune_api.findings import DataReport
from finetune_api.method import Task
from finetune_api.status import PlanStatus

from finetune_trainer import sealed
from finetune_trainer.errors import StageError

_PACKAGES = (
    "finetune-operator",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of training, as far as it logged anything. Times are Unix seconds."""

    number: int
    first_step: int
    last_step: int
    started: float | None
    ended: float | None


@dataclass(frozen=True, slots=True)
class Facts:
    config: RunConfig
    prepared: dict[str, Any]
    """Manifest of the shards."""
    trained: dict[str, Any]
    """Manifest of the trained folder."""
    evaluation: dict[str, Any]
    """As evaluation.json: rows, generatedRows, metrics, samples, notes."""
    history: list[dict[str, Any]]
    """Lines of history.jsonl in the order of their steps, each step from the newest attempt that took it."""
    attempts: list[Attempt]
    versions: dict[str, str] = field(default_factory=dict)
    findings: DataReport | None = None
    """None for data that an earlier version prepared."""

    @property
    def plan(self) -> PlanStatus:
        """As it was accepted; without anybody who accepts plans, as prepare made it."""
        return self.config.plan or PlanStatus.model_validate(self.prepared["plan"])

    @property
    def effective(self) -> dict[str, Any]:
        """The spec as it was run, with what prepare resolved. Without pods: their environment is nobody's business."""
        return {**shown(self.config.spec), "resolved": self.prepared["resolved"]}

    @property
    def task(self) -> Task:
        return self.prepared["resolved"].get("task") or "causal-lm"

    @property
    def best(self) -> dict[str, Any] | None:
        """Step, metric and value of the weights that are published; value is None when they were never validated."""
        return self.trained.get("best")

    @property
    def stopped_early(self) -> dict[str, Any] | None:
        """Step and reason, when training ended before its planned last step."""
        return next((line for line in reversed(self.history) if "stopped_early" in line), None)

    @property
    def invalid(self) -> list[dict[str, Any]]:
        return self.prepared.get("invalid", [])


def gather(config: RunConfig) -> Facts:
    """Raises StageError when a folder that an earlier stage should have sealed is not there or was damaged."""
    layout = config.layout
    prepared = _sealed(layout.prepared, content=False)
    trained = _sealed(layout.trained, content=True)
    history, attempts = read_history(layout)
    return Facts(
        config=config,
        prepared=prepared,
        trained=trained,
        evaluation=json.loads((layout.trained / "evaluation.json").read_bytes()),
        history=history,
        attempts=attempts,
        versions=_versions(),
        findings=_findings(layout.prepared / DATA_REPORT),
    )


def _findings(path: Path) -> DataReport | None:
    return DataReport.model_validate_json(path.read_bytes()) if path.is_file() else None


def _sealed(folder: Path, *, content: bool) -> dict[str, Any]:
    try:
        return sealed.verify(folder, content=content)
    except sealed.Torn as error:
        raise StageError(f"there is nothing whole to publish: {error}", code="Unknown") from error


def read_history(layout: Layout) -> tuple[list[dict[str, Any]], list[Attempt]]:
    """Logged lines of all attempts: what an attempt took again after a resume replaces what an older one said."""
    lines: list[dict[str, Any]] = []
    attempts = []
    folders = [path for path in layout.root.glob("attempt-*") if path.name.removeprefix("attempt-").isdigit()]
    for folder in sorted(folders, key=_number):
        own = list(_lines(folder / "history.jsonl"))
        if not own:
            continue
        first = min(line["step"] for line in own)
        lines = [line for line in lines if line["step"] < first] + own
        times = [line["time"] for line in own if isinstance(line.get("time"), int | float)]
        last = max(line["step"] for line in own)
        attempts.append(Attempt(_number(folder), first, last, min(times, default=None), max(times, default=None)))
    return sorted(lines, key=lambda line: line["step"]), attempts


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("attempt-"))


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """A line that was cut by a crash is left out; of lines that a restarted process wrote twice, the last one counts."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    if path.is_file():
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
                found[int(line["step"]), _kind(line)] = line
            except (ValueError, KeyError, TypeError):
                continue
    return found.values()


def _kind(line: dict[str, Any]) -> str:
    """A step may have a line of its training, one of its validation, and one that says why it was the last."""
    return next((name for name in ("eval_loss", "stopped_early") if name in line), "loss")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # in the image the code lies beside its dependencies
            continue
    return versions
