"""A location: the one shape in which models, data, workspaces and outputs are named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from finetune_api.base import DNS_SUBDOMAIN, ApiModel, ObjectName
from finetune_api.rules import Rule, Ruled

Scheme = Literal["pvc", "file", "hf", "s3", "gs", "https", "oci"]
REMOTE: tuple[Scheme, ...] = ("hf", "s3", "gs", "https", "oci")
"""Schemes whose content is downloaded, by prepare alone."""

CLAIMS_ROOT = "/mnt/claims"
"""Where a stage's pod sees claims: `pvc://NAME/PATH` is the folder or file CLAIMS_ROOT/NAME/PATH."""

_PVC = re.compile(r"^pvc://(?P<claim>[^/]+)(?P<path>(/[^/]+)*)/?$")
_HF = re.compile(r"^hf://(?P<dataset>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?P<path>(/[^/]+)*)$")
_FILE = re.compile(r"^file://(?P<path>/.*)$")
_BUCKET = re.compile(r"^(?P<scheme>s3|gs)://(?P<host>[a-z0-9][a-z0-9._-]+)(?P<path>(/[^/]+)+)/?$")
_HTTPS = re.compile(r"^https://(?P<host>[A-Za-z0-9.\[\]:-]+)(?P<path>/[^\s?#]+)$")
_OCI = re.compile(
    r"^oci://(?P<host>[A-Za-z0-9.-]+(:[0-9]+)?)/(?P<repo>[a-z0-9]+([._/-]+[a-z0-9]+)*)(:(?P<tag>[\w][\w.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?$"
)


@dataclass(frozen=True, slots=True)
class ParsedLocation:
    """`claim` is set for pvc, `repo` for hf and oci, `host` for s3 and gs (the bucket), https and oci (the registry).

    `path` is absolute for file; relative within the claim, repository, bucket or host otherwise; empty for oci, whose
    `tag` is a tag or a digest.
    """

    scheme: Scheme
    path: str
    claim: str = ""
    repo: str = ""
    is_dataset: bool = False
    host: str = ""
    tag: str = ""

    @property
    def remote(self) -> bool:
        return self.scheme in REMOTE

    def on_disk(self, claims_root: str | Path = CLAIMS_ROOT) -> Path:
        """The path of a `pvc` or `file` location on this machine; others have none until they are downloaded."""
        match self.scheme:
            case "pvc":
                return Path(claims_root) / self.claim / self.path
            case "file":
                return Path(self.path)
            case _:
                raise ValueError(f"a location of scheme {self.scheme} is not on disk before it was downloaded")


def parse_uri(uri: str) -> ParsedLocation:
    """Take a location's `uri` apart. Raises ValueError with one sentence that says what a right one looks like."""
    if match := _PVC.match(uri):
        if not re.match(DNS_SUBDOMAIN, match["claim"]):
            raise ValueError(
                f"{uri!r}: {match['claim']!r} is not the name of a PersistentVolumeClaim; write pvc://CLAIM/PATH"
            )
        return ParsedLocation("pvc", _inside(uri, match["path"]), claim=match["claim"])
    if match := _HF.match(uri):
        path = _inside(uri, match["path"])
        return ParsedLocation("hf", path, repo=match["repo"], is_dataset=bool(match["dataset"]))
    if match := _FILE.match(uri):
        return ParsedLocation("file", match["path"])
    if match := _BUCKET.match(uri):
        scheme: Scheme = "s3" if match["scheme"] == "s3" else "gs"
        return ParsedLocation(scheme, _inside(uri, match["path"]), host=match["host"])
    if match := _HTTPS.match(uri):
        return ParsedLocation("https", _inside(uri, match["path"]), host=match["host"])
    if match := _OCI.match(uri):
        tag = (match["digest"] or "").removeprefix("@") or match["tag"] or "latest"
        return ParsedLocation("oci", "", repo=match["repo"], host=match["host"], tag=tag)
    raise ValueError(
        f"{uri!r} is not a location: write pvc://CLAIM/PATH (a PersistentVolumeClaim in the job's namespace), "
        "hf://OWNER/NAME (a hub), s3://BUCKET/KEY, gs://BUCKET/KEY, https://HOST/PATH, oci://REGISTRY/NAME:TAG, "
        "or, in local runs only, file:///ABSOLUTE/PATH"
    )


