"""From a location in the spec to files on this machine. What is not on a claim is downloaded by `prepare`, once.

It lies sealed in the cache of the workspace, pinned for the run to the content that was seen first: all later stages and all
ranks read the same bytes, training pods need neither network nor token, and no GPU waits for a download. One module a
scheme (hub, s3, gs, https, oci; ondisk for pvc and file) says what is there and gives bytes; remote.py is what they share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from finetune_api.contract import RunConfig
from finetune_api.location import Location
from finetune_api.status import SourceStatus

from finetune_trainer.data.readers import SUFFIXES
from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.sources import addresses, cache, credentials, ondisk, refusals, transfer
from finetune_trainer.sources.cache import Cache
from finetune_trainer.sources.pins import Pin, Pins
from finetune_trainer.sources.refusals import HUB_UNREACHABLE, SOURCE_UNREACHABLE
from finetune_trainer.sources.remote import Remote, Wanted

__all__ = ["DATA_FILES", "HUB_UNREACHABLE", "MODEL_FILES", "SOURCE_UNREACHABLE", "fetch", "local", "pinned"]

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")
DATA_FILES = tuple(f"*{suffix}" for suffix in SUFFIXES)

MOST_SHOWN = 16
"""Entries that status.data.sources holds."""
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_CHANGES = 3
"""Times that content may change while it is downloaded."""


def local(location: Location, config: RunConfig, *, field: str) -> Path:
    """Path of the file or folder that `location` names; for what is downloaded, of what `fetch` left.

    Asks no server and needs no credentials. Raises BadInput (NotFound) in one sentence that begins with `field`, such as
    `spec.model.uri`.
    """
    parsed = location.parsed
    if not parsed.remote:
        path = config.path(location)
        ondisk.check_inside(path, parsed, config, f"{field}: {location.uri}")
        return ondisk.check_readable(path, location, config, field)
    pin = Pins(config.layout.root).at(location, field)
    if pin is None:
        raise StageError(f"{field}: {location.uri} was not downloaded by the prepare stage", code="Unknown")
    path = _cache(config).root / pin.folder / cache.FILES / pin.path
    if not path.exists():
        raise BadInput(
            f"{field}: {location.uri} was downloaded, but is no longer in the cache of the workspace",
            code="NotFound",
            remedy="run the job again with another spec.runToken, and do not change <workspace>/cache while jobs run",
        )
    return path


def fetch(location: Location, config: RunConfig, *, field: str, files: Sequence[str], subfolders: bool = False) -> Path:
    """As `local`, but downloads first: only files that match `files` (glob patterns), at the top alone or in subfolders too.

    Raises BadInput for a location, revision, file or credential that is at fault, StageError when a server does not answer.
    """
    if location.parsed.remote:
        _download(Wanted(location, field, tuple(files), subfolders), config)
    return local(location, config, field=field)


def pinned(config: RunConfig) -> list[SourceStatus]:
    """What was downloaded for this run, in the order of the spec, each with the commit or digest it was pinned to; at most MOST_SHOWN."""
    pins = Pins(config.layout.root)
    found = {(pin.uri, pin.digest): None for location in _locations(config) for pin in pins.all_of(location)}
    return [SourceStatus(uri=uri, digest=digest) for uri, digest in list(found)[:MOST_SHOWN]]


def _locations(config: RunConfig) -> Iterator[Location]:
    spec = config.spec
    yield spec.model
    if spec.method.init_from is not None:
        yield spec.method.init_from
    for locations in (spec.data.train, spec.data.validation, spec.data.test):
        yield from locations or ()


def _cache(config: RunConfig) -> Cache:
    return Cache(config.path(config.spec.workspace), config.spec.workspace.uri, f"{config.job.uid}-{config.job.run}")


def _download(wanted: Wanted, config: RunConfig) -> None:
    pins, downloads = Pins(config.layout.root), _cache(config)
    location = wanted.location
    _check_revision(wanted)
    seen = pins.of(wanted)
    at = seen.digest if seen else _known(wanted, pins)
    folder = downloads.find(wanted, at) if at else None
    if folder is None:
        folder = _from_server(wanted, config, downloads, at)
    digest = cache.digest_of(folder)
    if at and digest != at:
        raise _another(wanted, digest, at, pinned=seen is not None)
    name = folder.relative_to(downloads.root).as_posix()
    pins.keep(wanted, Pin(location.uri, digest, name, cache.path_in(folder), [wanted.field]))


def _known(wanted: Wanted, pins: Pins) -> str | None:
    """The digest that the content must have, where it is known before: from the revision, or from other files of the same."""
    location = wanted.location
    scheme, revision = location.parsed.scheme, location.revision or ""
    if scheme in ("hf", "oci") and (other := pins.at(location)) is not None:
        return other.digest
    if scheme == "hf":
        return revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None
    reference = revision or (location.parsed.tag if scheme == "oci" else "")
    return reference if _SHA256.fullmatch(reference) else None


def _check_revision(wanted: Wanted) -> None:
    location = wanted.location
    if location.parsed.scheme in ("s3", "gs", "https") and not _SHA256.fullmatch(
        location.revision or f"sha256:{0:064}"
    ):
        raise BadInput(
            f"{wanted.field.removesuffix('uri')}revision: {location.revision!r} is none for {location.parsed.scheme}://, which takes sha256:HEX",
            code="InvalidSpec",
            remedy="leave it out; status.data.sources shows the digest to write there",
        )


def _another(wanted: Wanted, digest: str, expected: str, *, pinned: bool) -> BadInput:
    uri = wanted.location.uri
    if pinned:
        return BadInput(
            f"{wanted.field}: {uri} was {expected} when this run saw it first, and is {digest} now",
            code="NotFound",
            remedy="put back what was there, or run the job again with another spec.runToken",
        )
    return BadInput(
        f"{wanted.field}: {uri} is {digest}, and not the revision {expected}",
        code="NotFound",
        remedy="correct the revision, or leave it out",
    )


def _from_server(wanted: Wanted, config: RunConfig, downloads: Cache, at: str | None) -> Path:
    values = credentials.of(wanted.location, wanted.field)
    opener = _OPENERS[wanted.location.parsed.scheme]
    with addresses.watched(), closing(opener(wanted, values, at, f"{config.job.uid}/{config.job.run}")) as remote:
        for _ in range(_CHANGES):
            try:
                return downloads.take(wanted, transfer.asked(remote.look, remote), remote)
            except cache.Changed:
                continue
            except StageError:
                raise
            except Exception as error:
                said = remote.explained(error)
            raise said from None  # what a library raises may hold what nobody should read
        raise refusals.unreachable(remote.place, "it changes faster than it can be read")


def _hub(wanted: Wanted, values: Mapping[str, str], at: str | None, run: str) -> Remote:
    from finetune_trainer.sources.hub import Hub

    return Hub(wanted, values, at)


def _s3(wanted: Wanted, values: Mapping[str, str], at: str | None, run: str) -> Remote:
    from finetune_trainer.sources.s3 import S3

    return S3(wanted, values)


def _gs(wanted: Wanted, values: Mapping[str, str], at: str | None, run: str) -> Remote:
    from finetune_trainer.sources.gs import GoogleStorage

    return GoogleStorage(wanted, values)


def _https(wanted: Wanted, values: Mapping[str, str], at: str | None, run: str) -> Remote:
    from finetune_trainer.sources.https import Https

    return Https(wanted, values, run)


def _oci(wanted: Wanted, values: Mapping[str, str], at: str | None, run: str) -> Remote:
    from finetune_trainer.sources.oci import Oci

    return Oci(wanted, values, at)


# Each imports its client library only when it is needed: they are slow to import.
_OPENERS: Mapping[str, Callable[[Wanted, Mapping[str, str], str | None, str], Remote]] = {
    "hf": _hub,
    "s3": _s3,
    "gs": _gs,
    "https": _https,
    "oci": _oci,
}
