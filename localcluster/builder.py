"""buildah, with a storage of its own in the user's cache, and the base image made from the distribution's packages."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from localcluster import debian, pypi
from localcluster.cache import made_once
from localcluster.console import progress
from localcluster.errors import ClusterError, NotReadyToStart
from localcluster.locks import locked
from localcluster.paths import cache_root

SUITE = "bookworm"
BASE_IMAGE = f"localhost/finetune-base:{SUITE}"
_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_UV_WHEEL = "uv==0.13.9"


class Builder:
    """One person's images. Its layers are a cache: deleting the folder costs a rebuild and nothing else."""

    def __init__(self) -> None:
        debian.install_missing(debian.IMAGES)
        if lacking := debian.missing(debian.IMAGES):
            raise NotReadyToStart(debian.advice(lacking))
        self.folder = cache_root() / "buildah"
        self._scratch = self.folder / "tmp"
        self._scratch.mkdir(parents=True, exist_ok=True)
        # Nothing is verified by signature here: what is pulled comes over TLS, what is built is ours.
        self._policy = self.folder / "policy.json"
        self._policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')

    def has(self, image: str) -> bool:
        """Whether IMAGE is in the storage."""
        return self._call("inspect", "--type=image", image).returncode == 0

    def tag(self, image: str, name: str) -> None:
        """Give IMAGE another name."""
        done = self._call("tag", image, name)
        if done.returncode != 0:
            raise ClusterError(f"buildah tag failed: {done.stderr.strip()[-800:]}")

    @classmethod
    def named_images(cls) -> set[str]:
        """What was built here and still has its name; nothing where nothing was ever built."""
        if debian.missing(debian.IMAGES) or not (cache_root() / "buildah").exists():
            return set()
        listed = cls()._call("images", "--format={{.Name}}:{{.Tag}}", "--filter=dangling=false").stdout
        return {name for name in listed.split() if not name.startswith("<none>")}

    def prune(self, repository: str, keep: set[str]) -> None:
        """Remove the other images of REPOSITORY, and layers that nothing is built on: a trainer image has 6 GB."""
        listed = self._call("images", "--format={{.Name}}:{{.Tag}}", "--filter=dangling=false").stdout.split()
        old = [
            name for name in listed if name.startswith(f"{repository}:") and name.removesuffix(":latest") not in keep
        ]
        for name in old:
            self._call("rmi", name)
        self._call("rmi", "--prune")

    def run(self, verb: str, *arguments: str) -> str:
        """Run one buildah command."""
        done = self._call(verb, f"--signature-policy={self._policy}", *arguments)
        if done.returncode != 0:
            raise ClusterError(f"buildah {verb} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout.strip()

    def base_image(self) -> str:
        """The image that both of the project's images start from, for people without access to a public registry."""
        with locked(self.folder / ".base.lock"):
            if not self.has(BASE_IMAGE):
                with progress(f"Making the base image {BASE_IMAGE} (once; about a minute)"):
                    self._make_base()
        return BASE_IMAGE

    def _make_base(self) -> None:
        archive = self.folder / "base.tar"
        archive.unlink(missing_ok=True)
        made = subprocess.run(
            [
                debian.program("mmdebstrap"),
                "--variant=minbase",
                f"--include={_BASE_PACKAGES}",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                SUITE,
                str(archive),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise ClusterError(f"mmdebstrap failed: {made.stderr.strip()[-800:]}")
        container = self.run("from", "scratch")
        self._call("add", container, str(archive))
        self.run("commit", "--rm", container, BASE_IMAGE)
        archive.unlink()

    def _call(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        storage = [
            f"--root={self.folder / 'storage'}",
            f"--runroot={self.folder / 'run'}",
            "--storage-driver=overlay",
        ]
        return subprocess.run(
            [debian.program("buildah"), *storage, verb, *arguments],
            # Large layers and cache mounts are written there; /tmp may be a small file system in memory.
            env={**os.environ, "TMPDIR": str(self._scratch)},
            capture_output=True,
            text=True,
            check=False,
        )


def uv_program() -> Path:
    """A uv that can be mounted into a build: one file that needs nothing but a C library."""

    def fetch(target: Path) -> None:
        with progress("Fetching uv for image builds"):
            pypi.unpack(_UV_WHEEL, target)

    return made_once(cache_root() / _UV_WHEEL.replace("==", "-"), fetch) / "bin" / "uv"
