"""The base model from its folder, whole or quantised."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.method import Task
from finetune_api.spec import FineTuneJobSpec
from safetensors import safe_open
from torch import nn

from finetune_trainer.errors import BadInput, first_line
from finetune_trainer.model import heads, quantized, streaming
from finetune_trainer.model.purpose import Purpose
from finetune_trainer.model.sentences import some
from finetune_trainer.model.streaming import Place

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FIELD = "spec.model"
_TRAINABLE_KINDS = ("bitsandbytes", "mxfp4")
"""Of quantised files. Those in mxfp4 are read as bf16; others need libraries that are not installed, on a GPU and no sooner."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is known of a model beside itself; `of(model)` gives it.

    `written_in` is the precision of its files; `head` names the modules of a classifier's head.
    """

    folder: Path
    purpose: Purpose
    written_in: torch.dtype
    head: tuple[str, ...] = ()


def load(
    folder: Path,
    spec: FineTuneJobSpec,
    purpose: Purpose,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    place: Place | None = None,
    adapter: Path | None = None,
    offload: Path | None = None,
) -> nn.Module:
    """The model in `folder`, in evaluation mode, on the CPU, in the precision it is held in while training (or `dtype`).

    With method qlora its weights are quantised; quantised weights lie on `device`. Others are put in their place by `place`, one
    after the other, so that the host holds one of them at a time. `adapter` is the folder of the adapter to go on from,
    whose whole modules must not be quantised. With `offload` nothing is read: weights stay in their files, but for those that must
    be converted, which are written to that folder, and `save_pretrained` reads them shard by shard. A classifier's head that the
    files lack, or have for other labels, begins at random values that depend on the training seed alone, on the CPU.
    Raises BadInput (InvalidModel) when it cannot be read, or when its weights are not those that its config describes.
    """
    uri, remote = spec.model.uri, spec.model.trust_remote_code
    try:
        config = configuration(folder, spec, purpose)
        auto = auto_class(purpose.task)
        extra = _placed(config, auto, spec, purpose, device, adapter)
        if offload is not None:
            extra |= {"device_map": {"": "disk"}, "offload_folder": offload}
        how = {"config": config, "dtype": dtype or held_in(spec), "output_loading_info": True}
        how["ignore_mismatched_sizes"] = True  # said in one sentence below
        torch.manual_seed(spec.training.seed)
        if place is None or extra:
            files = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": remote}
            model, report = auto.from_pretrained(folder, **how, **files, **extra)
        else:
            model, report = _streamed(folder, type(skeleton(config, auto, spec)), remote, place, how)
    except BadInput:
        raise
    except Exception as error:  # safetensors, transformers and the file system raise many kinds
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise
        raise BadInput(
            f"{_FIELD}: {uri} cannot be loaded: {first_line(error)}",
            code="InvalidModel",
            remedy="the folder must hold config.json and *.safetensors of a model that transformers knows",
        ) from error
    missing = check_report(model, report, uri, purpose)
    head = tuple(heads.modules(model, missing)) if purpose.classifies else ()
    model.requires_grad_(False)
    quantized.keep_as_stored(model)
    if spec.method.type == "qlora":
        quantized.tell_what_is_left(model)
    model.finetune_loaded = Loaded(folder, purpose, written_in(folder), head)
    return model


def _streamed(folder: Path, kind: Any, remote: bool, place: Place, how: dict[str, Any]) -> tuple[Any, Any]:
    """What `from_pretrained` of the folder gives, with each weight in its place."""
    paths = streaming.files(folder, how["config"])
    if not paths:
        raise FileNotFoundError(f"no {streaming.SAFE_WEIGHTS_NAME} in {folder}")
    with streaming.opened(paths) as slices, streaming.placing(place):
        model, report = kind.from_pretrained(None, state_dict=slices, **how)
    model.name_or_path = model.config.name_or_path = str(folder)
    if model.can_generate():
        where = {"cache_dir": None, "force_download": False, "local_files_only": True, "token": None}
        model.adjust_generation_fn(
            None, True, None, str(folder), proxies=None, revision=None, subfolder="", trust_remote_code=remote, **where
        )
    return model, report


def of(model: nn.Module) -> Loaded:
    """What `load` knows of a model, also when it is inside an adapter."""
    return model.finetune_loaded  # type: ignore[return-value]


def configuration(folder: Path, spec: FineTuneJobSpec, purpose: Purpose) -> Any:
    """transformers' configuration, for `purpose`. Raises BadInput when the weights are quantised in a way that the method cannot use."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=spec.model.trust_remote_code, **_labels(purpose)
    )
    check_quantization(getattr(config, "quantization_config", None), spec)
    text = config.get_text_config()
    if purpose.classifies and purpose.pad is not None:
        # Decoders look for the last token before it, so it must be what rows are filled up with.
        text.pad_token_id = purpose.pad
    return config


