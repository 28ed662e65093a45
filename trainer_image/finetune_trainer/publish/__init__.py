"""publish: from the trained folder to what a user takes away: model, card, report, checksums.

Everything is written beside the output and takes its place whole, so nobody ever loads half a model. Run again with the
same result it finds its own work and is done.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import RunConfig
from finetune_api.status import ArtifactsStatus

from finetune_trainer import sealed
from finetune_trainer.errors import FULL, BadInput
from finetune_trainer.publish import output, pages
from finetune_trainer.publish.facts import Facts, gather
from finetune_trainer.train.trained import sealed_evaluation

if TYPE_CHECKING:
    from finetune_trainer.stage import StageContext

log = logging.getLogger("finetune.publish")

SUMS = "SHA256SUMS"
REPORT = "report.html"


def run(context: StageContext) -> None:
    """The stage, in its own process. Tells the artifacts by `context.note`; raises StageError."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # nothing here needs it, and it is slow to import
    context.progress.update(stage="publish", force=True)
    context.note(evaluation=sealed_evaluation(context.config.layout.trained))  # train's message may be lost
    artifacts = publish(context.config, lambda percent: context.progress.update(percent=percent))
    context.note(artifacts=artifacts)
    context.progress.update(percent=100.0, force=True)


def publish(config: RunConfig, report: Callable[[float], None]) -> ArtifactsStatus:
    """Write the output folder. Raises BadInput (OutputTaken, StorageFull), StageError when there is nothing whole to publish."""
    output.check(config)
    facts = gather(config)
    report(10.0)
    result = sealed.sha256(config.layout.trained / sealed.MANIFEST)
    folder = output.folder_of(config)
    if (known := _already(folder, result, config)) is not None:
        log.info("This result is already published at %s.", config.spec.output.uri)
        output.release(config)
        return known
    manifest: dict[str, Any] = {
        "kind": "output",
        "format": 1,
        "job": {name: getattr(config.job, name) for name in ("namespace", "name", "uid", "run")},
        "method": config.spec.method.type,
        "base": {"uri": config.spec.model.uri, "revision": config.spec.model.revision},
        "digests": {**facts.prepared["digests"], "trained": result},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    output.reserve(config)  # again: the output may be another one than prepare knew
    try:
        with output.replacing(config, manifest) as new:
            _write(new, facts)
            report(60.0)
            artifacts = _seal(new, config, manifest)
            report(95.0)
    except OSError as error:
        if error.errno in FULL:
            raise BadInput(
                f"spec.output.uri: {config.spec.output.uri} is full",
                code="StorageFull",
                remedy="make room, or name another volume",
            ) from error
        raise
    output.release(config)
    log.info("Published %d files to %s.", artifacts.files, config.spec.output.uri)
    return artifacts


def _write(folder: Path, facts: Facts) -> None:
    trained = facts.config.layout.trained
    shutil.copytree(trained / "model", folder, dirs_exist_ok=True)
    stop = facts.prepared["tokenizer"]["stop"]
    _end_of_turn(folder / "generation_config.json", stop)
    sealed.write_json(folder / "evaluation.json", facts.evaluation)
    sealed.write_json(folder / "effective.json", facts.effective)
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in facts.history))
    (folder / "README.md").write_text(pages.card(facts, stop=stop))
    (folder / REPORT).write_text(pages.report(facts))


def _end_of_turn(path: Path, stop: list[int]) -> None:
    """A full model's own generation settings must end at the token that tuning taught it to end with."""
    if path.is_file():
        settings = json.loads(path.read_bytes())
        known = settings.get("eos_token_id")
        known = known if isinstance(known, list) else [] if known is None else [known]
        if set(stop) - set(known):
            merged = sorted({*known, *stop})
            sealed.write_json(path, {**settings, "eos_token_id": merged if len(merged) > 1 else merged[0]})


def _seal(folder: Path, config: RunConfig, manifest: dict[str, Any]) -> ArtifactsStatus:
    """Write SHA256SUMS, which lists every file but itself and the manifest, and put its digest into the manifest."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sums = folder / SUMS
    sums.write_text("".join(f"{sealed.sha256(path)}  {name}\n" for name, path in files.items()))
    artifacts = ArtifactsStatus(
        uri=config.spec.output.uri,
        report=f"{config.spec.output.uri.rstrip('/')}/{REPORT}",
        files=len(files) + 2,
        bytes=sum(path.stat().st_size for path in files.values()) + sums.stat().st_size,
        digest=sealed.sha256(sums),
    )
    manifest["artifacts"] = artifacts.wire()
    return artifacts


def _already(folder: Path, result: str, config: RunConfig) -> ArtifactsStatus | None:
    """What was published before, if it is this run's result and every file is as SHA256SUMS says."""
    try:
        manifest = json.loads((folder / output.MANIFEST).read_bytes())
        same = manifest["job"]["uid"], manifest["job"]["run"], manifest["digests"]["trained"]
        if same != (config.job.uid, config.job.run, result):
            return None
        sums = folder / SUMS
        for line in sums.read_text().splitlines():
            digest, name = line.split("  ", 1)
            if sealed.sha256(folder / name) != digest:
                return None
        artifacts = ArtifactsStatus.model_validate(manifest["artifacts"])
        return artifacts if artifacts.digest == sealed.sha256(sums) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
