"""Whether a model can be loaded and adapted as the spec says, found out without its weights.

Only the files' headers are read, so that it takes seconds for a model of any size, and what would be refused in training
is refused before a GPU is held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from finetune_api.spec import FineTuneJobSpec
from safetensors import safe_open
from torch import nn

from finetune_trainer.errors import BadInput, first_line
from finetune_trainer.model import heads, load, streaming
from finetune_trainer.model.adapt import adapt
from finetune_trainer.model.purpose import Purpose


def probe(folder: Path, spec: FineTuneJobSpec, purpose: Purpose, adapter: Path | None = None) -> nn.Module:
    """The adapted model, without weights. Raises the BadInput that training would raise."""
    try:
        model, report = _without_weights(folder, spec, purpose)
    except BadInput:
        raise
    except Exception as error:  # configurations and models' own code raise many kinds
        raise BadInput(
            f"spec.model: {spec.model.uri} cannot be loaded: {first_line(error)}", code="InvalidModel"
        ) from error
    missing = load.check_report(model, report, spec.model.uri, purpose)
    head = tuple(heads.modules(model, missing)) if purpose.classifies else ()
    model.finetune_loaded = load.Loaded(folder, purpose, load.written_in(folder), head)
    return adapt(model, spec, adapter=adapter)


def _without_weights(folder: Path, spec: FineTuneJobSpec, purpose: Purpose) -> tuple[Any, dict[str, Any]]:
    config = load.configuration(folder, spec, purpose)
    empty = load.skeleton(config, load.auto_class(purpose.task), spec)
    shapes: dict[str, torch.Tensor] = {}
    for path in streaming.files(folder, config):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                shapes[name] = torch.empty(file.get_slice(name).get_shape(), device="meta")
    if getattr(config, "quantization_config", None) is not None:
        return empty, {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": ()}
    return type(empty).from_pretrained(
        None,
        config=config,
        state_dict=shapes,
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
