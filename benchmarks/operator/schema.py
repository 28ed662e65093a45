"""Which rules of the CRD cost the API server's CPU: the same creates and status writes with parts of its schema left out."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from benchmarks.operator import ours
from benchmarks.operator.control import NAMESPACE, Api, Object, at_once, cluster, cpu_seconds, pid_of, until
from benchmarks.operator.specimen import Specimen

_RULES = "x-kubernetes-validations"
_ROUNDS = 3


def _schemas(schema: Any) -> Iterator[Object]:
    """Every schema in a schema, itself first."""
    if isinstance(schema, dict):
        if "type" in schema and not isinstance(schema["type"], dict):
            yield schema
        for value in schema.values():
            yield from _schemas(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _schemas(value)


def _without(
    *names: str, where: Callable[[Object], Object] = lambda root: root, deep: bool = True
) -> Callable[[Object], None]:
    def change(root: Object) -> None:
        part = where(root)
        for schema in list(_schemas(part)) if deep else [part]:
            for name in names:
                schema.pop(name, None)

    return change


def _spec(root: Object) -> Object:
    found: Object = root["properties"]["spec"]
    return found


def _open_status(root: Object) -> None:
    root["properties"]["status"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _open_pods(root: Object) -> None:
    _spec(root)["properties"]["pods"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


VARIANTS: dict[str, Callable[[Object], None]] = {
    "as it is": lambda root: None,
    "no CEL": _without(_RULES),
    "no CEL on the root": _without(_RULES, deep=False),
    "no CEL on spec itself": _without(_RULES, where=_spec, deep=False),
    "no patterns": _without("pattern"),
    "no CEL, no defaults": _without(_RULES, "default"),
    "no schema for status": _open_status,
    "no schema for spec.pods": _open_pods,
    "no descriptions": _without("description"),
}


async def costs(name: str, specimen: Specimen, count: int) -> dict[str, tuple[float, float]]:
    """Variant -> API server CPU in ms per create and per status write, the least of some rounds."""
    crd = yaml.safe_load((ours.ROOT / "crds" / "finetunejobs.yaml").read_text())
    found: dict[str, tuple[float, float]] = {}
    with cluster(name, "api") as spec:
        api, server = Api(spec.paths.kubeconfig), pid_of(spec, "kube-apiserver")
        try:
            await api.apply(
                f"/api/v1/namespaces/{NAMESPACE}",
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            )
            groups = {variant: f"v{number}.finetune.dev" for number, variant in enumerate(VARIANTS)}
            for variant, group in groups.items():
                body = copy.deepcopy(crd)
                body["metadata"]["name"] = f"finetunejobs.{group}"
                body["spec"]["group"] = group
                for version in body["spec"]["versions"]:
                    version.pop("selectableFields", None)  # they name fields that a variant lacks
                    VARIANTS[variant](version["schema"]["openAPIV3Schema"])
                await api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body)
            for turn in range(_ROUNDS + 1):
                for variant, group in groups.items():
                    create, status = await _cost(api, server, group, f"j{turn}", specimen, count)
                    if turn:  # the first only warms up
                        known = found.get(variant, (create, status))
                        found[variant] = (min(known[0], create), min(known[1], status))
        finally:
            await api.close()
    return found


async def _cost(api: Api, server: int, group: str, prefix: str, specimen: Specimen, count: int) -> tuple[float, float]:
    path = f"/apis/{group}/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"
    await until(f"{path} is served", lambda: api.serves(path))

    async def used(work: Callable[[int], Any]) -> float:
        before = cpu_seconds(server)
        await at_once(count, work)
        await asyncio.sleep(0.5)
        return (cpu_seconds(server) - before) * 1000 / count

    async def create(number: int) -> None:
        await api.post(path, {**ours.manifest(f"{prefix}-{number}"), "apiVersion": f"{group}/v1alpha1"})

    def write(step: int) -> Callable[[int], Any]:
        status = {"status": specimen.progress(step)}
        return lambda number: api.merge(f"{path}/{prefix}-{number}/status", status)

    created = await used(create)
    await at_once(count, write(0))
    return created, await used(write(1))
