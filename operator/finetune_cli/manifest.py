"""A manifest from a file to a checked FineTuneJob. Every complaint names the file, the line and the field."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api import API_VERSION, KIND
from finetune_api.errors import sentences
from finetune_api.finetunejob import FineTuneJob
from finetune_api.location import Place
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from finetune_cli.errors import CliError

STDIN = "-"


@dataclass(frozen=True)
class Manifest:
    """`body` is what the user wrote, as JSON; `job` the same, checked; `source` names it in messages."""

    body: dict[str, Any]
    job: FineTuneJob
    source: str
    nodes: Any
    """ruamel's tree, which knows the lines."""

    def where(self, *path: str | int) -> str:
        """`FILE:LINE` of a field, or of the nearest parent that is there."""
        line = line_of(self.nodes, path)
        return f"{self.source}:{line}" if line else self.source


def read(file: str) -> Manifest:
    """The one FineTuneJob in `file` ("-" is the standard input). Raises CliError with a sentence for each thing that is wrong."""
    source, text = _text(file)
    nodes = _document(source, text)
    if not isinstance(nodes, dict):
        raise CliError(f"{source}: this is not a Kubernetes object: it has to begin with apiVersion: {API_VERSION}")
    body = plain(nodes)
    if (body.get("apiVersion"), body.get("kind")) != (API_VERSION, KIND):
        found = f"{body.get('apiVersion', 'no apiVersion')}, {body.get('kind', 'no kind')}"
        raise CliError(f"{source}: not a FineTuneJob: write apiVersion: {API_VERSION} and kind: {KIND} (found {found})")
    body.pop("status", None)  # what `kubectl get -o yaml` wrote; only the operator may say it
    try:
        job = FineTuneJob.model_validate(body, strict=True)  # as the API server reads it: "2" is no number
    except ValidationError as error:
        raise CliError(*_complaints(error, source, nodes)) from None
    return Manifest(body=body, job=job, source=source, nodes=nodes)


def refuse_file_locations(manifest: Manifest) -> None:
    """file:// exists on one machine alone, so a cluster cannot take it."""
    wrong = [
        f"{manifest.where('spec', *path, 'uri')}: spec.{dotted(path)}.uri: {location.uri} works only with "
        "`ftj run --local`; on a cluster write pvc://CLAIM/PATH or hf://OWNER/NAME"
        for path, location in locations(manifest.job.spec)
        if location.uri.startswith("file://")
    ]
    if wrong:
        raise CliError(*wrong)


def locations(model: BaseModel, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Place]]:
    """Every location below `model`, with its path in the API's own names."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        here = (*path, field.alias or name)
        for index, item in enumerate(value) if isinstance(value, list) else ((None, value),):
            where = here if index is None else (*here, index)
            if isinstance(item, Place):
                yield where, item
            elif isinstance(item, BaseModel):
                yield from locations(item, where)


def dotted(path: tuple[str | int, ...]) -> str:
    """spec.data.train[0], as `finetune_api.errors` writes it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def plain(node: Any) -> Any:
    """ruamel's tree as plain JSON values."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node if node is None else str(node)  # YAML's own dates stay the text that they are


def line_of(nodes: Any, path: tuple[str | int, ...]) -> int | None:
    """The line, counted from 1, on which `path` begins; of its nearest parent when it is absent."""
    line: int | None = None
    for part in path:
        try:
            position = nodes.lc.item(part) if isinstance(part, int) else nodes.lc.key(part)
            nodes = nodes[part]
        except (KeyError, IndexError, AttributeError, TypeError):
            break
        line = position[0] + 1
    return line


def _text(file: str) -> tuple[str, str]:
    if file == STDIN:
        return "<stdin>", sys.stdin.read()
    try:
        return file, Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CliError(f"{file}: there is no such file") from None
    except IsADirectoryError:
        raise CliError(f"{file}: this is a folder; name the file with the FineTuneJob in it") from None
    except UnicodeDecodeError:
        raise CliError(f"{file}: not a text file in UTF-8") from None
    except OSError as error:
        raise CliError(f"{file}: cannot be read: {error.strerror}") from None


def _document(source: str, text: str) -> Any:
    """The only document in `text`; empty ones (a leading or trailing ---) do not count."""
    yaml = YAML(typ="rt")  # YAML 1.2: 2e-4 is a number and `no` is a word
    try:
        documents = [document for document in yaml.load_all(text) if document is not None]
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise CliError(f"{place}: not YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError) as error:
        raise CliError(f"{source}: not YAML: {str(error).splitlines()[0]}") from None
    if not documents:
        raise CliError(f"{source}: the file is empty")
    if len(documents) > 1:
        raise CliError(
            f"{source}: {len(documents)} documents; ftj run takes one FineTuneJob: apply the others with kubectl apply -f"
        )
    return documents[0]


def _complaints(error: ValidationError, source: str, nodes: Any) -> list[str]:
    lines = []
    for item, sentence in zip(error.errors(include_url=False), sentences(error, FineTuneJob), strict=True):
        # A rule of the whole object begins with the field that it is about.
        line = line_of(nodes, item["loc"] or tuple(sentence.partition(" ")[0].split(".")))
        lines.append(f"{source}:{line}: {sentence}" if line else f"{source}: {sentence}")
    return lines
