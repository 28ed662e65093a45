"""What each stage reads and writes, and so which claims, Secrets and certificates its pods get."""

from __future__ import annotations

import posixpath
from typing import Any

from finetune_api.contract import CA_BUNDLES, RUN_CONFIG_DIR, RUN_CONFIG_KEY, SCRATCH, secret_prefix
from finetune_api.location import CLAIMS_ROOT, Location, Place
from finetune_api.pods import PodSettings
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage

from finetune_operator.domain.names import ANNOTATION_RUN_CONFIG

_VOLUME_PREFIX = "finetune-"


def locations(spec: FineTuneJobSpec, stage: Stage) -> list[tuple[Place, bool]]:
    """The locations that a stage uses, each with whether it writes there.

    Prepare writes a trial file to the output, so that a job does not find out after its training that it cannot write.
    Train evaluates on prepared shards and needs no raw data.
    """
    models: list[tuple[Place, bool]] = [
        (location, False) for location in (spec.model, spec.method.init_from) if location is not None
    ]
    workspace: tuple[Place, bool] = (spec.workspace, True)
    output: tuple[Place, bool] = (spec.output, True)
    match stage:
        case "prepare":
            data = spec.data.train + (spec.data.validation or []) + (spec.data.test or [])
            return [*models, *((location, False) for location in data), workspace, output]
        case "train":
            return [*models, workspace]
        case "publish":
            return [*models, workspace, output]


def claims(spec: FineTuneJobSpec, stage: Stage) -> dict[str, bool]:
    """Claims of a stage by name, with whether anything is written to them."""
    found: dict[str, bool] = {}
    for location, written in locations(spec, stage):
        claim = location.parsed.claim
        if claim:
            found[claim] = found.get(claim, False) or written
    return found


def _downloads(spec: FineTuneJobSpec, stage: Stage) -> list[Location]:
    """What a stage asks servers for: only prepare downloads, the others read what it left."""
    if stage != "prepare":
        return []
    return [location for location, _ in locations(spec, stage) if isinstance(location, Location)]


def secrets(spec: FineTuneJobSpec, stage: Stage) -> list[dict[str, Any]]:
    """`envFrom` of a stage: the keys of each location's Secret, behind a prefix of its own so that equal keys do not meet."""
    names = dict.fromkeys(place.secret_ref.name for place in _downloads(spec, stage) if place.secret_ref is not None)
    return [{"prefix": secret_prefix(name), "secretRef": {"name": name}} for name in names]


def certificates(spec: FineTuneJobSpec, stage: Stage) -> list[str]:
    """ConfigMaps with the certificates of servers that a stage asks."""
    places = _downloads(spec, stage)
    return list(dict.fromkeys(place.ca_bundle_ref.name for place in places if place.ca_bundle_ref is not None))


def claims_needing_many(spec: FineTuneJobSpec) -> dict[str, bool]:
    """Return the claims that pods of the gang mount on several nodes, with whether they write: those need ReadWriteMany,
    the others ReadOnlyMany or ReadWriteMany. Empty for a gang of one node."""
    return claims(spec, "train") if spec.compute.nodes > 1 else {}


def volumes(
    spec: FineTuneJobSpec, settings: PodSettings, stage: Stage
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of a stage's pods and the mounts of their container. Each claim is mounted once, below CLAIMS_ROOT.

    A mount of the user replaces ours at the same path, except for the run config's, and no name of ours meets one of theirs:
    such a pod would be refused only when its stage begins, hours after the job was accepted.
    """
    run_config = {"path": RUN_CONFIG_KEY, "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION_RUN_CONFIG}']"}}
    own: list[tuple[str, str, dict[str, Any], bool]] = [
        ("run-config", RUN_CONFIG_DIR, {"downwardAPI": {"items": [run_config]}}, True),
        ("scratch", SCRATCH, {"emptyDir": {}}, False),
        ("tmp", "/tmp", {"emptyDir": {}}, False),
    ]
    size = spec.compute.shared_memory
    if stage == "train" and (spec.compute.device == "cuda" or size):
        # NCCL and data loaders need more shared memory than the 64 MiB that container runtimes give.
        limit = {"sizeLimit": size} if size else {}
        own.append(("shared-memory", "/dev/shm", {"emptyDir": {"medium": "Memory", **limit}}, False))
    for number, (claim, written) in enumerate(sorted(claims(spec, stage).items())):
        # Numbered, since a claim's own name may be longer than a volume's name may be.
        source = {"persistentVolumeClaim": {"claimName": claim, **({} if written else {"readOnly": True})}}
        own.append((f"claim-{number}", f"{CLAIMS_ROOT}/{claim}", source, not written))
    for number, bundle in enumerate(certificates(spec, stage)):
        own.append((f"certificates-{number}", f"{CA_BUNDLES}/{bundle}", {"configMap": {"name": bundle}}, True))

    theirs = {
        path: mount
        for mount in settings.volume_mounts or []
        if (path := posixpath.normpath(str(mount.get("mountPath")))) != RUN_CONFIG_DIR
    }
    taken = {volume.get("name") for volume in settings.volumes or []}
    pod: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for name, path, source, read_only in own:
        if path in theirs:
            continue
        name = _VOLUME_PREFIX + name
        while name in taken:
            name += "-0"
        pod.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})})
    return pod + (settings.volumes or []), mounts + list(theirs.values())
