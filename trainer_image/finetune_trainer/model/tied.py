"""Embeddings that share their weight with the output head, when one of them is trained whole beside an adapter.

An adapter with a copy of one of the two would work by itself, but merging it would silently lose the copy. So both are
trained as the one weight that they are: peft's `ensure_weight_tying`, which the saved settings then say as well.
"""

from __future__ import annotations

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
