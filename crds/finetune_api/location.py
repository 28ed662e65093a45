"""A location: the one shape in which models, data, workspaces and outputs are named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from finetune_api.base import DNS_SUBDOMAIN, ApiModel, ObjectName
from finetune_api.rules import Rule, Ruled

Scheme = Literal["pvc", "hf", "file"]

CLAIMS_ROOT = "/mnt/claims"
"""Where a stage's pod sees claims: `pvc://NAME/PATH` is the folder or file CLAIMS_ROOT/NAME/PATH."""

_PVC = re.compile(r"^pvc://(?P<claim>[^/]+)(?P<path>(/[^/]+)*)/?$")
_HF = re.compile(r"^hf://(?P<dataset>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?P<path>(/[^/]+)*)$")
_FILE = re.compile(r"^file://(?P<path>/.*)$")


@dataclass(frozen=True, slots=True)
class ParsedLocation:
    """`claim` is set for pvc, `repo` for hf. `path` is relative within the claim or repository, absolute for file."""

    scheme: Scheme
    path: str
    claim: str = ""
    repo: str = ""
    is_dataset: bool = False

    def on_disk(self, claims_root: str | Path = CLAIMS_ROOT) -> Path:
        """The path of a `pvc` or `file` location on this machine; `hf` has none until it is downloaded."""
        match self.scheme:
            case "pvc":
                return Path(claims_root) / self.claim / self.path
            case "file":
                return Path(self.path)
            case "hf":
                raise ValueError(f"hf://{self.repo} is not on disk before it was downloaded")


def parse_uri(uri: str) -> ParsedLocation:
    """Take a location's `uri` apart. Raises ValueError with one sentence that says what a right one looks like."""
    if match := _PVC.match(uri):
        parts = [part for part in match["path"].split("/") if part]
        if not re.match(DNS_SUBDOMAIN, match["claim"]):
            raise ValueError(
                f"{uri!r}: {match['claim']!r} is not the name of a PersistentVolumeClaim; write pvc://CLAIM/PATH"
            )
        if any(part in (".", "..") for part in parts):
            raise ValueError(f"{uri!r}: a path inside a claim may not contain '.' or '..'")
        return ParsedLocation("pvc", "/".join(parts), claim=match["claim"])
    if match := _HF.match(uri):
        return ParsedLocation("hf", match["path"].lstrip("/"), repo=match["repo"], is_dataset=bool(match["dataset"]))
    if match := _FILE.match(uri):
        return ParsedLocation("file", match["path"])
    raise ValueError(
        f"{uri!r} is not a location: write pvc://CLAIM/PATH (a PersistentVolumeClaim in the job's namespace), "
        "hf://OWNER/NAME (a hub), or, in local runs only, file:///ABSOLUTE/PATH"
    )


def _parses(uri: str) -> bool:
    try:
        parse_uri(uri)
    except ValueError:
        return False
    return True


_ANY = (
    "uri must be pvc://CLAIM/PATH (a PersistentVolumeClaim in the job's namespace) or hf://OWNER/NAME (a hub); "
    "file:///PATH works only with `ftj run --local`"
)
_CLAIM_ONLY = (
    "uri must be pvc://CLAIM/PATH, a PersistentVolumeClaim in the job's namespace, with no '.' or '..' in it; "
    "file:///PATH works only with `ftj run --local`"
)
_PVC_CEL = (
    r"""(self.uri.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/]+)*/?$') && !self.uri.matches('/[.][.]?(/|$)'))"""
)
_HF_CEL = r"""self.uri.matches('^hf://(datasets/)?[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(/[^/]+)*$')"""


class SecretRef(ApiModel):
    """A Secret in the job's namespace. Its keys are environment names; they are set only in the stage that needs them."""

    name: ObjectName = Field(description="Name of the Secret, for hf:// one with the key HF_TOKEN.")


class Location(ApiModel, Ruled):
    """Where something lies: a path on a claim, or a repository on a hub."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(f"{_PVC_CEL} || {_HF_CEL}", _ANY, lambda self: _parses(self.uri)),
        Rule(
            "self.uri.startsWith('hf://') || !(has(self.revision) || has(self.endpoint) || has(self.secretRef))",
            "revision, endpoint and secretRef belong to hf:// locations: remove them, or name a hub",
            lambda self: self.uri.startswith("hf://") or not (self.revision or self.endpoint or self.secret_ref),
        ),
    )

    uri: str = Field(
        max_length=512,
        description="pvc://CLAIM/PATH, or hf://OWNER/NAME (models), hf://datasets/OWNER/NAME/FILE (data).",
    )
    revision: str | None = Field(
        default=None, max_length=128, description="Branch, tag or commit of an hf:// repository."
    )
    secret_ref: SecretRef | None = Field(default=None, description="Secret with the credentials for this location.")
    endpoint: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^https?://",
        description="Another hub than the public one, for hf:// (a mirror inside your network).",
    )

    @property
    def parsed(self) -> ParsedLocation:
        return parse_uri(self.uri)


class ClaimLocation(Location):
    """A location that is written to: today a path on a claim."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(_PVC_CEL, _CLAIM_ONLY, lambda self: _parses(self.uri) and not self.uri.startswith("hf://")),
        Location.RULES[1],
    )
