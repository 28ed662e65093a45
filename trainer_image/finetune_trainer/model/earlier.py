"""An earlier adapter that training goes on from, made here or elsewhere, in peft's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from finetune_api.method import MethodType
from finetune_api.spec import FineTuneJobSpec
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor.experimental import implicit_replication

from finetune_trainer.errors import BadInput, first_line
from finetune_trainer.model import sharded
from finetune_trainer.model.methods.kinds import ADAPTER, task_type
from finetune_trainer.model.purpose import Purpose
from finetune_trainer.model.save import WEIGHTS, adapter_tensors
from finetune_trainer.model.sentences import some

SETTINGS = "adapter_config.json"
FIELD = "spec.method.initFrom"

_KINDS: dict[str, tuple[MethodType, ...]] = {
    "LORA": ("lora", "qlora"),
    "DORA": ("dora",),
    "PREFIX_TUNING": ("prefix",),
    "PROMPT_TUNING": ("prompt",),
}


def check_files(folder: Path, spec: FineTuneJobSpec) -> dict[str, Any]:
    """The adapter's settings as they are written. Needs no torch.

    Raises BadInput (InvalidModel) when the folder holds no adapter, or one of another method.
    """
    uri = spec.method.init_from.uri if spec.method.init_from else str(folder)
    try:
        written = json.loads((folder / SETTINGS).read_bytes())
        kind = str(written["peft_type"])
    except FileNotFoundError:
        raise _invalid(f"{uri} holds no {SETTINGS}: it is no adapter in peft's layout") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _invalid(f"{uri}: {SETTINGS} cannot be read: {first_line(error)}") from error
    if not (folder / WEIGHTS).is_file():
        raise _invalid(
            f"{uri} holds no {WEIGHTS}",
            "save it once with a current version of peft: PeftModel.from_pretrained(...).save_pretrained(...)",
        )
    kind = "DORA" if kind == "LORA" and written.get("use_dora") else kind
    methods = _KINDS.get(kind, ())
    if spec.method.type not in methods:
        said = " or ".join(methods)
        raise _invalid(
            f"{uri} is an adapter of kind {kind}, and method.type is {spec.method.type}",
            f"set method.type: {said}"
            if said
            else "adapters of LoRA, DoRA, prefix and prompt tuning can be gone on from",
        )
    return written


def settings(folder: Path, spec: FineTuneJobSpec, purpose: Purpose) -> Any:
    """peft's settings of the adapter, its own rank and all, ready for training. Raises BadInput (InvalidModel)."""
    from peft import PeftConfig

    uri = spec.method.init_from.uri if spec.method.init_from else str(folder)
    check_files(folder, spec)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever its classes raise for values they do not like
        raise _invalid(f"{uri}: {SETTINGS}: {first_line(error)}") from error
    wanted = task_type(purpose)
    if config.task_type not in (None, wanted):
        raise _invalid(
            f"{uri} is an adapter for task {config.task_type}, and this run's is {wanted.value}",
            "name an adapter for this task, or set spec.model.task",
        )
    config.task_type = wanted
    config.inference_mode = False
    if hasattr(config, "prefix_projection"):
        config.prefix_projection = False  # the files hold its outcome, which is trained on from now on
    return config


def take_weights(net: nn.Module, folder: Path, spec: FineTuneJobSpec) -> None:
    """Put the adapter's weights into `net`, which was made by its settings. Raises BadInput (InvalidModel) when names or shapes differ."""
    from peft import set_peft_model_state_dict

    uri = spec.method.init_from.uri if spec.method.init_from else str(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own kinds
        raise _invalid(f"{uri}: {WEIGHTS} cannot be read: {first_line(error)}") from error
    weights = _without_base(net, _of_today(net, weights))
    expected = adapter_tensors(net, dict(net.named_parameters()))
    wrong = sorted(expected.keys() ^ weights.keys())
    if wrong:
        which = "lacks" if wrong[0] in expected else "has"
        raise _invalid(
            f"{uri} was made for another base model: it {which} {some(wrong)}",
            "name the base model that it was trained on in spec.model",
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise _invalid(
                f"{uri} was made for another base model: {name} has shape {list(tensor.shape)} instead of {list(expected[name].shape)}",
                "name the base model that it was trained on in spec.model",
            )
    if next(net.parameters()).is_meta:
        return
    with implicit_replication():  # modules trained whole may be sharded
        set_peft_model_state_dict(net, weights)


def foreign(folder: Path, spec: FineTuneJobSpec, error: Exception) -> BadInput:
    """The refusal of an adapter that the model has no place for."""
    uri = spec.method.init_from.uri if spec.method.init_from else str(folder)
    return _invalid(
        f"{uri} does not fit {spec.model.uri}: {first_line(error)}",
        "name the base model that it was trained on in spec.model",
    )


def _of_today(net: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as this version of transformers has them: experts were separate layers once."""
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    return convert_peft_adapter_state_dict_for_transformers(net, net.peft_config[ADAPTER], weights, ADAPTER)


def _without_base(net: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without copies of the base's own embeddings, which some trainers save with every adapter."""
    base = net.state_dict()
    return {name: tensor for name, tensor in weights.items() if name not in base or not _same(tensor, base[name])}


def _same(tensor: torch.Tensor, base: torch.Tensor) -> bool:
    if tensor.shape != base.shape or base.is_meta:  # without weights there is only the shape to go by
        return tensor.shape == base.shape
    return torch.equal(tensor.to(base.dtype), sharded.whole(base).cpu())


def _invalid(message: str, remedy: str | None = None) -> BadInput:
    return BadInput(f"{FIELD}: {message}", code="InvalidModel", remedy=remedy)
