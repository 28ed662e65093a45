"""Full fine-tuning, of every weight or of all but some layers."""

from __future__ import annotations

from collections.abc import Collection

from finetune_api.method import FreezeSpec
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_trainer.errors import BadInput


def thaw(model: nn.Module, freeze: FreezeSpec | None, *, unreached: Collection[str] = ()) -> nn.Module:
    """Make everything trainable but what `freeze` names and the parameters `unreached`, whose layers do not count either.

    Raises BadInput (InvalidSpec) for a layer that does not exist.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in unreached)
    if freeze is None:
        return model
    layers = [layer for layer in blocks(model) if any(p.requires_grad for p in layer.parameters())]
    for layer in _frozen(freeze, len(layers)):
        layers[layer].requires_grad_(False)
    if freeze.all_but_last is not None:
        for module in _embeddings(model, layers):
            module.requires_grad_(False)
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's layers in order; those of an encoder-decoder model are the encoder's, then the decoder's.

    They stand in the lists of modules that hold the model's own layers, which are the outermost ones.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if not inside and isinstance(module, nn.ModuleList) and next(module.parameters(), None) is not None:
            lists[name] = module
    own = [each for each in lists.values() if isinstance(each[0], GradientCheckpointingLayer)]
    if not own and lists:  # code of the model's own
        own = [max(lists.values(), key=lambda each: sum(p.numel() for p in each.parameters()))]
    return [layer for each in own for layer in each]


def _frozen(freeze: FreezeSpec, layers: int) -> list[int]:
    if freeze.all_but_last is not None:
        if freeze.all_but_last > layers:
            raise BadInput(
                f"spec.method.freeze.allButLast: {freeze.all_but_last} is more than the {layers} layers of this model",
                code="InvalidSpec",
                remedy=f"give a number below {layers}, or leave freeze out to train all",
            )
        return list(range(layers - freeze.all_but_last))
    for index, layer in enumerate(freeze.layers or ()):
        if layer >= layers:
            raise BadInput(
                f"spec.method.freeze.layers[{index}]: there is no layer {layer}: this model has {layers} layers, 0 to {layers - 1}",
                code="InvalidSpec",
                remedy=f"name layers from 0 to {layers - 1}",
            )
    return list(freeze.layers or ())


def _embeddings(model: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """Tables of tokens and positions outside the layers, and what stands with them in a module called embeddings."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    return [
        module
        for name, module in model.named_modules()
        if id(module) not in inside and (isinstance(module, nn.Embedding) or name.rsplit(".", 1)[-1] == "embeddings")
    ]