def _inside(uri: str, path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise ValueError(f"{uri!r}: a path may not contain '.' or '..'")
    return "/".join(parts)


def _parses(uri: str) -> bool:
    try:
        parse_uri(uri)
    except ValueError:
        return False
    return True


_ANY = (
    "uri must be pvc://CLAIM/PATH, hf://OWNER/NAME, s3://BUCKET/KEY, gs://BUCKET/KEY, https://HOST/PATH or oci://REGISTRY/NAME:TAG, "
    "with no '.' or '..' in it; file:///PATH is for `ftj run --local`"
)
_CLAIM_ONLY = (
    "uri must be pvc://CLAIM/PATH, a PersistentVolumeClaim in the job's namespace, with no '.' or '..' in it; "
    "file:///PATH is for `ftj run --local`"
)
_NO_DOTS_CEL = "!self.uri.matches('/[.][.]?(/|$)')"
_PVC_PATTERN = "pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/]+)*/?"
_ANY_PATTERN = "|".join(
    (
        _PVC_PATTERN,
        "hf://(datasets/)?[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(/[^/]+)*",
        "(s3|gs)://[a-z0-9][a-z0-9._-]+(/[^/]+)+/?",
        "https://[A-Za-z0-9.:-]+/[^ ?#]+",
        "oci://[A-Za-z0-9.:-]+/[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?(@sha256:[0-9a-f]{64})?",
    )
)


class SecretRef(ApiModel):
    """A Secret in the job's namespace. Its keys are environment names; they reach only the stage that needs them."""

    name: ObjectName = Field(description="Name of the Secret; docs/sources.md has the keys of each scheme.")


class CaBundleRef(ApiModel):
    """A ConfigMap in the job's namespace with certificates (PEM) to trust beside the usual ones."""

    name: ObjectName
    key: str = Field(default="ca.crt", max_length=253)


class Place(ApiModel, Ruled):
    """What every location has: a `uri`."""

    uri: str = Field(max_length=512)

    @property
    def parsed(self) -> ParsedLocation:
        return parse_uri(self.uri)


class Location(Place):
    """Where something lies: a path on a claim, a repository on a hub, an object store, a web server, a registry."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.uri.matches('^({_ANY_PATTERN})$') && {_NO_DOTS_CEL}",
            _ANY,
            lambda self: _parses(self.uri),
        ),
        Rule(
            "(!self.uri.startsWith('pvc:') || !(has(self.revision) || has(self.endpoint) || has(self.secretRef) || has(self.caBundleRef))) && (!has(self.region) || self.uri.startsWith('s3:'))",
            "revision, endpoint, secretRef and caBundleRef belong to what is downloaded, region to s3://: remove them",
            lambda self: (
                (
                    not self.uri.startswith(("pvc:", "file:"))
                    or not (self.revision or self.endpoint or self.secret_ref or self.ca_bundle_ref)
                )
                and (self.region is None or self.uri.startswith("s3:"))
            ),
        ),
    )

    uri: str = Field(
        max_length=512,
        description="pvc://CLAIM/PATH, hf://OWNER/NAME (models), hf://datasets/OWNER/NAME/FILE (data), s3://BUCKET/KEY, gs://BUCKET/KEY, https://HOST/PATH, oci://REGISTRY/NAME:TAG.",
    )
    revision: str | None = Field(
        default=None,
        max_length=128,
        description="hf: branch, tag or commit. oci: tag or digest. s3, gs, https: the sha256:HEX that status shows.",
    )
    secret_ref: SecretRef | None = Field(default=None, description="Secret with the credentials for this location.")
    endpoint: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^https?://",
        description="Another server than the usual one: a mirror of the hub, an S3 store of your own.",
    )
    region: str | None = Field(default=None, max_length=64, description="Region of an s3:// bucket.")
    ca_bundle_ref: CaBundleRef | None = Field(default=None, description="ConfigMap with the server's certificates.")


class ClaimLocation(Place):
    """A location that is written to: today a path on a claim."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.uri.matches('^{_PVC_PATTERN}$') && {_NO_DOTS_CEL}",
            _CLAIM_ONLY,
            lambda self: _parses(self.uri) and self.uri.startswith(("pvc:", "file:")),
        ),
    )
