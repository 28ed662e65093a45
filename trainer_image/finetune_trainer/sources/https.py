"""https://HOST/PATH: one file, or a tar archive (a model's folder, for example) that is unpacked."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping

import urllib3

from finetune_trainer.errors import BadInput
from finetune_trainer.sources import names, unpack
from finetune_trainer.sources.network import authorities
from finetune_trainer.sources.remote import Entry, Remote, Snapshot, Wanted
from finetune_trainer.sources.web import Web, total_size


class Https(Remote):
    """`run` stands for the content where a server does not tell when that changes."""

    def __init__(self, wanted: Wanted, values: Mapping[str, str], run: str) -> None:
        location = wanted.location
        if location.endpoint:
            raise BadInput(
                f"{wanted.field}: endpoint is no use for https://",
                code="InvalidSpec",
                remedy="write the server into the uri",
            )
        self._url, self._run = location.uri, run
        self.place = wanted.place(location.parsed.host, values)
        self._web = Web(authorities(location, wanted.field), _authorization(values))
        self._etag: str | None = None
        self._name = names.check(urllib.parse.unquote(self._url.rstrip("/").rpartition("/")[2]), self.place)
        self._archive = unpack.is_archive(self._name)
        if not self._archive and not wanted.matches(self._name):
            raise names.nothing_fits(self.place, [self._name], (*wanted.files, *unpack.SUFFIXES))

    def look(self) -> Snapshot:
        """A GET of the first byte: some servers refuse HEAD, others sign URLs for GET alone."""
        response = self._web.get(self._url, {"Range": "bytes=0-0"})
        response.close()
        size = total_size(response)
        self._etag = response.headers.get("ETag")
        changed = response.headers.get("Last-Modified")
        stamp = f"{self._etag} {changed} {size}" if self._etag or changed else f"unknown {self._run}"
        entry = Entry(self._name, size, archive=self._archive)
        return Snapshot(stamp, [entry], path="" if self._archive else self._name)

    def read(self, entry: Entry, offset: int) -> tuple[int, Iterator[bytes]]:
        return self._web.read(self._url, offset, unchanged=self._etag)

    def close(self) -> None:
        self._web.close()


def _authorization(values: Mapping[str, str]) -> dict[str, str]:
    if token := values.get("HTTPS_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := values.get("HTTPS_USERNAME"):
        return dict(urllib3.make_headers(basic_auth=f"{user}:{values['HTTPS_PASSWORD']}"))
    return {}
