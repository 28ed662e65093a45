"""Say what runs, for people and for programs."""

from __future__ import annotations

import json

from localcluster import components, readiness, spec
from localcluster.cluster import records
from localcluster.console import answer
from localcluster.spec import REGISTRY_NAME


def show(name: str, output: str) -> int:
    """Print the state of cluster NAME; 0 where it is ready, else 1."""
    cluster = spec.load(name)
    if cluster is None:
        answer(json.dumps({"name": name, "ready": False}) if output == "json" else f"There is no cluster {name}.")
        return 1
    running = records(cluster)
    unmet = [condition.what for condition in readiness.conditions(cluster) if not condition.holds()]
    parts = [
        {"name": part, "alive": running.alive(part), "pid": _pid(running.get(part)), "log": str(running.log(part))}
        for part in components.of(cluster)
    ]
    ready = not unmet and all(part["alive"] for part in parts)
    report = {
        "name": name,
        "size": cluster.size,
        "ready": ready,
        "notReady": unmet,
        "server": cluster.server,
        "kubeconfig": str(cluster.paths.kubeconfig),
        "registry": REGISTRY_NAME if cluster.has_node else None,
        "ports": cluster.ports,
        "components": parts,
    }
    if output == "json":
        answer(json.dumps(report, indent=2))
    else:
        answer(f"{name} ({cluster.size}): {'ready' if ready else 'NOT ready: ' + ', '.join(unmet or ['see below'])}")
        answer(f"KUBECONFIG={cluster.paths.kubeconfig}")
        for part in parts:
            state = f"pid {part['pid']}" if part["alive"] else "DEAD"
            answer(f"  {part['name']:<24} {state:<12} {part['log']}")
    return 0 if ready else 1


def _pid(process: object) -> int | None:
    pid = getattr(process, "pid", None)
    return pid if isinstance(pid, int) else None
