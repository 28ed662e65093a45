"""Build the project's two images and bring them to the node through its registry, as in a user's cluster."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from localcluster.builder import Builder, uv_program
from localcluster.console import progress, say
from localcluster.errors import NotReadyToStart
from localcluster.paths import REPOSITORY
from localcluster.readiness import registry_answers
from localcluster.spec import REGISTRY_NAME

DEFAULT_NAMES = {"operator": "finetune-operator", "trainer": "finetune-trainer"}
_UV_CACHE_INSIDE = "/uv-cache"
_CERTIFICATES = "/etc/ssl/certs"


@dataclass(frozen=True)
class Build:
    """What ``image build`` was asked for."""

    target: str
    tag: str | None = None
    file: Path = REPOSITORY / "Dockerfile"
    context: Path = REPOSITORY
    build_args: list[str] = field(default_factory=list)


def reference(tag: str) -> str:
    """The name under which pods find an image: in the local registry, unless TAG names another."""
    first = tag.partition("/")[0]
    has_registry = "/" in tag and ("." in first or ":" in first or first == "localhost")
    return tag if has_registry else f"{REGISTRY_NAME}/{tag}"


def build(request: Build) -> str:
    """Build one target of the Dockerfile; returns the image's full name.

    Without a tag it is named after its content, so that a pod that is told a name gets exactly that image, and a node
    that has it does not ask again.
    """
    if not request.file.exists():
        raise NotReadyToStart(f"There is no {request.file}; say which with --file.")
    tag = request.tag or DEFAULT_NAMES.get(request.target)
    if tag is None:
        raise NotReadyToStart(f"The target {request.target!r} has no usual name; give one with --tag.")
    image = reference(tag)
    builder = Builder()
    identity = builder.folder / f"{request.target}.id"
    arguments = list(request.build_args)
    if not any(argument.startswith("BASE_IMAGE=") for argument in arguments):
        arguments.append(f"BASE_IMAGE={builder.base_image()}")
    with progress(f"Building the image {request.target} (minutes the first time)"):
        builder.run(
            "bud",
            # Without namespaces of its own a build works inside containers too.
            "--isolation=chroot",
            "--network=host",
            "--layers",
            "--pull=false",
            *(f"--volume={volume}" for volume in _volumes()),
            f"--build-arg=UV_CACHE_DIR={_UV_CACHE_INSIDE}",
            *(f"--build-arg={argument}" for argument in arguments),
            f"--target={request.target}",
            f"--file={request.file}",
            f"--tag={image}",
            f"--iidfile={identity}",
            str(request.context),
        )
    if request.tag is None:
        named = f"{image}:{identity.read_text().removeprefix('sha256:')[:12]}"
        builder.tag(image, named)
        builder.prune(image, keep={image, named})
        image = named
    say(f"Built {image}.")
    return image


def push(tag: str) -> str:
    """Push an image to the registry of the running node; returns its full name."""
    image = reference(tag)
    builder = Builder()
    if not builder.has(image):
        raise NotReadyToStart(f"There is no image {image}; build it: python -m localcluster image build --target ...")
    if image.startswith(f"{REGISTRY_NAME}/") and not registry_answers():
        raise NotReadyToStart(
            f"No registry answers at {REGISTRY_NAME}; start one: python -m localcluster up --size node"
        )
    started = time.monotonic()
    # zstd at its fastest: on 6 GB it takes a third of gzip's time, and containerd unpacks it faster too.
    builder.run(
        "push", "--tls-verify=false", "--compression-format=zstd", "--compression-level=1", image, f"docker://{image}"
    )
    say(f"Pushed {image} in {time.monotonic() - started:.1f} s.")
    return image


def _volumes() -> list[str]:
    """What a build borrows from this machine: its certificates, uv, and uv's cache."""
    cache = Path(os.environ.get("UV_CACHE_DIR", "") or Path.home() / ".cache" / "uv")
    cache.mkdir(parents=True, exist_ok=True)
    volumes = [f"{cache}:{_UV_CACHE_INSIDE}", f"{uv_program()}:/usr/local/bin/uv:ro"]
    if Path(_CERTIFICATES).is_dir():
        volumes.append(f"{_CERTIFICATES}:{_CERTIFICATES}:ro")
    return volumes
