"""s3://BUCKET/KEY through s3fs: Amazon's, or any store that speaks its protocol, by `endpoint`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from finetune_trainer.sources import network
from finetune_trainer.sources.objects import Objects
from finetune_trainer.sources.remote import Entry, Wanted


class S3(Objects):
    """An object's ETag is the MD5 of its content, unless it was uploaded in parts or is encrypted by a key service."""

    def __init__(self, wanted: Wanted, values: Mapping[str, str]) -> None:
        location = wanted.location
        endpoint = location.endpoint or "https://s3.amazonaws.com"
        super().__init__(wanted, values, _files(wanted, values), endpoint)

    def check_of(self, details: Mapping[str, Any]) -> str | None:
        etag = str(details.get("ETag", "")).strip('"')
        return f"md5:{etag}" if re.fullmatch(r"[0-9a-f]{32}", etag) else None

    def stamp_of(self, details: Mapping[str, Any]) -> Any:
        return [str(details.get("ETag")), str(details.get("LastModified"))]

    def intact(self, entry: Entry, digest: str) -> bool:
        bucket, key, _ = self._files.split_path(entry.source)
        head = self._ask(self._files._call_s3, "head_object", Bucket=bucket, Key=key)
        return "kms" in str(head.get("ServerSideEncryption")) or bool(head.get("SSECustomerAlgorithm"))

    def close(self) -> None:
        super().close()
        self._files.close_session(self._files.loop, self._files._s3creator) if self._files._s3 else None


def _files(wanted: Wanted, values: Mapping[str, str]) -> Any:
    import s3fs
    from aiobotocore.session import AioSession

    location = wanted.location
    # Nothing of this machine's profiles: neither credentials nor another region or server.
    session = AioSession(
        session_vars={
            "profile": (None, None, None, None),
            "region": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    files = s3fs.S3FileSystem(
        anon=not values,
        key=values.get("AWS_ACCESS_KEY_ID"),
        secret=values.get("AWS_SECRET_ACCESS_KEY"),
        token=values.get("AWS_SESSION_TOKEN"),
        endpoint_url=location.endpoint,
        session=session,
        client_kwargs={
            "region_name": location.region or "us-east-1",
            "verify": network.authorities(location, wanted.field),
        },
        config_kwargs={
            "connect_timeout": network.CONNECT_S,
            "read_timeout": network.READ_S,
            "retries": {"total_max_attempts": 2},
            "ignore_configured_endpoint_urls": True,
            # Stores of one's own seldom have a name for each bucket.
            "s3": {"addressing_style": "path" if location.endpoint else "auto"},
        },
        cache_regions=False,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    files.retries = 1  # transfer.py tries again by itself
    return files
