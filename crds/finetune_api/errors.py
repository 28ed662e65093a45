"""pydantic's errors as sentences: which field, what is wrong, what to do."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune_api.spec import FineTuneJobSpec

_DOTTED = re.compile(r"(?<![\w./-])[a-z]\w*(?:\.[a-z]\w*)+(?![\w/])")


def sentences(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """One sentence for each thing that is wrong, such as `spec.training.learningRat: unknown field; did you mean learningRate?`"""
    return [_sentence(item, model) for item in error.errors(include_url=False)]


def with_spec_paths(text: str) -> str:
    """`text` with fields of a FineTuneJob by their paths in a manifest: `training.seed` becomes `spec.training.seed`."""
    return _DOTTED.sub(lambda match: f"spec.{match[0]}" if _is_field(match[0]) else match[0], text)


def _is_field(path: str) -> bool:
    model: type[BaseModel] | None = FineTuneJobSpec
    annotation: Any = None
    for part in path.split("."):
        if model is None:  # the keys of a mapping are the user's
            return "dict[" in str(annotation)
        field = next((field for name, field in model.model_fields.items() if part == (field.alias or name)), None)
        if field is None:
            return False
        annotation, model = field.annotation, _model_in(field.annotation)
    return True


def _sentence(item: Any, model: type[BaseModel] | None) -> str:
    path = _path(item["loc"])
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            names = _siblings(item["loc"][:-1], model)
            close = difflib.get_close_matches(str(item["loc"][-1]), names, n=1)
            hint = (
                f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(sorted(names))}" if names else ""
            )
            return f"{path}: unknown field{hint}"
        case "missing":
            return f"{path}: required, but absent"
        case "literal_error":
            return f"{path}: {item['input']!r} is not one of {context['expected']}"
        case "value_error":
            message = str(context["error"])
            if message.startswith(path.removeprefix("spec.")):  # a rule that names its field itself
                return f"spec.{message}" if path.startswith("spec.") else message
            return f"{path}: {message}"
        case _:
            return f"{path}: {item['msg'][:1].lower()}{item['msg'][1:]}, not {_short(item.get('input'))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _path(loc: tuple[Any, ...]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif "[" not in part and "(" not in part:  # names of union branches are pydantic's, not the user's
            text += f".{part}" if text else part
    return text


def _siblings(loc: tuple[Any, ...], model: type[BaseModel] | None) -> list[str]:
    """Field names that exist at `loc`."""
    for part in loc:
        if model is None:
            return []
        if isinstance(part, int):
            continue
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        model = _model_in(field.annotation) if field else None
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None
