"""What libraries do at import that a stage can do without: seconds of every process that the GPUs wait for."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from finetune_api.contract import RunConfig

from finetune_trainer import sources
from finetune_trainer.errors import StageError


def spare_bitsandbytes(config: RunConfig) -> None:
    """Before anything imports peft: to this process bitsandbytes is not installed, unless the training needs it.

    peft imports it wherever it is installed, and it imports torch's compiler.
    """
    if not _needed(config):
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


def _needed(config: RunConfig) -> bool:
    spec = config.spec
    if spec.method.type == "qlora" or spec.method.quantization is not None:
        return True
    if spec.training.optimizer is None or "8bit" in spec.training.optimizer or "paged" in spec.training.optimizer:
        return True
    try:
        written = (sources.local(spec.model, config, field="spec.model.uri") / "config.json").read_bytes()
    except (StageError, OSError):
        return True  # whoever loads the model says what is wrong with it
    return b'"quantization_config"' in written


def list_models_once() -> None:
    """Before anything imports a model of transformers: it reads all its 1,700 files to list what they export, once for
    itself and once more for `transformers.models`. Here the second asks the first. Where it does otherwise, nothing changes.
    """
    from transformers.utils import import_utils

    listed = getattr(import_utils, "define_import_structure", None)
    if listed is None or "transformers.models" in sys.modules:
        return
    models = Path(import_utils.__file__).parents[1] / "models"

    def define_import_structure(module_path: str, prefix: str | None = None) -> object:
        if prefix is None and Path(module_path).parent == models:
            with contextlib.suppress(AttributeError, TypeError):  # another version's list
                return {
                    needs: {
                        name.removeprefix("models."): exports
                        for name, exports in modules.items()
                        if name.startswith("models.")
                    }
                    for needs, modules in listed(models, prefix="models").items()
                }
        return listed(module_path, prefix)

    import_utils.define_import_structure = define_import_structure
