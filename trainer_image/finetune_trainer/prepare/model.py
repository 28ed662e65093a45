"""What prepare must know of the base model, read from its files without torch; a model that cannot be trained is refused here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.errors import BadInput

_FIELD = "spec.model.uri"
_LFS_POINTER = b"version https://git-lfs"
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`matrices` are the names of all modules with a two-dimensional weight; `weight_bytes` counts the tensors' data."""

    folder: Path
    model_type: str
    context_length: int | None
    vocab_size: int
    parameters: int
    weight_bytes: int
    matrices: tuple[str, ...]


def inspect(folder: Path, uri: str) -> ModelFacts:
    """Raises BadInput (InvalidModel) with one sentence that names the file at fault."""
    if not folder.is_dir():
        raise _invalid(f"{uri} is a file: name the folder that holds config.json")
    config = _json(folder / "config.json", uri)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise _invalid(f"{uri}: config.json names no model_type")
    text = _text_config(folder, config, model_type, uri)
    vocab = getattr(text, "vocab_size", None)
    if not isinstance(vocab, int):
        raise _invalid(f"{uri}: config.json names no vocab_size")
    tensors = {name: facts for file in _weight_files(folder, uri) for name, facts in _header(file, uri).items()}
    if not tensors:
        raise _invalid(f"{uri}: its .safetensors files hold no tensor")
    contexts = [getattr(text, name, None) for name in _CONTEXT_NAMES]
    context = next((value for value in contexts if isinstance(value, int)), None)
    return ModelFacts(
        folder=folder,
        model_type=model_type,
        context_length=context,
        vocab_size=vocab,
        parameters=sum(_count(facts["shape"]) for facts in tensors.values()),
        weight_bytes=sum(facts["data_offsets"][1] - facts["data_offsets"][0] for facts in tensors.values()),
        matrices=tuple(
            sorted(
                name.removesuffix(".weight")
                for name, facts in tensors.items()
                if name.endswith(".weight") and len(facts["shape"]) == 2
            )
        ),
    )


def check_targets(facts: ModelFacts, targets: list[str] | None) -> None:
    """Every name in method.lora.targetModules must be a layer of the model. Raises BadInput (InvalidSpec) that lists those that are."""
    unknown = [name for name in targets or () if not _matches(name, facts.matrices)]
    if not unknown:
        return
    linear = (
        _linear_modules(facts.folder) or facts.matrices
    )  # the loaded model may name layers otherwise than its files
    if unknown := [name for name in unknown if not _matches(name, linear)]:
        names = sorted({name.rsplit(".", 1)[-1] for name in linear if not re.search(r"embed|wte|wpe", name)})
        raise BadInput(
            f"spec.method.lora.targetModules: the model has no layer named {unknown[0]!r}; its layers are {', '.join(names[:24])}",
            code="InvalidSpec",
            remedy="use names of this list, or leave targetModules out: every linear layer but the output head gets an adapter",
        )


def _matches(target: str, modules: tuple[str, ...]) -> bool:
    return any(module == target or module.endswith(f".{target}") for module in modules)


def _linear_modules(folder: Path) -> tuple[str, ...]:
    """Names of the linear layers as transformers builds the model; empty when that fails. Costs the import of torch."""
    program = (
        "import json, sys, torch\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "with torch.device('meta'):\n"
        "    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))\n"
        "print(json.dumps([n for n, m in model.named_modules() if getattr(m, 'weight', None) is not None and m.weight.dim() == 2]))\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)], capture_output=True, timeout=300, check=True, text=True
        )
        return tuple(json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return ()


def _text_config(folder: Path, config: dict[str, Any], model_type: str, uri: str) -> Any:
    """transformers' configuration of the language model, which knows the defaults of its type."""
    from transformers import AutoConfig, __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        own_code = "auto_map" in config
        raise _invalid(
            f"{uri}: transformers {__version__} knows no model_type {model_type!r}"
            + (" (it brings Python code of its own, which is not run)" if own_code else "")
        )
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _invalid(f"{uri}: a {model_type} model is not a causal language model, and only those can be tuned")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    except Exception as error:  # whatever a configuration class raises for values it does not like
        raise _invalid(f"{uri}: config.json: {str(error).strip().splitlines()[0][:300]}") from error


def _weight_files(folder: Path, uri: str) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _json(index, uri).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise _invalid(f"{uri}: {index.name} has no weight_map")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise _invalid(f"{uri}: {missing[0]} is missing, one of {len(files)} weight files that {index.name} lists")
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if (folder / "adapter_config.json").is_file():
        raise _invalid(f"{uri} is an adapter, not a base model: name the model that it was trained on")
    other = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in folder.glob(pattern))
    raise BadInput(
        f"{_FIELD}: {uri} holds no model.safetensors" + (f", only {other[0]}" if other else ""),
        code="InvalidModel",
        remedy="save it once as safetensors: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
    )


def _header(file: Path, uri: str) -> dict[str, Any]:
    """Name -> {dtype, shape, data_offsets}; checked against the file's size, so that a cut file is found."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            if (start + stream.read(len(_LFS_POINTER))).startswith(_LFS_POINTER):
                raise _invalid(
                    f"{uri}: {file.name} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`"
                )
            length = int.from_bytes(start, "little")
            size = file.stat().st_size
            if len(start) < 8 or length > min(size - 8, 100_000_000):
                raise _invalid(f"{uri}: {file.name} is no safetensors file, or it was cut")
            stream.seek(8)
            header = json.loads(stream.read(length))
    except OSError as error:
        raise _invalid(f"{uri}: {file.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _invalid(f"{uri}: {file.name} is no safetensors file") from error
    header.pop("__metadata__", None)
    end = max((facts["data_offsets"][1] for facts in header.values()), default=0)
    if 8 + length + end != size:
        raise _invalid(f"{uri}: {file.name} has {size} bytes instead of {8 + length + end}: it was cut, copy it again")
    return header


def _json(path: Path, uri: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _invalid(f"{uri} holds no {path.name}: it is not a model folder in Hugging Face layout") from None
    except OSError as error:
        raise _invalid(f"{uri}: {path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _invalid(f"{uri}: {path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _invalid(f"{uri}: {path.name} is not a JSON object")
    return value


def _count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _invalid(message: str) -> BadInput:
    return BadInput(f"{_FIELD}: {message}", code="InvalidModel")
