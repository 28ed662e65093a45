"""Embeddings that share their weight with the output head, when one of them is trained whole beside an adapter.

An adapter with a copy of one of the two would work by itself, but merging it would silently lose the copy. So both are
trained as the one weight that they are: peft's `ensure_weight_tying`, which the saved settings then say as well.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from finetune_trainer.errors import BadInput
from finetune_trainer.model.sentences import named, some

_KNOWN_TO_PEFT = ("embed_tokens", "lm_head")
"""peft looks for the tied modules only when one of these names is asked for; it then finds the others by their weight."""


def together(model: PreTrainedModel, wanted: list[str]) -> tuple[list[str], bool]:
    """Names of modules to save, and whether tied ones are among them.

    Raises BadInput (InvalidSpec) for a model that ties its embeddings in a way that cannot be kept.
    """
    shared = sharers(model)
    hit = [name for name in wanted if named(name, shared)]
    if not hit:
        return wanted, False
    known = [full for full in shared if full.rsplit(".", 1)[-1] in _KNOWN_TO_PEFT]
    output = model.get_output_embeddings()
    if len(shared) != 2 or not known or getattr(output, "bias", None) is not None:
        raise BadInput(
            f"spec.method.lora.modulesToSave: {hit[0]!r} shares its weight with {some(name for name in shared if not name.endswith(hit[0]))}, and an adapter cannot hold them together",
            code="InvalidSpec",
            remedy="leave it out, or take method.type full",
        )
    return [name for name in wanted if name not in hit] + [known[0].rsplit(".", 1)[-1]], True


def check_adapted(net: Any, shared: list[str], *, earlier: bool) -> None:
    """Raises BadInput when an adapter is on one of the modules that `shared` a weight before `net` was wrapped, without the other.

    Merged, it would change both. An adapter to go on from may hold them together, by peft's `ensure_weight_tying`.
    """
    if any(config.is_prompt_learning or config.ensure_weight_tying for config in net.peft_config.values()):
        return
    for name in shared:
        if name in net.base_model.targeted_module_names:
            leaf, others = name.rsplit(".", 1)[-1], some(each for each in shared if each != name)
            raise BadInput(
                f"{'spec.method.initFrom' if earlier else 'spec.method.lora.targetModules'}: {leaf!r} shares its weight with {others}, and an adapter on one of them cannot be merged",
                code="InvalidModel" if earlier else "InvalidSpec",
                remedy="name an adapter without it" if earlier else "leave it out, or name it in modulesToSave",
            )


def sharers(model: PreTrainedModel) -> list[str]:
    """Names of the modules whose weight is the input embeddings', if there are several; else none."""
    embeddings = model.get_input_embeddings()
    weight = getattr(embeddings, "weight", None)
    if weight is None:
        return []
    names = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if module._parameters.get("weight") is weight
    ]
    return names if len(names) > 1 else []
