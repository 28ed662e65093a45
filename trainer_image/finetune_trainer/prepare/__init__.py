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
from finetune_api.status import DataStatus

from finetune_trainer import sealed, sources
from finetune_trainer.compiler import check_compiler
from finetune_trainer.data import digests, stepplan
from finetune_trainer.data.tokenizer import load_tokenizer, template_of
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare import places
from finetune_trainer.prepare.files import locate
from finetune_trainer.prepare.inputs import Base, Inputs
from finetune_trainer.prepare.mend import imply, mend
from finetune_trainer.prepare.model import check_method, inspect, task_of
from finetune_trainer.prepare.shards import Prepared, write_shards
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
    done = prepare(
        context.config,
        lambda rows, percent: context.progress.update(step=rows, percent=round(percent, 1)),
        refused=lambda data: context.note(data=data),
    )
    context.note(data=done.data, plan=done.plan, facts=done.facts, decided=done.decided)
    rows = done.data.rows or 0
    context.progress.update(percent=100.0, step=rows, total_steps=rows, force=True)


def prepare(
    config: RunConfig,
    report: Callable[[int, float], None],
    *,
    refused: Callable[[DataStatus], None] = lambda _: None,
) -> Prepared:
    """Seal `layout.prepared`. `report(rows read, percent)` is called now and then; `refused` is told of data that cannot be used.

    Raises BadInput, StageError.
    """
    try:
        return _prepare(config, report, refused)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"spec.workspace.uri: {config.spec.workspace.uri} is full",
                code="StorageFull",
                remedy="name a larger volume, or delete what is no longer needed on it",
            ) from error
        raise


def _prepare(
    config: RunConfig, report: Callable[[int, float], None], refused: Callable[[DataStatus], None]
) -> Prepared:
    started = time.monotonic()
    layout = config.layout
    places.check_workspace(config)
    output.check(config)
    if config.spec.training.compile:
        check_compiler(config.spec.compute.device or "cuda")
    inputs = gather(config, gather_base(config))
    if (known := _already(layout.prepared, inputs.digest())) is not None:
        log.info("The data is already prepared with these inputs: using it.")
        _reserve_output(config)
        return known
    inputs = inputs.with_mended(mend(config, inputs.files))
    places.check_room(config, places.bytes_needed(config, inputs.model, inputs.bytes))
    for stale in layout.root.glob(f".{layout.prepared.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    report(0, 1.0)
    done = write_shards(inputs, report, refused)
    _reserve_output(config)
    data = done.data
    log.info(
        "Prepared %d rows in %.1f s: %d to train on (%d tokens), %d to validate, %d to test; the longest has %d tokens.",
        data.rows, time.monotonic() - started, data.train_rows, data.tokens, data.validation_rows, data.test_rows, data.max_length,
    )  # fmt: skip
    for note in (sealed.read_manifest(layout.prepared) or {}).get("notes", ()):
        log.info("%s", note)
    return done


def _reserve_output(config: RunConfig) -> None:
    """Last, so that a job whose data is refused leaves no reservation. Raises BadInput (OutputTaken)."""
    if config.spec.mode == "Run" and not output.published(config):
        output.reserve(config)


def gather(config: RunConfig, base: Base) -> Inputs:
    """The data files as they are, beside their model, all fit for each other. Raises BadInput, StageError."""
    imply(config)
    files = locate(config)
    inputs = Inputs(
        config=config,
        base=base,
        files=files,
        data_digest=digests.files_digest(file.path for file in files),
        tokenizer_digest=digests.tokenizer_digest(base.tokenizer),
        template_digest=digests.template_digest(template_of(base.tokenizer), config.spec.data.template_arguments),
    )
    inputs.check_lengths()
    return inputs


def gather_base(config: RunConfig) -> Base:
    """What is tuned, at hand and fit for the method. Raises BadInput, StageError."""
    spec = config.spec
    code = ("*.py",) if spec.model.trust_remote_code else ()
    folder = sources.fetch(spec.model, config, field="spec.model.uri", files=(*sources.MODEL_FILES, *code))
    model = inspect(folder, spec.model.uri, trust_remote_code=spec.model.trust_remote_code)
    earlier = spec.method.init_from
    adapter = earlier and sources.fetch(earlier, config, field="spec.method.initFrom.uri", files=sources.MODEL_FILES)
    model = check_method(model, spec, task_of(model, spec, spec.data.format), adapter)
    trusted = spec.model.trust_remote_code
    tokenizer = load_tokenizer(folder, field="spec.model.uri", template=spec.data.template, trust_remote_code=trusted)
    return Base(model, tokenizer, adapter)


def _already(folder: Path, inputs: str) -> Prepared | None:
    manifest: dict[str, Any] | None = sealed.read_manifest(folder)
    if manifest is None or manifest.get("inputs") != inputs:
        return None
    try:
        sealed.verify(folder, content=True)
        if not stepplan.path_in(folder).is_file():
            return None
        return Prepared.of(manifest)
    except (sealed.Torn, KeyError, ValueError):
        return None
