"""What went wrong between us and a server, in one sentence that says what to do. Never shows a credential."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.sources import credentials
from finetune_trainer.sources.addresses import Forbidden

HUB_UNREACHABLE = "HubUnreachable"
SOURCE_UNREACHABLE = "SourceUnreachable"
_TEMPORARY = frozenset({408, 425, 429})
"""Statuses of the client's that pass by themselves."""


class Misled(Exception):
    """A redirect that is not followed, or an answer that was not asked for; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is downloaded: `field` of the spec, its `uri`, the `server` that is asked, and with which credentials."""

    field: str
    uri: str
    server: str
    scheme: str
    secret: str | None = None
    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.field}: {self.uri}"


def explained(error: BaseException, place: Place) -> StageError:
    """BadInput where trying again is no use, StageError where it may be."""
    for cause in causes(error):
        for kind, sentence in _SENTENCES:
            if isinstance(cause, kind) and (found := sentence(cause, place)) is not None:
                return found
    if (status := status_of(error)) is not None and (refused := of_status(status, place)) is not None:
        return refused
    return unreachable(place, str(error).strip() or type(error).__name__)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it, however its library keeps them."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        kept = (getattr(cause, name, None) for name in ("__cause__", "__context__", "reason", "certificate_error"))
        waiting += [*kept, *cause.args]


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a library's error is about."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping):  # botocore
            found: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(response, "status_code", None) or getattr(cause, "status", None)
            found = found or getattr(cause, "code", None)
        if str(found).isdigit() and 400 <= int(found) < 600:
            return int(found)
    return None


def of_status(status: int, place: Place) -> BadInput | None:
    """What a server refused for good; None for what may pass by itself."""
    if status in (401, 403):
        return no_access(place)
    if status in (404, 410):
        return absent(place)
    if 400 <= status < 500 and status not in _TEMPORARY:
        return BadInput(f"{place} cannot be downloaded: {place.server} answers with status {status}", code="NotFound")
    return None


def no_access(place: Place) -> BadInput:
    """Refused for want of credentials, or in spite of them."""
    keys = credentials.said(place.scheme)
    if place.secret:
        return BadInput(
            f"{place} may not be read with the credentials in Secret {place.secret}: {place.server} refuses them",
            code="MissingCredential",
            remedy=f"check {keys} in the Secret, and what it may read",
        )
    return BadInput(
        f"{place} may not be read without credentials: {place.server} asks for them",
        code="MissingCredential",
        remedy=f"put {keys} into a Secret of the job's namespace and name it in secretRef",
    )


def absent(place: Place, what: str | None = None) -> BadInput:
    """Not there, or hidden from who may not read it."""
    return BadInput(
        f"{place} does not exist: {what or f'{place.server} has nothing there'}",
        code="NotFound",
        remedy="correct the uri"
        if place.secret
        else "correct the uri; what is private is often shown as absent: then name a Secret in secretRef",
    )


def unreachable(place: Place, reason: str) -> StageError:
    """Worth another try."""
    return StageError(
        f"{place} could not be downloaded from {place.server}: {clean(reason, place)}",
        code=HUB_UNREACHABLE if place.scheme == "hf" else SOURCE_UNREACHABLE,
        remedy="check that the pods reach the server (proxy, network policy), or copy the files to a claim and use pvc://",
    )


def clean(reason: str, place: Place) -> str:
    """The first line of what a library says, without credentials and without the signed part of URLs."""
    line = next((line.strip() for line in reason.splitlines() if line.strip()), "no reason given")
    line = credentials.masked(line, place.values.values())
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", re.sub(r"//[^/\s@'\"]+@", "//", line))[:300]


def _forbidden(error: BaseException, place: Place) -> BadInput:
    assert isinstance(error, Forbidden)
    return BadInput(
        f"{place} leads to {error.address}, {error.kind}: nothing is downloaded from there",
        code="InvalidSpec",
        remedy="correct the uri or the endpoint, or ask who runs the server why it leads there",
    )


def _misled(error: BaseException, place: Place) -> BadInput:
    return BadInput(f"{place}: {clean(str(error), place)}", code="NotFound")


def _untrusted(error: BaseException, place: Place) -> BadInput:
    reasons = (getattr(cause, "verify_message", None) for cause in causes(error))
    message = next((reason for reason in reasons if reason), "it cannot be verified")
    return BadInput(
        f"{place}: the certificate of {place.server} is not trusted here ({message})",
        code="UntrustedCertificate",
        remedy="put the certificates of its authority (PEM) into a ConfigMap and name it in caBundleRef",
    )


def _disk(error: BaseException, place: Place) -> BadInput | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadInput(
            f"{place.field}: the workspace has no room for {place.uri}",
            code="StorageFull",
            remedy="name a larger volume in spec.workspace.uri, or delete what is no longer needed on it",
        )
    return None


_SENTENCES: tuple[tuple[type[BaseException], Any], ...] = (
    (StageError, lambda error, place: error),
    (Forbidden, _forbidden),
    (Misled, _misled),
    (ssl.SSLCertVerificationError, _untrusted),
    (socket.gaierror, lambda error, place: unreachable(place, f"its name cannot be resolved ({error.strerror})")),
    (OSError, _disk),
)
