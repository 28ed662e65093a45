"""hf://OWNER/NAME and hf://datasets/OWNER/NAME: the Hugging Face hub, or a mirror of it by `endpoint` (or HF_ENDPOINT).

huggingface_hub asks for the commit and the list of files; the bytes come by our own client, since the library begins a file
anew after a crash, follows redirects anywhere, and its Rust part (Xet) can be given neither certificates nor a guard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.sources import names, network, refusals
from finetune_trainer.sources.refusals import Misled
from finetune_trainer.sources.remote import Entry, Remote, Snapshot, Wanted
from finetune_trainer.sources.web import MOST_REDIRECTS, Web

PUBLIC = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")


class Hub(Remote):
    """`at`: the commit that this run has seen before."""

    def __init__(self, wanted: Wanted, values: Mapping[str, str], at: str | None) -> None:
        location = wanted.location
        self._wanted, self._parsed = wanted, location.parsed
        self._kind = "dataset" if self._parsed.is_dataset else "model"
        self._endpoint = (location.endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")
        self._token = values.get("HF_TOKEN")
        self._revision = at or location.revision
        self.place = wanted.place(self._endpoint, values)
        self._authorities = network.authorities(location, wanted.field)
        self._web = Web(self._authorities, {"Authorization": f"Bearer {self._token}"} if self._token else {})

    def look(self) -> Snapshot:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.hf_api import RepoFile

        api, repo = self._api(), self._parsed.repo
        commit = api.repo_info(repo, repo_type=self._kind, revision=self._revision, timeout=network.READ_S).sha
        if not COMMIT.fullmatch(commit or ""):
            raise ValueError(f"the hub names no commit of {repo}")
        tree = api.list_repo_tree(repo, repo_type=self._kind, revision=commit, recursive=True)
        files = {file.path: file for file in tree if isinstance(file, RepoFile)}
        chosen = [file for name, file in files.items() if self._fits(name)]
        if not chosen:
            raise self._nothing(files)
        entries = []
        for file in chosen:
            url = hf_hub_url(repo, file.path, repo_type=self._kind, revision=commit, endpoint=self._endpoint)
            check = f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
            entries.append(Entry(file.path, file.lfs.size if file.lfs else file.size, url, check))
        return Snapshot(commit, entries, digest=commit, path=self._parsed.path)

    def read(self, entry: Entry, offset: int) -> tuple[int, Iterator[bytes]]:
        return self._web.read(entry.source, offset)

    def _fits(self, name: str) -> bool:
        path = self._parsed.path
        if not path:
            return self._wanted.matches(name)
        return name == path or (name.startswith(f"{path}/") and self._wanted.matches(name.removeprefix(f"{path}/")))

    def _nothing(self, files: Mapping[str, Any]) -> BadInput:
        path = self._parsed.path
        inside = [name.removeprefix(f"{path}/") for name in files if not path or name.startswith(f"{path}/")]
        if inside or not path:
            return names.nothing_fits(self.place, inside, self._wanted.files)
        top = sorted({name.partition("/")[0] + "/" * ("/" in name) for name in files})
        shown = ", ".join(map(names.shown, top[:8])) + (", ..." if len(top) > 8 else "")
        return BadInput(f"{self.place} does not exist in that repository; it holds {shown}", code="NotFound")

    def _api(self) -> Any:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import huggingface_hub  # slow to import, and only this road needs it
        from huggingface_hub.utils._http import default_client_factory

        usual = default_client_factory()
        https = self._endpoint.startswith("https:")
        patience = {"connect": network.CONNECT_S, "read": network.READ_S, "write": network.READ_S, "pool": None}

        def guard(request: Any) -> None:
            request.extensions["timeout"] = patience  # the library asks for lists without any
            if https and request.url.scheme != "https":
                raise Misled("the hub redirects from https to http, which is not followed")

        def client() -> Any:
            return type(usual)(
                event_hooks={"request": [*usual.event_hooks["request"], guard]},
                follow_redirects=True,
                max_redirects=MOST_REDIRECTS,
                verify=network.context(self._authorities),
                trust_env=False,  # no .netrc
                proxy=network.proxy_for(self._endpoint),
            )

        huggingface_hub.set_client_factory(client)
        # False: never a token of this machine's user.
        return huggingface_hub.HfApi(endpoint=self._endpoint, token=self._token or False)

    def explained(self, error: BaseException) -> StageError:
        for cause in refusals.causes(error):
            if (said := self._said(cause)) is not None:
                return said
        return refusals.explained(error, self.place)

    def _said(self, error: BaseException) -> BadInput | None:
        from huggingface_hub import errors

        repo, hub, field = self._parsed.repo, self._endpoint, self.place.field
        status = refusals.status_of(error)
        if isinstance(error, errors.RevisionNotFoundError):
            return BadInput(f"{field}: {repo} has no revision {self._revision!r} on {hub}", code="NotFound")
        if isinstance(error, errors.GatedRepoError) or status == 403:
            given = "the given HF_TOKEN has no access" if self._token else "no HF_TOKEN was given"
            return BadInput(
                f"{field}: {repo} on {hub} asks for an approved account, and {given}",
                code="MissingCredential",
                remedy="accept the terms on the hub, put a token with access under the key HF_TOKEN into a Secret, and name it in secretRef",
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
            return BadInput(
                f"{field}: {hub} knows no {'data set' if self._parsed.is_dataset else 'model'} {repo}, or it is private",
                code="NotFound",
                remedy="check the name; for a private one put a token under the key HF_TOKEN into a Secret and name it in secretRef",
            )
        if isinstance(error, errors.HFValidationError):
            return BadInput(f"{field}: {repo} is not a repository name", code="NotFound")
        return None

    def close(self) -> None:
        from huggingface_hub import close_session

        self._web.close()
        close_session()
