"""gs://BUCKET/KEY through gcsfs: Google Cloud Storage, or an emulator of it by `endpoint`."""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import Mapping
from typing import Any

from finetune_trainer.errors import BadInput
from finetune_trainer.sources import credentials, network
from finetune_trainer.sources.objects import Objects
from finetune_trainer.sources.refusals import Misled
from finetune_trainer.sources.remote import Wanted

_READ_ONLY = "https://www.googleapis.com/auth/devstorage.read_only"


class GoogleStorage(Objects):
    """An object has a generation, which every change makes anew."""

    def __init__(self, wanted: Wanted, values: Mapping[str, str]) -> None:
        endpoint = (wanted.location.endpoint or "https://storage.googleapis.com").rstrip("/")
        super().__init__(wanted, values, _files(wanted, values, endpoint), endpoint)

    def check_of(self, details: Mapping[str, Any]) -> str | None:
        try:
            return f"md5:{base64.b64decode(details['md5Hash'], validate=True).hex()}"
        except (KeyError, binascii.Error):  # objects that were composed of others have none
            return None

    def stamp_of(self, details: Mapping[str, Any]) -> Any:
        return [details.get("generation"), details.get("md5Hash"), details.get("crc32c"), str(details.get("updated"))]

    def close(self) -> None:
        super().close()
        if self._files._session is not None:
            self._files.close_session(self._files.loop, self._files._session)


def _files(wanted: Wanted, values: Mapping[str, str], endpoint: str) -> Any:
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # gRPC, which our guards do not reach
    import aiohttp
    from fsspec.asyn import get_loop, sync
    from gcsfs.core import GCSFileSystem

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs whole tracebacks of what we say in a sentence
    refuse = aiohttp.TraceConfig()
    refuse.on_request_redirect.append(_redirected)
    trusted = network.context(network.authorities(wanted.location, wanted.field))

    async def connector() -> aiohttp.TCPConnector:  # wants to be made in the loop that uses it
        return aiohttp.TCPConnector(ssl=trusted)

    class Files(GCSFileSystem):
        protocol = ("gs", "gcs")
        _request = GCSFileSystem._request.__wrapped__  # without its retries: transfer.py tries again by itself

    return Files(
        project="none",  # only for making and listing buckets
        access="read_only",
        token=_account(values, wanted.field) if values else "anon",
        endpoint_url=endpoint,
        requests_timeout=aiohttp.ClientTimeout(sock_connect=network.CONNECT_S, sock_read=network.READ_S),
        session_kwargs={
            "connector": sync(get_loop(), connector),
            "proxy": network.proxy_for(endpoint),
            "trace_configs": [refuse],
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _account(values: Mapping[str, str], field: str) -> Any:
    from google.oauth2 import service_account

    try:
        return service_account.Credentials.from_service_account_info(
            credentials.google(values, field), scopes=[_READ_ONLY]
        )
    except ValueError:
        raise BadInput(
            f"{field}: GOOGLE_CREDENTIALS of its Secret is not the whole JSON key of a service account",
            code="MissingCredential",
            remedy="make a new key and put its file into the Secret as it is",
        ) from None


async def _redirected(*_: Any) -> None:
    raise Misled("the store redirects, which it has no reason to")
