"""From a location in the spec to files on this machine. A hub's repository is downloaded once a run, by `prepare`.

What was downloaded lies sealed below the run's folder on the workspace, at one commit of the hub: all later stages and
all ranks read the same bytes, training pods need neither network nor token, and no GPU waits for a download.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from finetune_api.contract import RunConfig
from finetune_api.location import Location, ParsedLocation

from finetune_trainer import sealed
from finetune_trainer.data.digests import json_digest
from finetune_trainer.errors import BadInput, StageError

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")
DATA_FILES = ("*.jsonl", "*.ndjson", "*.json")
HUB_UNREACHABLE = "HubUnreachable"


def local(location: Location, config: RunConfig, *, field: str) -> Path:
    """Path of the file or folder that `location` names; for hf, of what `fetch` downloaded.

    Raises BadInput (NotFound) in one sentence that begins with `field`, such as `spec.model.uri`.
    """
    parsed = location.parsed
    if parsed.scheme == "hf":
        folder = _download_folder(location, config)
        if sealed.read_manifest(folder) is None:
            raise StageError(f"{field}: {location.uri} was not downloaded by the prepare stage", code="Unknown")
        path = folder / parsed.path
    else:
        path = config.path(location)
    try:
        found = path.exists()
    except PermissionError:
        found = False
    if not found:
        raise BadInput(f"{field}: {location.uri} does not exist{_nearest(parsed, path, config)}", code="NotFound")
    if not os.access(path, os.R_OK):
        raise BadInput(
            f"{field}: {location.uri} may not be read by user {os.geteuid()}",
            code="NotFound",
            remedy="make the files readable for that user or its group, or set spec.pods.common.securityContext.fsGroup",
        )
    return path


def fetch(location: Location, config: RunConfig, *, field: str, files: Sequence[str], subfolders: bool = False) -> Path:
    """As `local`, but downloads an hf location first, only files that match `files` (glob patterns).

    Raises BadInput for a repository, revision, file or credential that is at fault, StageError when the hub does not answer.
    """
    if location.parsed.scheme == "hf":
        folder = _download_folder(location, config)
        if sealed.read_manifest(folder) is None:
            _download(location, folder, field, files, subfolders)
    return local(location, config, field=field)


def _download_folder(location: Location, config: RunConfig) -> Path:
    parsed = location.parsed
    key = json_digest([parsed.repo, parsed.is_dataset, parsed.path, location.revision, location.endpoint])[:12]
    return config.layout.root / "downloads" / f"{parsed.repo.replace('/', '--')}-{key}"


def _download(location: Location, folder: Path, field: str, files: Sequence[str], subfolders: bool) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, snapshot_download  # slow to import, and only this road needs it

    parsed = location.parsed
    kind = "dataset" if parsed.is_dataset else "model"
    token = os.environ.get("HF_TOKEN") or False  # False: never a token of this machine's user
    partial = folder.with_name(f".{folder.name}.partial")  # kept after a failure: the next attempt goes on from it
    patterns = [f"{parsed.path}/{pattern}" for pattern in files] + [parsed.path] if parsed.path else list(files)
    try:
        api = HfApi(endpoint=location.endpoint, token=token)
        commit = api.repo_info(parsed.repo, repo_type=kind, revision=location.revision).sha
        snapshot_download(
            parsed.repo,
            repo_type=kind,
            revision=commit,
            local_dir=partial,
            allow_patterns=patterns,
            ignore_patterns=None if subfolders else [f"{parsed.path}/*/*" if parsed.path else "*/*"],
            endpoint=location.endpoint,
            token=token,
        )
    except Exception as error:
        raise _explained(error, location, field) from error
    manifest = {"kind": "download", "repo": parsed.repo, "commit": commit, "revision": location.revision}
    with sealed.sealing(folder, manifest) as temporary:
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        for entry in list(partial.iterdir()):
            entry.rename(temporary / entry.name)
    partial.rmdir()


def _explained(error: Exception, location: Location, field: str) -> StageError:
    from huggingface_hub import errors

    parsed = location.parsed
    hub = location.endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return BadInput(f"{field}: {parsed.repo} has no revision {location.revision!r} on {hub}", code="NotFound")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return BadInput(
            f"{field}: {parsed.repo} on {hub} asks for an approved account, and the given HF_TOKEN has no access"
            if os.environ.get("HF_TOKEN")
            else f"{field}: {parsed.repo} on {hub} asks for an approved account, and no HF_TOKEN was given",
            code="MissingCredential",
            remedy="accept the terms on the hub, put a token with access under the key HF_TOKEN into a Secret, and name it in secretRef",
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return BadInput(
            f"{field}: {hub} knows no {'data set' if parsed.is_dataset else 'model'} {parsed.repo}, or it is private",
            code="NotFound",
            remedy="check the name; for a private one put a token under the key HF_TOKEN into a Secret and name it in secretRef",
        )
    if isinstance(error, errors.HFValidationError):
        return BadInput(f"{field}: {parsed.repo} is not a repository name: {error}", code="NotFound")
    if isinstance(error, OSError) and error.errno == 28:
        return BadInput(f"{field}: the workspace has no room for {parsed.repo}", code="StorageFull")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return StageError(
        f"{field}: {parsed.repo} could not be downloaded from {hub}: {reason[:300]}",
        code=HUB_UNREACHABLE,
        remedy="check that the pods reach the hub (proxy, network policy), or copy the files to a claim and use pvc://",
    )


def _nearest(parsed: ParsedLocation, path: Path, config: RunConfig) -> str:
    """What is there instead: the nearest folder that exists, and what it holds."""
    if parsed.scheme == "hf":
        return " in that repository"
    top = Path(config.claims_root) / parsed.claim if parsed.scheme == "pvc" else Path("/")
    folder = path.parent
    while not folder.is_dir() and folder not in (top, folder.parent):
        folder = folder.parent
    try:
        names = sorted(
            entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not entry.name.startswith(".")
        )
    except OSError:
        return ""
    where = (
        f"pvc://{parsed.claim}/{folder.relative_to(top)}".removesuffix("/.") if parsed.scheme == "pvc" else str(folder)
    )
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"; {where} holds {shown}" if names else f"; {where} is empty"
