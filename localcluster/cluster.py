"""Bring a cluster up, repair it, take it down. The order of things is here; what each thing is, is elsewhere."""

from __future__ import annotations

import http.client
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from localcluster import addons, components, configs, debian, imagestore, node, ports, preflight, readiness, spec
from localcluster.api import Api
from localcluster.builder import Builder
from localcluster.console import say
from localcluster.errors import ClusterError, NotReadyToStart
from localcluster.gobuild import COREDNS, KUBE, KWOK, OF_SIZE, REGISTRY, binary, build_all
from localcluster.locks import locked
from localcluster.paths import clusters_root
from localcluster.processes import Registry, boot_id, tail
from localcluster.spec import Spec

_START_TIMEOUT_S = 90.0
_OWN_PROGRAM = {"coredns": COREDNS, "registry": REGISTRY, "kwok": KWOK}


@dataclass(frozen=True)
class Request:
    """What the person asked ``up`` for."""

    name: str
    size: str
    port: int | None = None
    extra_flags: dict[str, list[str]] = field(default_factory=dict)
    kwok_nodes: int = 0


def records(cluster: Spec) -> Registry:
    """The processes of CLUSTER."""
    return Registry(cluster.paths.pids, cluster.paths.logs)


def up(request: Request) -> Spec:
    """Start the cluster, or what is dead of it; a cluster that is well is left alone."""
    spec.check_name(request.name)
    if request.kwok_nodes and request.size != "control":
        raise NotReadyToStart("Only a cluster of size control can have KWOK nodes: use --size control with --kwok.")
    with _locked(request.name):
        cluster = _existing(request)
        if cluster is None:
            cluster = _create(request)
        else:
            if (
                request.extra_flags not in ({}, cluster.extra_flags)
                or request.port not in (None, cluster.ports["api"])
                or request.kwok_nodes not in (0, cluster.kwok_nodes)
            ):
                say(
                    f"Cluster {cluster.name} exists: its flags, port and nodes stay as they are until it is taken down."
                )
            dead = _dead(cluster)
            if not dead and readiness.ready(cluster):
                say(f"Cluster {cluster.name} ({cluster.size}) is already up: {cluster.paths.kubeconfig}")
                return cluster
            say(f"Repairing cluster {cluster.name}: {', '.join(dead) or 'not ready'}.")
        started = time.monotonic()
        _start(cluster)
        say(f"Cluster {cluster.name} ({cluster.size}) is ready after {time.monotonic() - started:.1f} s.")
        say(f"export KUBECONFIG={cluster.paths.kubeconfig}")
        return cluster


def down(name: str, purge: bool = False) -> None:
    """Stop everything that ``up`` started and delete the cluster's state; PURGE deletes its image content too."""
    spec.check_name(name)
    with _locked(name):
        cluster = spec.load(name)
        if cluster is None:
            root = clusters_root() / name
            if purge and root.exists():
                shutil.rmtree(root)
                say(f"Deleted the images of cluster {name}.")
            else:
                say(f"There is no cluster {name}.")
            return
        _remove(cluster, purge)
        say(f"Cluster {name} is down.")


def _existing(request: Request) -> Spec | None:
    cluster = spec.load(request.name)
    if cluster is None:
        return None
    if cluster.boot != boot_id():
        say(f"This machine was restarted since cluster {cluster.name} came up: starting it afresh.")
        _remove(cluster, purge=False)
        return None
    if cluster.size != request.size:
        raise NotReadyToStart(
            f"Cluster {cluster.name} exists with size {cluster.size}; take it down first, or choose another --name."
        )
    return cluster


def _create(request: Request) -> Spec:
    if request.size == "node":
        debian.install_missing()
    preflight.check(request.size, request.name, request.port)
    build_all([*OF_SIZE[request.size], *([KWOK] if request.kwok_nodes else [])])
    with locked(clusters_root() / ".ports.lock"):
        taken = {port for other in spec.load_all() for port in other.ports.values()}
        chosen = ports.choose(request.name, spec.port_names(request.size), taken)
        if request.port is not None:
            chosen["api"] = request.port
        cluster = Spec(request.name, request.size, boot_id(), chosen, request.extra_flags, request.kwok_nodes)
        cluster.save()
    from localcluster import certs  # a third of a second, which no other verb needs to wait for

    certs.create(cluster.pki, sorted({cluster.address, *components.SERVING_ADDRESSES}))
    return cluster


def _start(cluster: Spec) -> None:
    running = records(cluster)
    configs.write_all(cluster)
    api = Api(cluster.server, cluster.pki)
    order = components.of(cluster)
    first, last = _split(order)
    if cluster.has_node:
        node.prepare_network(cluster)
    for component in first:
        _ensure(cluster, running, component)
    _wait(cluster, running, first, "the API server", api.ready)
    if cluster.has_node:
        _wait(cluster, running, first, "containerd", lambda: node.import_sandbox_image(cluster))
    addons.apply(api, cluster)
    for component in last:
        _ensure(cluster, running, component)
    for condition in readiness.conditions(cluster):
        _wait(cluster, running, order, condition.what, condition.holds)


def _split(order: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those up to the API server, and those that need it."""
    after = order.index("kube-apiserver") + 1
    return order[:after], order[after:]


def _ensure(cluster: Spec, running: Registry, component: str) -> None:
    if running.alive(component):
        return
    command = components.command(cluster, component)
    own = _OWN_PROGRAM.get(component, KUBE)
    program = debian.program(component) if component == "containerd" else binary(own)
    running.start(component, command, program, debian.environment())


def _wait(cluster: Spec, running: Registry, started: tuple[str, ...], what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not condition():
        for component in started:
            if not running.alive(component):
                log = running.log(component)
                raise ClusterError(f"{component} died while {what} was awaited; {log} ends with:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{what} is not ready after {_START_TIMEOUT_S:.0f} s; the logs are in {cluster.paths.logs} "
                f"and everything still runs: look, or take it down."
            )
        time.sleep(0.05)


def _dead(cluster: Spec) -> list[str]:
    running = records(cluster)
    return [f"{component} is dead" for component in components.of(cluster) if not running.alive(component)]


def _remove(cluster: Spec, purge: bool) -> None:
    running = records(cluster)
    order = components.of(cluster)
    first, last = _split(order)
    # The API server and etcd have nothing to save: their state is about to be deleted.
    if cluster.has_node:
        running.stop(last)
        node.stop_pods(cluster, running)
        replaced = not purge and running.alive("registry") and _forget_replaced(cluster)
        running.stop(first, grace_s=1.5)
        if replaced:
            imagestore.collect_garbage(cluster)
        node.clean(cluster)
    else:
        running.stop(order, grace_s=1.0)
    _delete_state(cluster, purge)


def _forget_replaced(cluster: Spec) -> bool:
    try:
        return imagestore.forget_replaced(cluster, Builder.named_images())
    except (OSError, http.client.HTTPException) as error:
        say(f"Replaced images stay where they are: {error}")
        return False


def _delete_state(cluster: Spec, purge: bool) -> None:
    root, images = cluster.paths.root, cluster.paths.images
    # First the rest and last the description: a killed ``down`` can be repeated.
    for entry in root.iterdir():
        if entry in (images, cluster.paths.description):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if purge or not images.exists():
        shutil.rmtree(root)
    else:
        cluster.paths.description.unlink()


def _locked(name: str) -> AbstractContextManager[None]:
    return locked(clusters_root() / f".{name}.lock", lambda: say(f"Waiting for another command on cluster {name}."))
