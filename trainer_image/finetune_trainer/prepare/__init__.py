"""prepare: reads and checks everything that training needs, on a CPU, before a GPU is held.

Every row is read, every bad one is reported with its file, line and reason; the rest is rendered, tokenised, split and
written as sealed shards with the step plan. Run again with the same inputs it finds its own result and is done.
"""

from __future__ import annotations

import errno
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import RunConfig
from finetune_api.status import DataStatus, PlanStatus

from finetune_trainer import sealed, source
from finetune_trainer.compiler import check_compiler
from finetune_trainer.data import digests, stepplan
from finetune_trainer.data.chat import load_tokenizer, template_of
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare import places
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.model import check_method, inspect, task_of
from finetune_trainer.prepare.rows import locate
from finetune_trainer.prepare.shards import write_shards
from finetune_trainer.publish import output

if TYPE_CHECKING:
    from finetune_trainer.stage import StageContext

log = logging.getLogger("finetune.prepare")


def run(context: StageContext) -> None:
    """The stage, in its own process. Tells the data and the plan by `context.note`; raises StageError."""
    # transformers imports torch wherever it finds it, which takes longer than preparing a small data set; tokenizers
    # need none, and this process does nothing else.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    context.progress.update(stage="prepare", force=True)
    data, plan = prepare(
        context.config, lambda rows, percent: context.progress.update(step=rows, percent=round(percent, 1))
    )
    context.note(data=data, plan=plan)
    context.progress.update(percent=100.0, step=data.rows or 0, total_steps=data.rows or 0, force=True)


def prepare(config: RunConfig, report: Callable[[int, float], None]) -> tuple[DataStatus, PlanStatus]:
    """Seal `layout.prepared`. `report(rows read, percent)` is called now and then. Raises BadInput, StageError."""
    try:
        return _prepare(config, report)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"spec.workspace.uri: {config.spec.workspace.uri} is full",
                code="StorageFull",
                remedy="name a larger volume, or delete what is no longer needed on it",
            ) from error
        raise


def _prepare(config: RunConfig, report: Callable[[int, float], None]) -> tuple[DataStatus, PlanStatus]:
    started = time.monotonic()
    spec, layout = config.spec, config.layout
    places.check_workspace(config)
    output.check(config)
    if spec.training.compile:
        check_compiler(spec.compute.device or "cuda")
    code = ("*.py",) if spec.model.trust_remote_code else ()
    folder = source.fetch(spec.model, config, field="spec.model.uri", files=(*source.MODEL_FILES, *code))
    model = inspect(folder, spec.model.uri, trust_remote_code=spec.model.trust_remote_code)
    earlier = spec.method.init_from
    adapter = earlier and source.fetch(earlier, config, field="spec.method.initFrom.uri", files=source.MODEL_FILES)
    check_method(model, spec, task_of(model, spec, spec.data.format), adapter)
    trusted = spec.model.trust_remote_code
    tokenizer = load_tokenizer(folder, field="spec.model.uri", template=spec.data.template, trust_remote_code=trusted)
    files = locate(config)
    inputs = Inputs(
        config=config,
        model=model,
        tokenizer=tokenizer,
        files=files,
        data_digest=digests.files_digest(file.path for file in files),
        tokenizer_digest=digests.tokenizer_digest(tokenizer),
        template_digest=digests.template_digest(template_of(tokenizer)),
        adapter=adapter,
    )
    inputs.check_lengths()
    if (known := _already(layout.prepared, inputs.digest())) is not None:
        log.info("The data is already prepared with these inputs: using it.")
        return known
    places.check_room(config, places.bytes_needed(config, model, sum(file.path.stat().st_size for file in files)))
    for stale in layout.root.glob(f".{layout.prepared.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    report(0, 1.0)
    data, plan = write_shards(inputs, report)
    log.info(
        "Prepared %d rows in %.1f s: %d to train on (%d tokens), %d to validate, %d to test; the longest has %d tokens.",
        data.rows, time.monotonic() - started, data.train_rows, data.tokens, data.validation_rows, data.test_rows, data.max_length,
    )  # fmt: skip
    for note in (sealed.read_manifest(layout.prepared) or {}).get("notes", ()):
        log.info("%s", note)
    return data, plan


def _already(folder: Path, inputs: str) -> tuple[DataStatus, PlanStatus] | None:
    manifest: dict[str, Any] | None = sealed.read_manifest(folder)
    if manifest is None or manifest.get("inputs") != inputs:
        return None
    try:
        sealed.verify(folder, content=True)
        if not stepplan.path_in(folder).is_file():
            return None
        return DataStatus.model_validate(manifest["data"]), PlanStatus.model_validate(manifest["plan"])
    except (sealed.Torn, KeyError, ValueError):
        return None
