"""Manifests, from a file to checked FineTuneJobs. Every complaint names the file, the line and the field."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api import API_VERSION, GROUP, KIND
from finetune_api.errors import sentences
from finetune_api.finetunejob import FineTuneJob
from finetune_api.location import Place
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from finetune_cli.errors import CliError

STDIN = "-"
_ROUNDS = 3


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong with a manifest: a sentence that begins with the field."""

    source: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.message}" if self.line else f"{self.source}: {self.message}"


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
    source, text = text_of(file)
    documents, complaints = _documents(source, text)
    if complaints:
        raise CliError(*map(str, complaints))
    if not documents:
        raise CliError(f"{source}: the file is empty")
    if len(documents) > 1:
        raise CliError(
            f"{source}: {len(documents)} documents; ftj run takes one FineTuneJob: apply the others with kubectl apply -f"
        )
    given = checked(source, documents[0])
    if not isinstance(given, Manifest):
        raise CliError(*map(str, given))
    return given


def read_all(file: str) -> tuple[list[Manifest], list[Complaint]]:
    """Every FineTuneJob in `file`, however many documents it has, and all that is wrong in it. Other kinds are passed over."""
    source, text = text_of(file)
    documents, complaints = _documents(source, text)
    jobs: list[Manifest] = []
    for nodes in documents:
        for item in (nodes.get("items") or []) if isinstance(nodes, dict) and nodes.get("kind") == "List" else [nodes]:
            if not _meant(item):
                continue
            given = checked(source, item)
            if isinstance(given, Manifest):
                jobs.append(given)
            else:
                complaints += given
    return jobs, complaints


def checked(source: str, nodes: Any) -> Manifest | list[Complaint]:
    """A document as a FineTuneJob, or what is wrong with it."""
    if not isinstance(nodes, dict):
        message = f"this is not a Kubernetes object: it has to begin with apiVersion: {API_VERSION}"
        return [Complaint(source, None, message)]
    body = plain(nodes)
    if (body.get("apiVersion"), body.get("kind")) != (API_VERSION, KIND):
        found = f"{body.get('apiVersion', 'no apiVersion')}, {body.get('kind', 'no kind')}"
        message = f"not a FineTuneJob: write apiVersion: {API_VERSION} and kind: {KIND} (found {found})"
        return [Complaint(source, None, message)]
    body.pop("status", None)  # what `kubectl get -o yaml` wrote; only the operator may write it
    try:
        job = _parse(body)
    except ValidationError:
        return _complaints(body, source, nodes)
    return Manifest(body=body, job=job, source=source, nodes=nodes)


def _parse(body: dict[str, Any]) -> FineTuneJob:
    """As the API server reads it: "2" is no number."""
    return FineTuneJob.model_validate(body, strict=True)


def _meant(nodes: Any) -> bool:
    """Whether a document is one of ours, or was meant to be (a misspelt kind, another version)."""
    if not isinstance(nodes, dict):
        return False
    return str(nodes.get("apiVersion")).startswith(f"{GROUP}/") or str(nodes.get("kind")).lower() == KIND.lower()


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


def text_of(file: str) -> tuple[str, str]:
    """What the file is called in messages, and what it holds. Raises CliError when it cannot be read."""
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


def _documents(source: str, text: str) -> tuple[list[Any], list[Complaint]]:
    """The documents in `text`; empty ones (a leading or trailing ---) do not count. With a complaint none is whole."""
    yaml = YAML(typ="rt")  # YAML 1.2: 2e-4 is a number and `no` is a word
    try:
        return [document for document in yaml.load_all(text) if document is not None], []
    except MarkedYAMLError as error:
        mark = error.problem_mark
        return [], [Complaint(source, mark.line + 1 if mark else None, f"not YAML: {error.problem or error.context}")]
    except (YAMLError, ValueError) as error:
        return [], [Complaint(source, None, f"not YAML: {str(error).splitlines()[0]}")]
    except RecursionError:
        return [], [Complaint(source, None, "nested too deeply to be read")]


def _complaints(body: dict[str, Any], source: str, nodes: Any) -> list[Complaint]:
    """Rules across fields are checked only when the fields are right, so wrong ones are taken out and the rest is read again."""
    left, taken = copy.deepcopy(body), set[tuple[str | int, ...]]()
    found: dict[str, Complaint] = {}
    for _ in range(_ROUNDS):
        try:
            _parse(left)
            break
        except ValidationError as error:
            items = error.errors(include_url=False)
            for item, sentence in zip(items, sentences(error, FineTuneJob), strict=True):
                if item["loc"] not in taken:
                    line = line_of(nodes, _named(item, sentence))
                    found.setdefault(sentence, Complaint(source, line, sentence))
            wrong = {item["loc"] for item in items if item["type"] not in ("missing", "value_error")} - taken
        gone = {loc for loc in wrong if _take_out(left, loc)}
        if not gone:
            break
        taken |= gone
    return sorted(found.values(), key=lambda complaint: complaint.line or 0)


def _named(item: Any, sentence: str) -> tuple[str | int, ...]:
    """The field that a complaint is about. A rule's own words begin with it; anything else has it in `loc`."""
    if item["type"] != "value_error":
        return tuple(item["loc"])
    first, _, rest = sentence.partition(" ")
    path = f"spec.{rest.partition(' ')[0]}" if first == "spec:" else first.rstrip(":")
    parts = tuple(int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", path) if part)
    return parts if parts[: len(item["loc"])] == item["loc"] else tuple(item["loc"])


def _take_out(body: Any, loc: tuple[str | int, ...]) -> bool:
    """Whether there was such a field. Items of lists stay, since the others would move."""
    *above, name = loc
    try:
        for part in above:
            body = body[part]
        if isinstance(body, dict):
            del body[name]
            return True
    except (KeyError, IndexError, TypeError):
        pass
    return False