def check_quantization(found: Any, spec: FineTuneJobSpec) -> None:
    """Raises BadInput (InvalidModel) when the files hold quantised weights that the method cannot use. `found` is the config's own word of them."""
    if found is None:
        return
    kind = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
    kind = str(getattr(kind, "value", kind) or "bitsandbytes")
    method, strategy = spec.method.type, spec.compute.strategy
    if kind not in _TRAINABLE_KINDS:
        why = "for kernels that this image does not have"
        instead = "name the original model; method qlora quantises it to 4 or 8 bits itself"
    elif method == "full":
        why, instead = "and cannot be trained whole", "name the original model, or take method.type lora"
    elif method == "qlora" and kind != "bitsandbytes":
        why, instead = "already, which qlora would do again", "take method.type lora, or name the original model"
    elif strategy in ("zero3", "fsdp2"):
        why, instead = f"and cannot be sharded by {strategy}", "take compute.strategy zero2, or name the original model"
    else:
        return
    raise BadInput(
        f"{_FIELD}: the weights in {spec.model.uri} are quantised by {kind} {why}", code="InvalidModel", remedy=instead
    )


def auto_class(task: Task) -> Any:
    """transformers' entrance to models for a task."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    return {
        "causal-lm": AutoModelForCausalLM,
        "seq2seq-lm": AutoModelForSeq2SeqLM,
        "sequence-classification": AutoModelForSequenceClassification,
    }[task]


def skeleton(config: Any, auto: Any, spec: FineTuneJobSpec) -> nn.Module:
    """The model without weights."""
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=spec.model.trust_remote_code)


def check_report(model: nn.Module, report: Mapping[str, Any], uri: str, purpose: Purpose) -> list[str]:
    """Raises BadInput (InvalidModel) when files and config differ; else the names of a classifier's parameters that the files lack."""
    missing = sorted(str(name) for name in report["missing_keys"])
    reshaped = {str(key[0]): (tuple(key[1]), tuple(key[2])) for key in report["mismatched_keys"]}
    if purpose.classifies:
        wrong = [name for name in missing if not heads.of_head(model, name)]
        reshaped = {name: shapes for name, shapes in reshaped.items() if not heads.of_head(model, name)}
    else:
        wrong = missing
    known = set(model.state_dict())
    surplus = [str(name) for name in report["unexpected_keys"] if _is_another_layer(str(name), known)]
    if wrong:
        what = f"{some(wrong)} " + ("is missing" if len(wrong) == 1 else "are missing")
    elif reshaped:
        name, (has, wants) = next(iter(sorted(reshaped.items())))
        what = f"{name} has shape {list(has)} instead of {list(wants)}"
    elif surplus:
        what = f"it knows nothing of {some(sorted(surplus))}"
    else:
        return missing
    raise BadInput(
        f"{_FIELD}: the weights in {uri} do not fit its config.json: {what}",
        code="InvalidModel",
        remedy="copy the whole model folder again",
    )


def count(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and all."""
    numbers = [(quantized.stored_elements(p), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in numbers if trains), sum(n for n, _ in numbers)


def held_in(spec: FineTuneJobSpec) -> torch.dtype:
    """Full fine-tuning keeps fp32 weights; a frozen base may lie in bf16."""
    return torch.bfloat16 if spec.training.precision == "bf16" and spec.method.type != "full" else torch.float32


def written_in(folder: Path) -> torch.dtype:
    """Precision of most weights in the files; fp32 when they are in none that torch can train in."""
    counts: dict[str, int] = {}
    for path in streaming.files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                part = file.get_slice(name)
                counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + math.prod(part.get_shape())
    return _DTYPES.get(max(counts, key=lambda dtype: counts[dtype], default="F32"), torch.float32)


def _labels(purpose: Purpose) -> dict[str, Any]:
    if not purpose.classifies or purpose.labels is None:
        return {}
    return {
        "id2label": dict(enumerate(purpose.labels)),
        "label2id": {label: i for i, label in enumerate(purpose.labels)},
        "problem_type": "multi_label_classification" if purpose.multi_label else "single_label_classification",
    }


def _placed(
    config: Any, auto: Any, spec: FineTuneJobSpec, purpose: Purpose, device: torch.device | str, adapter: Path | None
) -> dict[str, Any]:
    """Arguments with which quantised weights come to their device, and with qlora are quantised on the way."""
    already = getattr(config, "quantization_config", None) is not None
    extra: dict[str, Any] = {"device_map": {"": device}} if already or spec.method.type == "qlora" else {}
    if extra and not already:
        trained = list((spec.method.lora.modules_to_save if spec.method.lora else None) or ())
        if adapter is not None:
            trained += json.loads((adapter / "adapter_config.json").read_bytes()).get("modules_to_save") or []
        empty = skeleton(config, auto, spec)
        whole = quantized.left_whole(empty, spec, classifies=purpose.classifies, trained=trained)
        extra["quantization_config"] = quantized.config(spec, held_in(spec), whole=whole)
    return extra


def _is_another_layer(name: str, known: set[str]) -> bool:
    """Whether a tensor that the model has no place for is part of a layer like those that it has."""
    return any(
        name[: match.start(1)] + "0" + name[match.end(1) :] in known for match in re.finditer(r"\.(\d+)\.", name)
    )
