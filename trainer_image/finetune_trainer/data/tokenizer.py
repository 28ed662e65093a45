"""Tokenizers of model folders, with the chat template in force: the model's own, the spec's, or a plain default."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from finetune_api.method import Task

from finetune_trainer.errors import BadInput, first_line

DEFAULT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}"
    "{% if tools %}{{ '### Tools:\n' }}{% for tool in tools %}{{ (tool | tojson) + '\n' }}{% endfor %}{{ '\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'tool' %}{{ '### Tool:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Assistant:\n' }}{% generation %}{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ '\n' if message['content'] or not loop.first }}"
    "{{ '### Call: ' + (call['function'] | tojson) }}{% endfor %}"
    "{{ eos_token }}{% endgeneration %}{{ '\n\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""Made of plain text, so that it needs no token that the vocabulary lacks; a turn ends with the tokenizer's end token."""


def load_tokenizer(
    folder: Path, *, field: str = "spec.model", template: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of a model folder, with the chat template in force set on it (so that saving it saves the template).

    The template in force is `template` where one is given, else the model's own, else a plain one, which
    `tokenizer.finetune_template_is_default` tells. `trust_remote_code`: run Python code that the folder brings.
    Raises BadInput (InvalidModel; InvalidSpec for `template`).
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a broken tokenizer file raises
        raise BadInput(
            f"{field}: no tokenizer could be read from it: {first_line(error)}",
            code="InvalidModel",
            remedy="the folder needs tokenizer.json (and tokenizer_config.json) as Hugging Face writes them",
        ) from error
    if not getattr(tokenizer, "is_fast", False) or not len(tokenizer):
        raise BadInput(
            f"{field}: its tokenizer has no tokenizer.json, and one is needed to tell prompts from answers",
            code="InvalidModel",
            remedy="save the tokenizer once with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    if template is not None:
        _check_template(template)
        tokenizer.chat_template = template
    tokenizer.finetune_template_is_default = not tokenizer.chat_template
    if tokenizer.finetune_template_is_default:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    return tokenizer


def check_end_token(tokenizer: Any, *, field: str) -> None:
    """Raises BadInput (InvalidModel) when a language model's tokenizer names no token that ends an answer."""
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"{field}: its tokenizer names no eos_token, so a model could never learn where an answer ends",
            code="InvalidModel",
            remedy="set eos_token in tokenizer_config.json",
        )


def pad_id(tokenizer: Any, vocabulary: int) -> int:
    """What fills up short rows: the pad token, or the end token where there is none among the model's `vocabulary`. Masks say what
    is trained, so that neither does harm."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return next((token for token in known if token is not None and token < vocabulary), 0)


def settle(tokenizer: Any, task: Task, vocabulary: int) -> None:
    """Make a tokenizer what is saved with the result of a task. Its digests change: compare them before.

    A classifier's names its pad token: a decoder that classifies finds the end of a row by it, and refuses batches
    without. One that the model's `vocabulary` does not have gives way to one that it has. The plain default template belongs to models that hold conversations.
    """
    pad = tokenizer.pad_token_id
    if pad >= vocabulary if pad is not None else task == "sequence-classification":
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(tokenizer, vocabulary))
    if task != "causal-lm" and tokenizer.finetune_template_is_default:
        tokenizer.chat_template = None


def _check_template(template: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(template)
    except Exception as error:  # jinja2.TemplateError, and whatever a lexer raises beside it
        line = getattr(error, "lineno", None)
        raise BadInput(
            f"spec.data.template: is no Jinja template{f' from its line {line} on' if line else ''}: {first_line(error)}",
            code="InvalidSpec",
            remedy="correct it, or leave data.template out to use the model's own",
        ) from error


def template_of(tokenizer: Any) -> str:
    """Text of the chat template in force."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else DEFAULT_TEMPLATE
