"""What each stage reads and writes, and so which claims, Secrets and certificates its pods get."""

from __future__ import annotations

from typing import Any

from finetune_api.contract import CA_BUNDLES, RUN_CONFIG_DIR, SCRATCH, secret_prefix
from finetune_api.location import CLAIMS_ROOT, Location, Place
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage

CONFIG_VOLUME = "run-config"


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


def volumes(spec: FineTuneJobSpec, stage: Stage, config_map: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of a stage's pods and the mounts of their container. Each claim is mounted once, below CLAIMS_ROOT."""
    pod: list[dict[str, Any]] = [
        {"name": CONFIG_VOLUME, "configMap": {"name": config_map}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": CONFIG_VOLUME, "mountPath": RUN_CONFIG_DIR, "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if stage == "train" and spec.compute.device == "cuda":
        # NCCL and data loaders need more shared memory than the 64 MiB that container run-times give.
        pod.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    for number, (claim, written) in enumerate(sorted(claims(spec, stage).items())):
        name = f"claim-{number}"  # a claim's own name may be longer than a volume's name may be
        pod.append({"name": name, "persistentVolumeClaim": {"claimName": claim} | _read_only(written)})
        mounts.append({"name": name, "mountPath": f"{CLAIMS_ROOT}/{claim}"} | _read_only(written))
    for number, bundle in enumerate(certificates(spec, stage)):
        name = f"certificates-{number}"
        pod.append({"name": name, "configMap": {"name": bundle}})
        mounts.append({"name": name, "mountPath": f"{CA_BUNDLES}/{bundle}", "readOnly": True})
    return pod, mounts


def _read_only(written: bool) -> dict[str, bool]:
    return {} if written else {"readOnly": True}
