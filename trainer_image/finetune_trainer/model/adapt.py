"""From a model to one in which the right things are trainable."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from finetune_api.spec import FineTuneJobSpec
from torch import nn
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.errors import BadInput, first_line
from finetune_trainer.model import earlier, load, reached, sharded, tied
from finetune_trainer.model.methods import full, lora, prompt

_OUTPUTS = {
    "output_router_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
}
"""Fields of a config that ask for more than logits in every forward. Training does not use it, it costs memory, and a mixture's loss
on its router's logits fails where answers are written. What is saved keeps the fields as they were."""


def adapt(
    model: Any,
    spec: FineTuneJobSpec,
    *,
    tokenizer: Any = None,
    adapter: Path | None = None,
) -> nn.Module:
    """Make trainable what `spec.method` says, in fp32. `model` comes from `load`. First weights depend on the seed alone, or are those in `adapter`.

    `tokenizer` reads a prompt's first text; without one the text is not looked at.
    Raises BadInput (InvalidSpec) when the spec names what the model does not have, (InvalidModel) when the adapter is for another one.
    """
    for config in (model.config, model.config.get_text_config()):
        for name, value in _OUTPUTS.items():
            if hasattr(config, name):
                setattr(config, name, value)
    if spec.method.type == "full":
        return full.thaw(model, spec.method.freeze, unreached=reached.unreached(model, spec))
    torch.manual_seed(spec.training.seed)
    without_gradient = reached.outermost(model, reached.unreached(model, spec)) if adapter is not None else []
    shared = tied.sharers(model)
    net = _wrap(model, spec, adapter)
    tied.check_adapted(net, shared, earlier=adapter is not None)
    if spec.method.type == "dora" and adapter is None:
        lora.measure_magnitudes(net)
    sharded.replace(net, _in_fp32)
    if adapter is not None:
        earlier.take_weights(net, adapter, spec)
        _expect_no_gradients(net, without_gradient)
    asked = spec.method.prompt_tuning
    if asked is not None and asked.init_text and tokenizer is not None:
        with sharded.gathered(net.word_embeddings):
            prompt.begin_with(net, asked.init_text, tokenizer)
    return net


def _in_fp32(name: str, parameter: nn.Parameter) -> nn.Parameter:
    if not parameter.requires_grad or parameter.dtype == torch.float32 or not parameter.is_floating_point():
        return parameter
    return nn.Parameter(parameter.detach().float())


def _expect_no_gradients(net: nn.Module, modules: list[str]) -> None:
    """An adapter made elsewhere may be on them: it stays as it is, and DistributedDataParallel must not wait for it."""
    ignored = [name for name, _ in net.named_parameters() if any(f".{module}." in name for module in modules)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, ignored)


def _wrap(model: nn.Module, spec: FineTuneJobSpec, adapter: Path | None) -> Any:
    from peft import get_peft_model

    purpose = load.of(model).purpose
    if adapter is None:
        family = prompt if spec.method.type in ("prefix", "prompt") else lora
        settings = family.settings(model, spec, purpose)
        # A prompt begins as embeddings of the vocabulary; DoRA adds whole matrices to weights that may be sharded.
        begins_as = sharded.gathered(model.get_input_embeddings()) if spec.method.type == "prompt" else nullcontext()
        try:
            with begins_as, implicit_replication():
                return get_peft_model(model, settings)
        except ValueError as error:  # what only peft knows of a model
            raise BadInput(f"spec.method: {first_line(error)}", code="InvalidSpec") from error
    settings = earlier.settings(adapter, spec, purpose)
    try:
        with implicit_replication():
            return get_peft_model(model, settings)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # what peft raises for a model of other names
        raise earlier.foreign(adapter, spec, error) from error
