"""oci://REGISTRY/NAME:TAG: an artifact of a registry, as `oras push` makes it: a layer for each file or packed folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.sources import names, network, refusals, unpack
from finetune_trainer.sources.remote import Entry, Remote, Snapshot, Wanted
from finetune_trainer.sources.web import MOST_REDIRECTS, begin_of

_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_TITLE = "org.opencontainers.image.title"
_UNPACK = "io.deis.oras.content.unpack"
_MOST_MANIFEST_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20


class Oci(Remote):
    """`at`: the digest that this run has seen before. `endpoint` is a mirror of the registry."""

    def __init__(self, wanted: Wanted, values: Mapping[str, str], at: str | None) -> None:
        location, parsed = wanted.location, wanted.location.parsed
        self._wanted, self._repo = wanted, parsed.repo
        self._reference = at or location.revision or parsed.tag
        self._url = (location.endpoint or f"https://{_host(parsed.host)}").rstrip("/")
        self.place = wanted.place(self._url, values)
        self._registry = _client(self._url, values, network.authorities(location, wanted.field))

    def look(self) -> Snapshot:
        manifest, digest = self._manifest(self._reference)
        inner = manifest
        if "manifests" in manifest:
            inside = [str(entry.get("digest")) for entry in manifest["manifests"]]
            if len(inside) != 1:
                raise BadInput(
                    f"{self.place} is an index of {len(inside)} manifests, so it is unclear which is meant",
                    code="InvalidData",
                    remedy="name the one by its digest in revision",
                )
            inner, _ = self._manifest(inside[0])
        layers = [layer for layer in inner.get("layers", []) if layer.get("annotations", {}).get(_TITLE)]
        if not layers:
            raise BadInput(
                f"{self.place} is a container image, or an artifact whose layers name no files",
                code="InvalidData",
                remedy="push the files themselves, for example with: oras push REGISTRY/NAME:TAG FILE ...",
            )
        entries = [entry for layer in layers if (entry := self._entry(layer)) is not None]
        if not entries:
            titles = [layer["annotations"][_TITLE] for layer in layers]
            raise names.nothing_fits(self.place, titles, self._wanted.files)
        return Snapshot(digest, entries, digest=digest)

    def _entry(self, layer: Mapping[str, Any]) -> Entry | None:
        title, digest = str(layer["annotations"][_TITLE]), str(layer["digest"])
        name = names.check(title.removeprefix("./").rstrip("/"), self.place)
        said = str(layer["annotations"].get(_UNPACK, "")).lower() == "true" or unpack.is_archive(name)
        # Some clients tell that a folder was packed by the kind of the layer alone.
        folder = said or (layer["mediaType"].endswith("tar+gzip") and not self._wanted.matches(name))
        if not folder and not self._wanted.matches(name):
            return None
        if not digest.startswith("sha256:"):
            raise BadInput(f"{self.place}: {names.shown(title)} has a digest of an unknown kind", code="InvalidData")
        return Entry(name, int(layer["size"]), digest, digest, archive=folder)

    def _manifest(self, reference: str) -> tuple[dict[str, Any], str]:
        response = self._get("manifests", reference, {"Accept": ", ".join(_MANIFESTS)})
        with response:
            raw = response.raw.read(_MOST_MANIFEST_BYTES + 1, decode_content=True)
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if reference.startswith("sha256:") and reference != digest:
            raise BadInput(f"{self.place}: {self._url} gives another manifest for {reference}", code="InvalidData")
        try:
            manifest = json.loads(raw)
            layers = manifest.get("layers", []) + manifest.get("manifests", [])
            if all(isinstance(layer.get("annotations") or {}, dict) for layer in layers):
                return manifest | {"layers": [_plain(layer) for layer in manifest.get("layers", [])]}, digest
        except (ValueError, AttributeError, TypeError, KeyError):
            pass
        raise BadInput(f"{self.place} has a manifest that is none of OCI or Docker", code="InvalidData")

    def read(self, entry: Entry, offset: int) -> tuple[int, Iterator[bytes]]:
        response = self._get("blobs", entry.source, {"Range": f"bytes={offset}-"} if offset else {})
        if response.status_code == 206 and begin_of(response) != offset:
            response.close()
            raise EOFError("the registry gives another range than was asked for")
        return offset if response.status_code == 206 else 0, _pieces(response)

    def _get(self, kind: str, reference: str, headers: Mapping[str, str]) -> Any:
        url = f"{self._url}/v2/{self._repo}/{kind}/{reference}"
        response = self._registry.do_request(
            url, "GET", headers={"Accept-Encoding": "identity", **headers}, stream=True
        )
        if response.status_code >= 400:
            response.close()
            raise _Status(response.status_code)
        return response

    def explained(self, error: BaseException) -> StageError:
        import requests

        for cause in refusals.causes(error):
            if isinstance(cause, (requests.exceptions.InvalidSchema, requests.exceptions.TooManyRedirects)):
                reason = refusals.clean(str(cause), self.place)
                return BadInput(
                    f"{self.place} is redirected to an address that cannot be followed: {reason}", code="NotFound"
                )
        if isinstance(error, ValueError) and "request for authentication" in str(error):
            status = self._registry.auth.refused
            passing = refusals.of_status(status, self.place) is None
            return (
                refusals.unreachable(self.place, "its token service fails")
                if passing
                else refusals.no_access(self.place)
            )
        if refusals.status_of(error) == 404:
            what = f"no {self._repo} with {self._reference}"
            return refusals.absent(self.place, f"{self._url} has {what}")
        return refusals.explained(error, self.place)

    def close(self) -> None:
        self._registry.session.close()


class _Status(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"it answers with status {status}")
        self.status = status


def _plain(layer: Mapping[str, Any]) -> dict[str, Any]:
    known = {"digest": str(layer["digest"]), "size": int(layer["size"]), "mediaType": str(layer.get("mediaType"))}
    return known | {"annotations": layer.get("annotations") or {}}


def _host(host: str) -> str:
    return "registry-1.docker.io" if host in ("docker.io", "index.docker.io") else host


def _pieces(response: Any) -> Iterator[bytes]:
    with response:
        while piece := response.raw.read1(_PIECE_BYTES):
            yield piece


def _client(url: str, values: Mapping[str, str], authorities: str) -> Any:
    """The oras client, kept from this machine's docker configuration, from endless waits and from http after https."""
    import oras.auth.utils
    import oras.client
    import oras.logger
    import requests
    from oras.auth.token import TokenAuth

    oras.logger.logger.set_level(logging.CRITICAL)

    class Auth(TokenAuth):
        """Answers a registry that asks for a password itself as well as one that sends us to a token service."""

        refused = 401

        def authenticate_request(self, original: Any, headers: dict[str, str], refresh: bool = False) -> Any:
            if original.headers.get("Www-Authenticate", "").lower().startswith("basic"):
                known = getattr(self, "_basic_auth", None)
                return {**headers, **({"Authorization": f"Basic {known}"} if known else {})}, bool(known)
            self.token = None  # the one there was is not valid any more
            return super().authenticate_request(original, headers, refresh)

        def load_configs(self, *_: Any, **__: Any) -> None:
            """Never this machine's."""

    class Patient(requests.adapters.HTTPAdapter):
        def send(self, request: Any, **keywords: Any) -> Any:
            return super().send(request, **{**keywords, "timeout": (network.CONNECT_S, network.READ_S)})

    class Registry(oras.client.OrasClient):
        do_request = oras.client.OrasClient.do_request.__wrapped__  # its retries take minutes, also after a refusal

    insecure = url.startswith("http:")
    registry = Registry(hostname=url.partition("://")[2], insecure=insecure, tls_verify=authorities)
    registry.auth = Auth()
    registry.auth.session, registry.auth.prefix = registry.session, registry.prefix
    registry.auth._tls_verify = authorities
    if values:
        registry.auth.set_basic_auth(values["OCI_USERNAME"], values["OCI_PASSWORD"])
    session = registry.session
    session.trust_env = False  # no .netrc

    def remember(response: Any, *_: Any, **__: Any) -> None:
        registry.auth.refused = response.status_code if response.status_code >= 400 else 401

    session.hooks["response"].append(remember)
    session.max_redirects = MOST_REDIRECTS
    if proxy := network.proxy_for(url):
        session.proxies = {"http": proxy, "https": proxy}
    session.adapters.clear()
    session.mount("https://", Patient())
    if insecure:
        session.mount("http://", Patient())
    return registry
