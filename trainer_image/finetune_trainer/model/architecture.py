"""What a model is made for, by its configuration alone. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from finetune_api.method import MethodType, Task

from finetune_trainer.errors import BadInput

Kind = Literal["decoder", "encoder", "encoder-decoder"]

NAMES: dict[Task, str] = {
    "causal-lm": "a causal language model",
    "seq2seq-lm": "an encoder-decoder model",
    "sequence-classification": "a classifier",
}

_CLASSIFIERS: dict[MethodType, tuple[Kind, ...]] = {"prompt": ("encoder", "decoder"), "prefix": ("decoder",)}
"""Kinds of models whose classifiers can have virtual tokens."""


def kind(config: Any) -> Kind:
    """Of a transformers configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        return "encoder-decoder"
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "encoder" if masked and not getattr(config, "is_decoder", False) else "decoder"


def tasks(config: Any) -> tuple[Task, ...]:
    """The tasks that transformers, or the model's own code, has a class for; the one it is made for first."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    own = getattr(config, "auto_map", None) or {}
    shape, name = kind(config), config.model_type
    found: list[Task] = []
    if shape == "decoder" and (name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in own):
        found.append("causal-lm")
    if shape == "encoder-decoder" and (
        name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or "AutoModelForSeq2SeqLM" in own
    ):
        found.append("seq2seq-lm")
    if name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES or "AutoModelForSequenceClassification" in own:
        classifier: Task = "sequence-classification"
        made_for = any(str(each).endswith("ForSequenceClassification") for each in config.architectures or ())
        found.insert(0 if made_for else len(found), classifier)
    return tuple(found)


def check_virtual_tokens(method: MethodType, task: Task, config: Any) -> None:
    """Raises BadInput (InvalidSpec) where a classifier cannot have virtual tokens.

    An encoder-decoder's classifier looks for its answer by token ids, which virtual ones do not have; an encoder takes
    no keys and values from outside.
    """
    shape = kind(config)
    if task != "sequence-classification" or shape in _CLASSIFIERS.get(method, (shape,)):
        return
    raise BadInput(
        f"spec.method.type: a classifier made of {_a(shape)} model, as {config.model_type} is, cannot be tuned by {method}",
        code="InvalidSpec",
        remedy="take method.type " + ("prompt or lora" if shape in _CLASSIFIERS["prompt"] else "lora"),
    )


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
