"""Back to a plain Hugging Face folder: an adapter in peft's layout, or a whole model in transformers'.

The weights come by name, as checkpoints hold them: whatever engine trained them, and wherever the model's own are. Of a whole
model, memory holds one file at a time.
"""

from __future__ import annotations

import copy
import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from finetune_api.spec import FineTuneJobSpec
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from finetune_trainer.model import load
from finetune_trainer.model.methods.kinds import ADAPTER

WEIGHTS = "adapter_model.safetensors"

Named = Mapping[str, torch.Tensor]

_SHARD = "5GB"


def save(net: nn.Module, trained: Named, spec: FineTuneJobSpec, folder: Path) -> None:
    """Write what `adapt` made of the model, with the `trained` weights by parameter name, all that was trainable, each of which is asked for once.

    Raises OSError when the storage is full or gone.
    """
    try:
        if spec.method.type == "full":
            _save_whole(load.of(net), trained, spec, folder)
        else:
            _save_adapter(net, trained, spec, folder)
    except SafetensorError as error:  # it hides the errno in its text
        number = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
        raise OSError(number, str(error), str(folder)) from error


def adapter_tensors(net: Any, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The content of an adapter's file: by the names that peft gives there, from parameters by their own names."""
    from peft import get_peft_model_state_dict
    from peft.utils.other import AuxiliaryTrainingWrapper

    by_identity = {id(parameter): name for name, parameter in net.named_parameters()}
    state = {
        name: trained[known]
        for name, parameter in net.named_parameters(remove_duplicate=False)  # tied ones have several names
        if (known := by_identity[id(parameter)]) in trained
    } | dict(net.named_buffers())
    if not net.peft_config[ADAPTER].is_prompt_learning:
        return get_peft_model_state_dict(net, state_dict=state, save_embedding_layers=False)
    tensors = {"prompt_embeddings": state[f"prompt_encoder.{ADAPTER}.embedding.weight"]}
    for name, module in net.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            tensors |= {f"{name}.{key}": value for key, value in module.adapter_state_dict(ADAPTER, own).items()}
    return tensors


def _save_adapter(net: Any, trained: Named, spec: FineTuneJobSpec, folder: Path) -> None:
    """In fp32, as it was trained. It names its base by the spec's location, not by this machine's folder."""
    tensors = adapter_tensors(net, dict(trained.items()))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    settings = copy.deepcopy(net.peft_config[ADAPTER])
    settings.inference_mode = True
    settings.base_model_name_or_path = spec.model.uri.removeprefix("hf://")
    settings.revision = spec.model.revision
    settings.save_pretrained(str(folder))
    if load.of(net).purpose.classifies:  # the labels' names belong to the head, which the adapter holds
        config = copy.deepcopy(net.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.save_pretrained(folder)


def _save_whole(base: load.Loaded, trained: Named, spec: FineTuneJobSpec, folder: Path) -> None:
    """In the precision of the base's files, from which what was not trained is copied."""
    with tempfile.TemporaryDirectory(prefix=".offload-", dir=folder.parent) as offload:
        model: Any = load.load(
            base.folder, spec, base.purpose, dtype=base.written_in, device="cpu", offload=Path(offload)
        )
        names = {id(parameter): name for name, parameter in model.named_parameters() if name in trained}
        for path, module in model.named_modules():
            held = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
            own = {
                name: (names[id(parameter)], parameter.dtype)
                for name, parameter in module.named_parameters(recurse=False)
                if id(parameter) in names
            }
            if own:
                assert held is not None, path
                module._hf_hook.weights_map = _Trained(held, own, trained)
        config = model.config
        config.dtype = base.written_in
        output, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        if output is not None and output.weight is not embeddings.weight:
            config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        model.save_pretrained(folder, max_shard_size=_SHARD)
    for code in base.folder.glob("*.py") if spec.model.trust_remote_code else ():
        shutil.copy2(code, folder / code.name)


class _Trained(Mapping[str, torch.Tensor]):
    """What accelerate's hooks read a module's weights from, with those in `own` (name -> name and dtype) from `trained` instead."""

    def __init__(
        self, held: Mapping[str, torch.Tensor], own: Mapping[str, tuple[str, torch.dtype]], trained: Named
    ) -> None:
        self._held, self._own, self._trained = held, own, trained

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._own:
            return self._held[name]
        known, dtype = self._own[name]
        return self._trained[known].to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
