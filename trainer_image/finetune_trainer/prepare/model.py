"""What prepare must know of the base model, read from its files without torch; a model that cannot be trained is refused here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from finetune_api.data import DataFormat
from finetune_api.method import LOW_RANK, Task
from finetune_api.spec import FineTuneJobSpec

from finetune_trainer import lean
from finetune_trainer.errors import BadInput, StageError, first_line
from finetune_trainer.model import architecture
from finetune_trainer.model.purpose import Purpose
from finetune_trainer.model.sentences import named

_FIELD = "spec.model.uri"
_LFS_POINTER = b"version https://git-lfs"
_RELATIVE = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "udop", "pop2piano")
"""Model types whose positions are not bounded, though their configurations carry a length that they were trained with."""
_NO_LINEAR_LAYER = re.compile(
    r"embed|\b(wte|wpe|shared|lm_head|cls|score|classifier|classification_head|relative_attention_bias|qa_outputs|pooler|predictions|encodings?)\b"
)
"""Parts of the names of two-dimensional weights that adapters do not go to: tables and heads."""
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`matrices` are the names of all modules with a two-dimensional weight; `weight_bytes` counts the tensors' data.

    `tasks` are those that the model can be tuned for, the one that it is made for first. `config` is transformers' own.
    """

    folder: Path
    model_type: str
    context_length: int | None
    vocab_size: int
    parameters: int
    weight_bytes: int
    matrices: tuple[str, ...]
    tasks: tuple[Task, ...]
    config: Any
    linear_in_out: int = 0
    """Sum of inputs and outputs over the linear layers, the output head aside."""
    fused_attention: bool | None = None
    """As the built model's class says; None where it was not built."""


def inspect(folder: Path, uri: str, *, trust_remote_code: bool = False) -> ModelFacts:
    """Raises BadInput (InvalidModel) with one sentence that names the file at fault."""
    if not folder.is_dir():
        raise _invalid(f"{uri} is a file: name the folder that holds config.json")
    raw = _json(folder / "config.json", uri)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise _invalid(f"{uri}: config.json names no model_type")
    config = _config(folder, raw, model_type, uri, trust_remote_code)
    tasks = architecture.tasks(config)
    if not tasks:
        raise _invalid(
            f"{uri}: a {model_type} model is neither a language model nor a classifier of text, and only those can be tuned"
        )
    text = config.get_text_config()
    vocab = getattr(text, "vocab_size", None)
    if not isinstance(vocab, int):
        raise _invalid(f"{uri}: config.json names no vocab_size")
    tensors = {name: facts for file in _weight_files(folder, uri) for name, facts in _header(file, uri).items()}
    if not tensors:
        raise _invalid(f"{uri}: its .safetensors files hold no tensor")
    contexts = [getattr(text, name, None) for name in _CONTEXT_NAMES if model_type not in _RELATIVE]
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
        tasks=tasks,
        config=config,
        linear_in_out=sum(
            sum(facts["shape"])
            for name, facts in tensors.items()
            if name.endswith(".weight") and len(facts["shape"]) == 2 and not _NO_LINEAR_LAYER.search(name)
        ),
    )


def task_of(facts: ModelFacts, spec: FineTuneJobSpec, form: DataFormat | None) -> Task:
    """`spec.model.task`, or what the data's format (None: not known yet) and the model are made for.

    Raises BadInput (InvalidSpec) when the model cannot be tuned for it, with the task that it can.
    """
    wanted = spec.model.task
    if wanted is None:
        wanted = "sequence-classification" if form == "classification" else facts.tasks[0]
    if wanted in facts.tasks:
        return wanted
    right = facts.tasks[0]
    raise BadInput(
        f"spec.model.task: a {facts.model_type} model is {architecture.NAMES[right]} and cannot be tuned for {wanted}",
        code="InvalidSpec",
        remedy=f"set model.task: {right}, with data for it" if spec.model.task else f"use data for {right}",
    )


def check_method(facts: ModelFacts, spec: FineTuneJobSpec, task: Task, adapter: Path | None) -> ModelFacts:
    """Whether `spec.method` can be done with this model; `adapter` is the folder of the adapter to go on from.

    What is named in the spec is looked for in the files. Only where that is not certain, or where GPUs would be held by
    a model that cannot be loaded, a process with torch builds the model without its weights; not where a survey is made
    without torch.
    Returns the facts, with what the built model told.
    Raises BadInput (InvalidSpec, InvalidModel) in one sentence that names the field and what there is instead.
    """
    architecture.check_virtual_tokens(spec.method.type, task, facts.config)
    if is_probed(facts, spec, adapter) and has_torch():
        return replace(facts, fused_attention=_probe(facts.folder, spec, Purpose(task), adapter))
    return facts


def is_probed(facts: ModelFacts, spec: FineTuneJobSpec, adapter: Path | None) -> bool:
    """Whether `check_method` builds the model."""
    return spec.compute.device == "cuda" or not _plain(facts, spec, adapter)


def has_torch() -> bool:
    """Whether it is installed; this process may have been told to do without."""
    return PathFinder.find_spec("torch") is not None


def _plain(facts: ModelFacts, spec: FineTuneJobSpec, adapter: Path | None) -> bool:
    """Whether nothing in `spec.method` depends on names or numbers that only the built model knows."""
    method = spec.method
    if adapter is not None or method.freeze is not None or hasattr(facts.config, "quantization_config"):
        return False
    lora = method.lora
    if method.type not in LOW_RANK or lora is None:
        return True
    if lora.modules_to_save or lora.target_parameters:
        return False
    return all(name == "all-linear" or named(name, facts.matrices) for name in lora.target_modules or ())


def _probe(folder: Path, spec: FineTuneJobSpec, purpose: Purpose, adapter: Path | None) -> bool | None:
    """See model.__main__, which this runs. Returns whether the model has fused attention."""
    question = {
        "folder": str(folder),
        "spec": spec.wire(),
        "purpose": {"task": purpose.task},
        "adapter": str(adapter) if adapter else None,
    }
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer.model"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.strip().splitlines()
        raise StageError(
            f"spec.model: {spec.model.uri} could not be built: {said[-1][:400] if said else f'exit code {done.returncode}'}"
        ) from None
    if "code" in answer:
        raise BadInput(answer["message"], code=answer["code"], remedy=answer["remedy"])
    return answer["fused_attention"]


def _config(folder: Path, raw: dict[str, Any], model_type: str, uri: str, trust_remote_code: bool) -> Any:
    """transformers' configuration, which knows the defaults of its type."""
    lean.list_models_once()
    from transformers import AutoConfig, __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    own_code = "auto_map" in raw
    if model_type not in CONFIG_MAPPING_NAMES and not (own_code and trust_remote_code):
        raise BadInput(
            f"{_FIELD}: {uri}: transformers {__version__} knows no model_type {model_type!r}"
            + (", and the Python code that the model brings is not run" if own_code else ""),
            code="InvalidModel",
            remedy="read that code, and set model.trustRemoteCode: true if you trust it" if own_code else None,
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a configuration class raises for values it does not like
        raise _invalid(f"{uri}: config.json: {first_line(error)}") from error


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
