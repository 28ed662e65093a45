"""Which layers get low-rank adapters, and which modules are trained whole: names in the spec against the model's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from finetune_api.method import LoraSpec
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.errors import BadInput
from finetune_trainer.model.reached import outermost
from finetune_trainer.model.sentences import leaves, named, some

ALL_LINEAR = "all-linear"
_EXPERTS = "experts"
_ROUTERS = ("router", "gate")
_RECURRENT = ("mamba", "falcon_h1", "nemotron_h")
_FIELD = "spec.method.lora"


def modules(
    model: PreTrainedModel, lora: LoraSpec, *, head: Iterable[str], unreached: Collection[str] = ()
) -> list[str]:
    """Names of the layers that get adapters, as short as they are unmistakable.

    Absent: every linear layer but the output head, of a mixture of experts those of attention. [all-linear]: also a
    mixture's other linear layers, but not its routers, which must be named. Layers with `unreached` parameters get none.
    Raises BadInput (InvalidSpec) for a name that is no linear layer, with the names that are.
    """
    wanted = lora.target_modules
    everything = [name for name in linear(model) if f"{name}.weight" not in unreached]
    if wanted is not None and wanted != [ALL_LINEAR]:
        return _named(model, wanted, everything, unreached)
    kept_out = _output(model) | set(head) | set(lora.modules_to_save or ())
    names = [name for name in everything if not any(_inside(name, outer) for outer in kept_out)]
    names = [name for name in names if _is_called(model, name)]
    if blocks := expert_blocks(model):
        choosers = routers(model, blocks)
        names = [name for name in names if not any(_inside(name, chooser) for chooser in choosers)]
        names = [name for name in names if not _taken_for_experts(model, name)]
        if wanted is None:
            names = [name for name in names if _is_attention(name)]
    if not names:
        raise BadInput(
            f"{_FIELD}.targetModules: this model has no {'linear' if wanted else 'attention'} layer that is known for one; it has {some(leaves(everything))}",
            code="InvalidSpec",
            remedy="name some of these in targetModules",
        )
    return _short(names, model)


def parameters(model: nn.Module, lora: LoraSpec, *, dora: bool, unreached: Collection[str] = ()) -> list[str] | None:
    """`targetParameters`, checked. Raises BadInput (InvalidSpec), also for what is `unreached`."""
    wanted = lora.target_parameters
    if wanted is None:
        return None
    for field, there in (("lora.dropout", bool(lora.dropout)), ("type dora", dora)):
        if there:
            raise BadInput(
                f"{_FIELD}.targetParameters and method.{field} cannot go together: an update of a weight itself has no input to drop, and no magnitude",
                code="InvalidSpec",
                remedy="remove targetParameters, or set dropout: 0 and method.type lora",
            )
    there = [
        name
        for name, p in model.named_parameters()
        if p.ndim in (2, 3) and name not in unreached and not _is_layers_own(model, name)
    ]
    for index, name in enumerate(wanted):
        if not named(name, there):
            raise BadInput(
                f"{_FIELD}.targetParameters[{index}]: {name!r} is no weight of this model outside a linear layer{_that(unreached)}; "
                + (f"it has {some(_two_parts(there))}" if there else "it has none such"),
                code="InvalidSpec",
                remedy="name some of these, or use targetModules" if there else "use targetModules",
            )
    return list(wanted)


def saved(model: nn.Module, wanted: Iterable[str], *, unreached: Collection[str] = ()) -> list[str]:
    """Names of modules to train whole, checked. Raises BadInput (InvalidSpec), also for what is `unreached`."""
    dead = outermost(model, unreached) if unreached else []
    there = [
        name
        for name, module in model.named_modules()
        if name and _has_weights(module) and not any(_inside(name, outer) for outer in dead)
    ]
    wanted = list(wanted)
    for index, name in enumerate(wanted):
        if not named(name, there):
            own = [
                full for full in there if next(model.get_submodule(full).parameters(recurse=False), None) is not None
            ]
            raise BadInput(
                f"{_FIELD}.modulesToSave[{index}]: {name!r} is no module of this model{_that(unreached)}; it has {some(leaves(own))}",
                code="InvalidSpec",
                remedy="use names of this list",
            )
    return wanted


def linear(model: nn.Module) -> list[str]:
    """Full names of the linear layers, quantised ones too."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        or type(module).__name__.endswith(("QuantLinear", "QuantLinearPackage"))
    ]


