"""The command line: ``python -m localcluster VERB``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from localcluster import cluster, gobuild, gpus, images, kubeconfig, spec, status, tools
from localcluster.console import answer, say
from localcluster.errors import ClusterError, NotReadyToStart
from localcluster.paths import ClusterPaths


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit code is 2 where the person must do something first, 3 where something failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        result: int = options.run(options)
    except ClusterError as error:
        say(f"localcluster: {error}")
        return error.exit_code
    except BrokenPipeError:
        # The reader has seen enough (`| head`). The interpreter would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("localcluster: interrupted; `up` again goes on, `down` removes what there is.")
        return 130
    return result


def _users_own_cluster() -> bool:
    return os.environ.get("CLUSTER") == "current"


def _up(options: argparse.Namespace) -> int:
    if _users_own_cluster():
        say(f"CLUSTER=current: using your own cluster ({kubeconfig.users_own()}); nothing to start.")
        return 0
    name = options.name or options.size
    cluster.up(cluster.Request(name, options.size, options.port, _flags(options.flag), options.kwok))
    return 0


def _down(options: argparse.Namespace) -> int:
    if _users_own_cluster():
        say("CLUSTER=current: your own cluster is left as it is; nothing to stop.")
        return 0
    cluster.down(_chosen(options.name), options.purge)
    return 0


def _status(options: argparse.Namespace) -> int:
    if _users_own_cluster():
        say(f"CLUSTER=current: ask your own cluster ({kubeconfig.users_own()}): kubectl get nodes")
        return 0
    return status.show(_chosen(options.name), options.output)


def _kubeconfig(options: argparse.Namespace) -> int:
    if _users_own_cluster():
        answer(str(kubeconfig.users_own()))
        return 0
    name = _chosen(options.name)
    if spec.load(name) is None:
        raise NotReadyToStart(f"There is no cluster {name}; start one: python -m localcluster up --name {name}")
    answer(str(ClusterPaths.of(name).kubeconfig))
    return 0


def _build(options: argparse.Namespace) -> int:
    programs = [*gobuild.OF_SIZE[options.size], *([gobuild.KWOK] if options.kwok else [])]
    gobuild.build_all(programs)
    for program in programs:
        answer(str(gobuild.binary(program)))
    return 0


def _image_build(options: argparse.Namespace) -> int:
    request = images.Build(options.target, options.tag, options.file, options.context, options.build_arg)
    image = images.build(request)
    answer(images.push(image) if options.push else image)
    return 0


def _image_push(options: argparse.Namespace) -> int:
    answer(images.push(options.tag))
    return 0


def _gpus(options: argparse.Namespace) -> int:
    name = _chosen(options.name)
    gpus.pretend_in(name, options.count)
    say(f"The node of cluster {name} says that it has {options.count} {gpus.RESOURCE}.")
    return 0


def _tools(_: argparse.Namespace) -> int:
    answer(str(tools.folder()))
    return 0


def _chosen(name: str | None) -> str:
    """The named cluster, or the only one there is."""
    if name is not None:
        spec.check_name(name)
        return name
    names = [found.name for found in spec.load_all()]
    if len(names) > 1:
        raise NotReadyToStart(f"There are several clusters ({', '.join(names)}); say which with --name.")
    if not names:
        raise NotReadyToStart("There is no cluster; start one: python -m localcluster up --size api|control|node")
    return names[0]


def _flags(pairs: list[str]) -> dict[str, list[str]]:
    """``COMPONENT=--flag=value`` as lists a component."""
    collected: dict[str, list[str]] = {}
    for pair in pairs:
        component, _, flag = pair.partition("=")
        if not flag.startswith("-"):
            raise NotReadyToStart(f"{pair!r} is no COMPONENT=--FLAG, for example kube-scheduler=--v=4.")
        collected.setdefault(component, []).append(flag)
    return collected


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m localcluster", description="A real one-node Kubernetes.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    up = verbs.add_parser("up", help="start a cluster, or repair it")
    up.set_defaults(run=_up)
    up.add_argument("--size", choices=spec.SIZES, default="node", help="what runs (default: node)")
    up.add_argument("--name", help="the cluster's name (default: its size)")
    up.add_argument("--port", type=int, help="the API server's port (default: a free one)")
    up.add_argument(
        "--flag",
        action="append",
        default=[],
        metavar="COMPONENT=--FLAG",
        help="add a flag to a component's command line, for example kube-controller-manager=--kube-api-qps=200",
    )

    up.add_argument(
        "--kwok",
        type=int,
        default=0,
        metavar="N",
        help="N nodes of 8 GPUs each whose pods KWOK plays (size control)",
    )

    down = verbs.add_parser("down", help="stop a cluster and delete its state")
    down.set_defaults(run=_down)
    down.add_argument("--purge", action="store_true", help="delete its image content as well")

    show = verbs.add_parser("status", help="say what runs; exit code 0 where the cluster is ready, else 1")
    show.set_defaults(run=_status)
    show.add_argument("-o", "--output", choices=("text", "json"), default="text")

    config = verbs.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    config.set_defaults(run=_kubeconfig)
    fake = verbs.add_parser("gpus", help="let the node pretend to have GPUs")
    fake.set_defaults(run=_gpus)
    fake.add_argument("count", type=int)
    for verb in (down, show, config, fake):
        verb.add_argument("--name", help="the cluster's name (default: the only one)")

    build = verbs.add_parser("build", help="build the programs of a size, and print where they are")
    build.set_defaults(run=_build)
    build.add_argument("--size", choices=spec.SIZES, default="node")
    build.add_argument("--kwok", action="store_true", help="KWOK too")

    image = verbs.add_parser("image", help="build images and push them to the node's registry")
    _image_verbs(image.add_subparsers(required=True, metavar="VERB"))

    verbs.add_parser("tools", help="fetch kubectl and helm, and print their folder").set_defaults(run=_tools)
    return parser


def _image_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = verbs.add_parser("build", help="build one target of the Dockerfile")
    build.set_defaults(run=_image_build)
    build.add_argument("--target", required=True, help="operator or trainer")
    build.add_argument("--tag", help=f"the image's name (default: {', '.join(images.DEFAULT_NAMES.values())})")
    build.add_argument("--file", type=Path, default=images.Build.file, help="default: the repository's Dockerfile")
    build.add_argument("--context", type=Path, default=images.Build.context, help="default: the repository")
    build.add_argument("--build-arg", action="append", default=[], metavar="KEY=VALUE")
    build.add_argument("--push", action="store_true", help="push it as well")

    push = verbs.add_parser("push", help="push an image to the node's registry")
    push.set_defaults(run=_image_push)
    push.add_argument("tag", help="as given to build")


if __name__ == "__main__":
    sys.exit(main())
