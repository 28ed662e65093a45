"""How servers are reached: which certificates are trusted, through which proxy, and how long an answer may take."""

from __future__ import annotations

import atexit
import functools
import ssl
import tempfile
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from finetune_api.contract import CA_BUNDLES
from finetune_api.location import Location

from finetune_trainer.errors import BadInput

CONNECT_S = 15.0
READ_S = 60.0
"""Seconds until a connection stands, and until the next bytes come."""


def authorities(location: Location, field: str) -> str:
    """Path of a PEM file with the certificates to trust: the usual ones and those of caBundleRef. Raises BadInput."""
    reference = location.ca_bundle_ref
    if reference is None:
        return _together("")
    folder = Path(CA_BUNDLES) / reference.name
    try:
        bundle = (folder / reference.key).read_text()
    except (OSError, UnicodeDecodeError) as error:
        here = folder.is_dir()
        raise BadInput(
            f"{field}: ConfigMap {reference.name} of its caBundleRef has no readable key {reference.key}"
            if here
            else f"{field}: ConfigMap {reference.name} of its caBundleRef is not mounted here",
            code="NotFound",
            remedy="correct caBundleRef.key"
            if here
            else "in a local run name a file with all certificates in SSL_CERT_FILE, and leave caBundleRef out",
        ) from error
    try:
        ssl.create_default_context(cadata=bundle)
    except (ssl.SSLError, ValueError) as error:
        raise BadInput(
            f"{field}: {reference.key} in ConfigMap {reference.name} holds no certificates (PEM)", code="InvalidSpec"
        ) from error
    return _together(bundle)


@functools.cache
def _together(bundle: str) -> str:
    import certifi

    usual = [Path(certifi.where())]
    if own := ssl.get_default_verify_paths().cafile:  # the image's own, or SSL_CERT_FILE
        usual.append(Path(own))
    with tempfile.NamedTemporaryFile("w", prefix="authorities-", suffix=".pem", delete=False) as file:
        file.write("\n".join([*(path.read_text(errors="replace") for path in usual), bundle]))
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name


def proxy_for(url: str) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, NO_PROXY ...) names for a URL."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    if urllib.request.proxy_bypass_environment(parts.netloc.rpartition("@")[2], proxies):  # type: ignore[attr-defined]
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


@functools.cache
def context(authorities: str) -> ssl.SSLContext:
    """Trusts `authorities`, a PEM file."""
    return ssl.create_default_context(cafile=authorities)
