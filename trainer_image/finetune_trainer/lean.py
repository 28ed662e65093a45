"""What libraries do at import that a stage can do without: seconds of every process that the GPUs wait for."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path

from finetune_api.contract import RunConfig
from finetune_api.spec import FineTuneJobSpec

from finetune_trainer import sources
from finetune_trainer.errors import StageError


def spare_bitsandbytes(config: RunConfig) -> None:
    """Before a training imports peft, which imports bitsandbytes wherever it is installed, which imports torch's compiler: to
    this process it is not installed, unless the optimizer, the method or the model needs it.
    """
    optimizer = config.spec.training.optimizer
    if optimizer is None or "8bit" in optimizer or "paged" in optimizer:
        return
    with contextlib.suppress(StageError, OSError):  # whoever loads the model says what is wrong with it
        spare_unless_quantised(config.spec, sources.local(config.spec.model, config, field="spec.model.uri"))


def spare_unless_quantised(spec: FineTuneJobSpec, model: Path) -> None:
    """The same where nothing is trained. `model` is the folder of its files."""
    if spec.method.type == "qlora" or spec.method.quantization is not None:
        return
    with contextlib.suppress(OSError):
        if b'"quantization_config"' not in (model / "config.json").read_bytes():
            hide_bitsandbytes()


def hide_bitsandbytes() -> None:
    """To this process it is not installed from here on."""
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


def list_models_once() -> None:
    """Before anything imports a model of transformers: it reads all its 1,700 files to list what they export, once for
    itself and once more for `transformers.models`. Here the second asks the first. Where it does otherwise, nothing changes.
    """
    from transformers.utils import import_utils

    listed = getattr(import_utils, "define_import_structure", None)
    if listed is None or "transformers.models" in sys.modules:
        return
    models = Path(import_utils.__file__).parents[1] / "models"

    @functools.wraps(listed)
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
