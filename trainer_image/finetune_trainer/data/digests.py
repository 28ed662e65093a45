"""Digests that tell whether two stages speak of the same data, tokenizer and template. Stable over processes and machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 (hex) of all that decides which ids a transformers tokenizer gives: vocabulary, rules and special tokens.

    Padding and truncation are left out: they are a caller's momentary settings, not part of the tokenizer.
    """
    special = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "additional_special_tokens"
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        for momentary in ("version", "truncation", "padding"):
            state.pop(momentary, None)
    else:
        state = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return json_digest({"state": state, "special": special})


def template_digest(template: str, arguments: dict[str, Any] | None = None) -> str:
    """sha256 (hex) of a chat template's text (`chat.template_of` gives the one in force), and of its arguments if it has any."""
    return json_digest([template, arguments]) if arguments else hashlib.sha256(template.encode()).hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """sha256 (hex) over the content of files in their order; names and places do not count."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """sha256 (hex) of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest() -> str:
    """sha256 (hex) of the modules that decide what shards hold: this package's source."""
    return files_digest(sorted(Path(__file__).parent.rglob("*.py")))