def expert_blocks(model: nn.Module) -> list[str]:
    """Names of the modules in which a mixture's experts stand beside what chooses among them; empty for a dense model."""
    return [
        name
        for name, module in model.named_modules()
        if _EXPERTS in module._modules or any(_is_fused(child) for child in module.children())
    ]


def routers(model: nn.Module, blocks: Iterable[str]) -> list[str]:
    """Names of what chooses among the experts, or weighs one that is always there: linear layers beside them, or modules with such a name."""
    return [
        f"{block}.{name}"
        for block in blocks
        for name, child in model.get_submodule(block).named_children()
        if isinstance(child, nn.Linear) or name in _ROUTERS
    ]


def _named(model: nn.Module, wanted: list[str], everything: list[str], unreached: Collection[str]) -> list[str]:
    for index, target in enumerate(wanted):
        field = f"{_FIELD}.targetModules[{index}]"
        if not named(target, everything):
            fused = [name for name, p in model.named_parameters() if p.ndim == 3]
            raise BadInput(
                f"{field}: {target!r} is no linear layer of this model{_that(unreached)}; it has {some(leaves(everything))}"
                + (f", and experts in {some(_two_parts(fused))}" if fused else ""),
                code="InvalidSpec",
                remedy="name some of these, or leave targetModules out"
                + ("; experts belong in targetParameters" if fused else " to adapt them all"),
            )
        if expert_blocks(model) and _taken_for_experts(model, target):
            raise BadInput(
                f"{field}: {target!r} would match a part of this model's experts",
                code="InvalidSpec",
                remedy="leave it out; experts are adapted through targetParameters",
            )
    # A name may also mean layers that are left out: then it stands for the others alone.
    strays = {each for target in wanted for each in named(target, linear(model))} - set(everything)
    return _short([each for target in wanted for each in named(target, everything)], model) if strays else wanted


def _that(unreached: Collection[str]) -> str:
    return " that text reaches" if unreached else ""


def _taken_for_experts(model: nn.Module, name: str) -> bool:
    """Whether peft, which knows the experts' names of earlier versions of transformers, would adapt them instead of this layer."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # one of two that are fused
        return True
    return name not in config.target_modules


def _is_called(model: PreTrainedModel, name: str) -> bool:
    """Recurrent layers take the weights of these projections into kernels of their own, past any adapter on them."""
    recurrent = any(kind in model.config.model_type for kind in _RECURRENT)
    return not (recurrent and name.rsplit(".", 1)[-1] in ("out_proj", "dt_proj"))


def _short(names: list[str], model: nn.Module) -> list[str]:
    """Last parts of names where they mean no other module, else the names themselves."""
    chosen = set(names)
    ambiguous = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name not in chosen}
    return sorted({full if (leaf := full.rsplit(".", 1)[-1]) in ambiguous else leaf for full in names})


def _output(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()
    return {name for name, module in model.named_modules() if head is not None and module is head}


def _inside(name: str, outer: str) -> bool:
    """Whether `outer`, a full name or the end of one, is `name` or holds it."""
    return f".{outer}." in f".{name}."


def _is_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split("."))


def _is_layers_own(model: nn.Module, parameter: str) -> bool:
    owner, _, _ = parameter.rpartition(".")
    return not owner or isinstance(model.get_submodule(owner), nn.Linear | Conv1D | nn.Embedding)


def _is_fused(module: nn.Module) -> bool:
    """Whether one weight holds the matrices of all experts."""
    own = module.parameters(recurse=False)
    return not isinstance(module, nn.modules.conv._ConvNd) and any(p.ndim == 3 and len(p) > 1 for p in own)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _two_parts(names: Iterable[str]) -> list[str]:
    """The last two parts of names, such as experts.down_proj, each once."""
    return sorted({".".join(name.split(".")[-2:]) for name in names})
